"""The commands `apnet2` and `tts` in the tests' own process, and files for the first in an empty current folder."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch

from apnet2_tts_plugin import cli
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.find import find_weights

SAMPLE = Path(__file__).parents[1] / "recipes" / "ljspeech" / "sample.flac"  # a recording
RATE = 22050
HOP = 256
SILENCE = 10000  # samples that coqui appends to each sentence


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current folder, a data folder and a folder of bundled models for each test."""
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def model(tmp_path):
    """The tiny model as the bundled `apnet2`."""
    return tiny.save(tmp_path / "bundled" / "apnet2")


@pytest.fixture
def apnet2(capsys):
    """Run the command in this process: its status and what it wrote to stdout and stderr."""

    def run(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def tone(n_samples: int, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 220 * np.arange(n_samples) / rate)


def random_mel(n_frames: int = 20) -> np.ndarray:
    return np.random.default_rng(0).normal(-5, 2, (80, n_frames)).astype(np.float32)


def files(folder: Path) -> list[str]:
    """All files below `folder`, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def one_line(err: str) -> str:
    assert err.startswith("apnet2") and err.endswith("\n") and err.count("\n") == 1, err
    return err


def is_done(result: tuple, n_files: int = 1, verb: str = "vocoded") -> bool:
    """Whether a command that turns files into files did so many, and said no more than that."""
    status, out, err = result
    files = "1 file" if n_files == 1 else f"{n_files} files"
    runtime = r", runtime (packed|eager)" if verb == "vocoded" else ""
    pattern = rf"apnet2: {verb} {files}, [\d.]+ s of audio in [\d.]+ s, [\d.]+ times real time{runtime}\n"
    return (status, out) == (0, "") and re.fullmatch(pattern, err) is not None


def vocoded(loudness: float = 0.0) -> torch.Tensor:
    """What the tiny model makes of `random_mel()`."""
    return tiny.generator(loudness).inference(torch.from_numpy(random_mel())[None])


def holds(path: str, waveform: torch.Tensor) -> bool:
    """Whether a WAV file has these samples in 16 bit, but for rounding, and not silence."""
    written, expected = soundfile.read(path, dtype="int16")[0], waveform.flatten().clamp(-1, 1).numpy() * 32767
    return len(written) == len(expected) and np.abs(written - expected).max() < 2 and np.abs(written).max() > 100


def a_wav(samples=None, rate=RATE, name="in.wav"):
    soundfile.write(name, tone(5000) if samples is None else samples, rate, subtype="FLOAT")
    return name


def an_npy(array=None, name="in.npy"):
    np.save(name, random_mel() if array is None else array, allow_pickle=True)
    return name


def a_pt(content):
    torch.save(content, "in.pt")
    return "in.pt"


def a_file(name, content=b"what is this"):
    Path(name).write_bytes(content)
    return name


def cut_in_half(name):
    path = Path(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return name


def with_comments(folder: Path) -> Path:
    """`folder`, its configuration with comments in it, and text that only looks like one."""
    path = folder / "config.json"
    text = path.read_text().replace('"run_description": "', '"run_description": "https://a \\" ', 1)
    path.write_text(text.replace("{", "{ // the settings", 1).replace('"audio":', '// in "Hz"\n"audio":', 1))
    return folder


def tts(*arguments) -> int | str | None:
    """Run the `tts` command in this process; its exit status, or the line it ends with."""
    from TTS.bin.synthesize import main

    logger = logging.getLogger("TTS")
    handlers, level = list(logger.handlers), logger.level
    try:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
    finally:
        logger.handlers = handlers  # the command's own writes to a stream that ends with the test
        logger.setLevel(level)
    return exit.value.code


def by_path(folder: Path) -> tuple:
    return "--model_path", folder / "model_file.pth", "--config_path", folder / "config.json"


def vocoder_by_path(folder: Path) -> tuple:
    return "--vocoder_path", find_weights(folder), "--vocoder_config_path", folder / "config.json"


def tts_api(acoustic: Path, **vocoder):
    """The Python class with an acoustic model in a folder."""
    from TTS.api import TTS

    return TTS(model_path=acoustic / "model_file.pth", config_path=acoustic / "config.json", **vocoder)


def check_wav(path: Path, samples: int) -> None:
    """`path` has so many samples of sound at 22.05 kHz before coqui's silence."""
    wav, sample_rate = soundfile.read(path)
    assert sample_rate == RATE
    assert len(wav) == samples + SILENCE
    assert np.abs(wav[:samples]).max() > 0.1
    assert not wav[samples:].any()
