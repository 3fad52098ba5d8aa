"""What a command does not wait for, and that it needs no home: libraries that are imported are found, not timed."""

import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command_line import a_wav
from trainer.io import get_user_data_dir
from TTS.utils.audio import AudioProcessor
from TTS.vocoder.models.base_vocoder import BaseVocoder

from apnet2_tts_plugin.errors import MissingPackageError
from apnet2_tts_plugin.metrics import inputs
from apnet2_tts_plugin.weights import store

RUN = """
import sys
from apnet2_tts_plugin import cli
try:
    status = cli.main(sys.argv[1:])
except SystemExit as end:
    status = end.code
assert not status, status
print(*sys.modules, sep="\\n")
"""
RESAMPLE = """
import sys
import numpy as np
from apnet2_tts_plugin.metrics import inputs
inputs.at_speech_rate(np.zeros(9), 22050)
print(*sys.modules, sep="\\n")
"""
HEAVY = {"torch", "numpy", "TTS", "trainer"}
FOR_OTHERS = {"numba", "librosa.filters", "librosa.core", "scipy.signal", "transformers", "matplotlib", "pandas"}


def imported(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter has when `code` is done."""
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("command", ["--help", "--version", "vocode --help", "list"])
def test_no_torch_to_say_something(command):
    assert not HEAVY & imported(RUN, *command.split())


def test_no_more_than_torch_to_vocode(tmp_path, monkeypatch):
    """numba, behind librosa, also fails where it can write neither beside it nor at home."""
    monkeypatch.chdir(tmp_path)
    modules = imported(RUN, "vocode", a_wav(), "out.wav")
    assert Path("out.wav").is_file() and "torch" in modules
    assert not FOR_OTHERS & modules


def test_no_librosa_to_resample():
    assert not FOR_OTHERS & imported(RESAMPLE)


def test_a_model_is_made_as_coqui_makes_its_own():
    """But for the audio processor, which takes librosa, until it is asked for."""
    model = tiny.model()
    made = set(vars(model))
    assert isinstance(model.ap, AudioProcessor) and model.ap.sample_rate == 22050
    BaseVocoder.__init__(model, model.config)
    assert set(vars(model)) - made == {"ap"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TTS_HOME": "TMP/a", "XDG_DATA_HOME": "TMP/b"},
        {"XDG_DATA_HOME": "TMP/b"},
        {"XDG_DATA_HOME": "~/b"},
        {"TTS_HOME": "here/../a"},
        {"TTS_HOME": ""},
    ],
)
def test_models_lie_where_coqui_has_them(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TTS_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value.replace("TMP", str(tmp_path)))
    assert store.data_folder() == get_user_data_dir("tts")


def test_no_home(monkeypatch):
    """A user whom the system does not know, as in many a container, has the bundled models."""

    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in ("HOME", "TTS_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        Path.home()
    assert "apnet2" in store.names()


def test_a_home_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TTS_HOME", str(tmp_path / ("x" * 300)))  # refused by the system, for the superuser too
    assert list(store.names()) == ["apnet2", "apnet2-tiny"]


def test_librosa_without_a_place_for_its_code(monkeypatch):
    def import_module(name):
        raise RuntimeError("cannot cache function '__o_fold':\nno locator available")

    monkeypatch.setattr(inputs.importlib, "import_module", import_module)
    with pytest.raises(MissingPackageError, match="librosa cannot be imported .* no locator .*; set HOME to a folder"):
        inputs.optional_package("librosa.filters")
