"""The `apnet2` command but for `vocode`: models that come and go, arguments, help, and one line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import command_line
import numpy as np
import pytest
import soundfile
import tiny
import torch
from command_line import RATE, a_file, an_npy, as_16_bit, cut_in_half, files, one_line, random_mel, tone
from safetensors.torch import load_file

from apnet2_tts_plugin import __version__, store
from apnet2_tts_plugin.model import Apnet2

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures


def broken_weights(folder):
    cut_in_half(folder / "model.safetensors")


def other_weights(folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["phase"]["channels"] = 24
    path.write_text(json.dumps(settings))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def nonsense(folder, field="hop_length", value=2048):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["audio"][field] = value
    path.write_text(json.dumps(settings))


BAD_MODELS = {
    "cut": (broken_weights, "model.safetensors: not a readable file of weights"),
    "sizes": (other_weights, "is (16, 80, 7), expected (24, 80, 7)"),
    "no weights": (no_weights, "expected model.safetensors or exactly one .pth file"),
    "nonsense": (nonsense, "config.json: not a usable configuration (audio.win_length: 1024, expected more than"),
    "type": (lambda folder: nonsense(folder, "sample_rate", "fast"), "config.json: not a usable configuration"),
    "null": (lambda folder: nonsense(folder, "sample_rate", None), "config.json: not a usable configuration"),
    "config": (lambda folder: a_file(folder / "config.json"), "holds no APNet2 model"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(case, apnet2, tmp_path):
    spoil, reason = BAD_MODELS[case]
    folder = tiny.save(tmp_path / "spoiled")
    spoil(folder)
    an_npy(random_mel())
    for command in (("vocode", "in.npy", "out.wav", "--model", folder), ("install", folder)):
        status, _, err = apnet2(*command)
        assert status == 1 and reason in one_line(err)
    assert not Path("out.wav").exists() and store.names() == {}


def test_install_list_remove(model, apnet2, tmp_path):
    tiny.save(tmp_path / "mine")
    assert apnet2("list")[1].split() == ["apnet2", "bundled", "0.8", "MB", "22050", "Hz", str(model)]
    status, out, err = apnet2("install", tmp_path / "mine", "--name", "mine")
    assert (status, err) == (0, "")
    assert "--vocoder_name mine" in out
    status, out, _ = apnet2("list")
    bundled, mine = out.splitlines()
    assert bundled.split()[:2] == ["apnet2", "bundled"]
    assert mine.split()[:2] == ["mine", "user"] and mine.endswith(str(store.resolve("mine")))
    assert apnet2("remove", "mine") == (0, "removed mine\n", "")
    assert len(apnet2("list")[1].splitlines()) == 1


def test_installed_model_is_the_default_one(model, apnet2, tmp_path):
    tiny.save(tmp_path / "mine", loudness=1.0)
    an_npy(random_mel())
    apnet2("vocode", "in.npy", "before.wav")
    assert apnet2("install", tmp_path / "mine")[0] == 0
    apnet2("vocode", "in.npy", "after.wav")
    assert Path("before.wav").read_bytes() != Path("after.wav").read_bytes()


def test_export(apnet2, tmp_path):
    checkpoint, out = tmp_path / "best_model.pth", tmp_path / "out"
    paths = {name: f"/home/somebody/{name}" for name in ("output_path", "data_path", "feature_path")}
    trained = Apnet2(tiny.config(**paths))
    torch.save({"model": trained.state_dict(), "config": trained.config.to_dict(), "step": 3}, checkpoint)
    status, said, wrong = apnet2("export", checkpoint, "--out", out, "--half")
    assert (status, wrong) == (0, "") and f"wrote {out / 'model.safetensors'}" in said
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert "somebody" not in (out / "config.json").read_text()
    state = load_file(out / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    soundfile.write("in.wav", tone(4000), RATE)
    assert apnet2("vocode", "in.wav", "out.wav", "--model", out)[0] == 0


def test_export_of_something_else(apnet2, tmp_path):
    torch.save({"model": {}, "config": {"model": "hifigan"}}, tmp_path / "other.pth")
    status, _, wrong = apnet2("export", tmp_path / "other.pth", "--out", tmp_path / "out")
    assert status == 1 and "other.pth: no configuration of APNet2 in it" in wrong and wrong.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folder_named_like_a_model(model, apnet2):
    """`install apnet2` means the folder, whatever is installed under that name."""
    tiny.save(Path("apnet2"))
    no_weights(Path("apnet2"))
    status, _, err = apnet2("install", "apnet2", "--name", "mine")
    assert status == 1 and "exactly one .pth" in one_line(err)


def test_list_says_what_is_broken(model, apnet2):
    no_weights(model)
    status, out, _ = apnet2("list")
    assert status == 0 and "broken: " in out and len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("install", "nowhere"), "no APNet2 model is called"),
        (("install", "MODEL", "--name", "a/b"), "'a/b' is no name"),
        (("install", "MODEL", "--name", "hifigan_v2"), "choose another name"),
        (("remove", "nothing"), "no APNet2 model is called 'nothing'; known: apnet2"),
        (("remove", "apnet2"), "ships with"),
        (("import", "nowhere", "--out", "x"), "nowhere: no such file"),
    ],
)
def test_mistakes_with_models(command, reason, model, apnet2):
    status, _, err = apnet2(*[model if argument == "MODEL" else argument for argument in command])
    assert status == 1 and reason in one_line(err)
    assert list(store.names()) == ["apnet2"]
    assert not Path("x").exists()


def test_import(apnet2, workplace):
    torch.save(tiny.official_generator(), "g_00000007")
    status, out, err = apnet2("import", "g_00000007", "--out", "new/model")
    assert (status, err) == (0, "")
    assert out.splitlines()[:2] == ["wrote new/model/config.json", "wrote new/model/model.safetensors"]
    assert "apnet2 vocode IN OUT.wav --model new/model" in out
    assert files(workplace / "new") == ["model/config.json", "model/model.safetensors"]
    an_npy(random_mel())
    assert apnet2("vocode", "in.npy", "out.wav", "--model", "new/model") == (0, "", "")
    expected = as_16_bit(tiny.generator().inference(torch.from_numpy(random_mel())[None])[0])
    assert np.abs(soundfile.read("out.wav", dtype="int16")[0] - expected).max() <= 1


def test_import_to_a_file(apnet2):
    torch.save(tiny.official_generator(), "g")
    a_file("file")
    status, _, err = apnet2("import", "g", "--out", "file")
    assert status == 1 and "file: File exists" in one_line(err)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((), "apnet2: the following arguments are required: COMMAND"),
        (("speak",), "invalid choice: 'speak'"),
        (("vocode", "in.wav"), "apnet2 vocode: the following arguments are required: OUT"),
        (("vocode", "in.wav", "out.wav", "--loud"), "unrecognized arguments: --loud"),
        (("import", "g"), "apnet2 import: the following arguments are required: --out"),
    ],
)
def test_wrong_arguments(command, reason, apnet2):
    status, out, err = apnet2(*command)
    assert (status, out) == (2, "")
    assert reason in one_line(err) and "--help" in err


@pytest.mark.parametrize("command", [(), ("vocode",), ("import",), ("install",), ("list",), ("remove",)])
def test_help(command, apnet2):
    status, out, _ = apnet2(*command, "--help")
    assert status == 0
    assert out.startswith(" ".join(["usage: apnet2", *command]))
    assert max(map(len, out.splitlines())) <= 80


def test_version(apnet2):
    assert apnet2("--version") == (0, f"apnet2-tts-plugin {__version__}\n", "")


def test_our_own_mistakes_are_not_hidden(model, apnet2, monkeypatch):
    monkeypatch.setattr(store, "resolve", lambda name: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        apnet2("vocode", an_npy(random_mel()), "out.wav")


def test_help_does_not_wait_for_torch():
    code = """
import sys
from apnet2_tts_plugin import cli
try:
    cli.main(["--help"])
finally:
    assert not {"torch", "numpy", "TTS"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
