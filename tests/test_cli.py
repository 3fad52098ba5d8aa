"""The `apnet2` command but for `vocode`: models that come and go, arguments, help, and one line for each mistake."""

import json
import logging
import shlex
from pathlib import Path

import command_line
import pytest
import tiny
import torch
from command_line import a_file, a_wav, an_npy, cut_in_half, files, holds, is_done, one_line, vocoded, with_comments
from safetensors.torch import load_file
from weight_files import save_checkpoint

from apnet2_tts_plugin import __version__, errors, loader
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.checkpoints import save_config, save_weights

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def setting(section, field, value):
    def write(folder):
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        settings[section][field] = value
        path.write_text(json.dumps(settings))

    return write


BAD_MODELS = {
    "cut": (lambda folder: cut_in_half(folder / "model.safetensors"), "model.safetensors: not a readable file of"),
    "sizes": (setting("phase", "channels", 24), "is (16, 80, 7), expected (24, 80, 7)"),
    "no weights": (no_weights, "expected model.safetensors, best_model.pth or one other .pth file"),
    "nonsense": (setting("audio", "hop_length", 2048), "config.json: not a usable configuration (audio.win_length: "),
    "type": (setting("audio", "sample_rate", "fast"), "config.json: not a usable configuration"),
    "null": (setting("audio", "sample_rate", None), "config.json: not a usable configuration"),
    "huge": (setting("phase", "channels", 10**12), "config.json: no model can be made of it"),
    "config": (lambda folder: a_file(folder / "config.json"), "holds no APNet2 model"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(case, apnet2, tmp_path):
    spoil, reason = BAD_MODELS[case]
    folder = tiny.save(tmp_path / "spoiled")
    spoil(folder)
    for command in (("vocode", an_npy(), "out.wav", "--model", folder), ("install", folder)):
        status, _, err = apnet2(*command)
        assert status == 1 and reason in one_line(err)
    assert not Path("out.wav").exists() and store.names() == {}


def test_install_list_remove(model, apnet2, tmp_path):
    mine = tiny.save(tmp_path / "mine", loudness=1.0)
    assert apnet2("list")[1].split() == f"apnet2 bundled mel of 80 22050 Hz 0.8 MB {model}".split()
    status, out, err = apnet2("install", mine, "--name", "mine")
    assert (status, err) == (0, "")
    assert " --model_name tts_models/en/heart/fast_pitch --vocoder_name mine --out_path OUT.wav\n" in out
    bundled, user = apnet2("list")[1].splitlines()
    assert bundled.split()[:2] == ["apnet2", "bundled"]
    assert user.split()[:2] == ["mine", "user"] and user.endswith(str(store.resolve("mine")))
    assert apnet2("remove", "mine") == (0, "removed mine\n", "")
    assert len(apnet2("list")[1].splitlines()) == 1
    assert apnet2("install", mine)[0] == 0  # as `apnet2`, the default of `vocode` too
    assert apnet2("vocode", an_npy(), "out.wav")[0] == 0
    assert holds("out.wav", vocoded(1.0))


def test_export(apnet2, tmp_path):
    paths = {name: f"/home/somebody/{name}" for name in ("output_path", "data_path", "feature_path")}
    checkpoint, out = save_checkpoint(tiny.model(**paths), tmp_path / "best_model.pth"), tmp_path / "out"
    status, said, wrong = apnet2("export", checkpoint, "--out", out, "--half")
    assert (status, wrong) == (0, "") and f"wrote {out / 'model.safetensors'}" in said
    assert files(out) == ["config.json", "model.safetensors"]
    assert "somebody" not in (out / "config.json").read_text()
    assert all(tensor.dtype == torch.float16 for tensor in load_file(out / "model.safetensors").values())
    assert apnet2("vocode", a_wav(), "out.wav", "--model", out)[0] == 0


def test_list_tells_latents_from_mels(model, apnet2, tmp_path):
    latent = tiny.model(input_features="latent", speaker_channels=8)
    save_config(latent.config, tmp_path / "vits")
    save_weights(latent.generator, tmp_path / "vits")
    status, out, _ = apnet2("install", tmp_path / "vits", "--name", "vits_de")
    assert status == 0
    assert " --model_path VITS/model.pth --config_path VITS/config.json --vocoder_name vits_de --out_path" in out
    mel, latent = apnet2("list")[1].splitlines()
    assert "  mel of 80  " in mel and "  latent of 200  " in latent


def test_export_keeps_the_run(apnet2, tmp_path):
    """A folder with anything in it is refused, above all the run itself, which could not go on."""
    save_config(tiny.config(output_path="/home/somebody"), tmp_path)
    checkpoint = save_checkpoint(tiny.model(), tmp_path / "best_model.pth")
    before = (tmp_path / "config.json").read_bytes()
    status, out, err = apnet2("export", checkpoint, "--out", tmp_path)
    assert (status, out) == (1, "") and "not empty" in one_line(err) and "name a new folder" in err
    assert (tmp_path / "config.json").read_bytes() == before and not (tmp_path / "model.safetensors").exists()


def test_comments_in_the_configuration(apnet2, tmp_path):
    """coqui-tts reads them, and so does all that this command does with a model."""
    folder = with_comments(tiny.save(tmp_path / "commented"))
    assert is_done(apnet2("vocode", an_npy(), "out.wav", "--model", folder))
    assert holds("out.wav", vocoded())
    assert apnet2("install", folder, "--name", "commented")[0] == 0
    assert "mel of 80" in apnet2("list")[1]
    a_file(folder / "config.json", b'{"model": "apnet2" // }')
    assert "holds no APNet2 model" in one_line(apnet2("vocode", "in.npy", "out.wav", "--model", folder)[2])


def test_folder_named_like_a_model(model, apnet2):
    """`install apnet2` means the folder, whatever is installed under that name."""
    no_weights(tiny.save(Path("apnet2")))
    status, _, err = apnet2("install", "apnet2", "--name", "mine")
    assert status == 1 and "one other .pth" in one_line(err)


@pytest.mark.parametrize("spoil", [no_weights, *(setting("audio", "sample_rate", rate) for rate in ("fast", None))])
def test_list_says_what_is_broken(spoil, model, apnet2):
    spoil(model)
    status, out, _ = apnet2("list")
    assert status == 0 and "broken: " in out and len(out.splitlines()) == 1


def test_list_knows_the_defaults(model, apnet2):
    """What is not in a configuration, it need not import the class of configurations for."""
    for settings in ({}, {"input_features": "latent"}, {"input_features": "latent", "speaker_channels": 256}):
        (model / "config.json").write_text(json.dumps({"model": "apnet2"} | settings))
        config = loader.read_config(model / "config.json")
        expected = f"{config.input_features} of {config.n_inputs} {config.audio.sample_rate} Hz"
        assert apnet2("list")[1].split()[2:7] == expected.split()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("install", "nowhere"), "nowhere: no such folder or file"),
        (("install", "MODEL", "--name", "a/b"), "'a/b' is no name"),
        (("install", "MODEL", "--name", "hifigan_v2"), "choose another name"),
        (("remove", "nothing"), "no APNet2 model is called 'nothing'; known: apnet2"),
        (("remove", "apnet2"), "ships with"),
        (("import", "nowhere", "--out", "x"), "nowhere: no such file"),
        (("export", "other.pth", "--out", "x"), "other.pth: no configuration of APNet2 in it"),
    ],
)
def test_mistakes_with_models(command, reason, model, apnet2):
    torch.save({"model": {}, "config": {"model": "hifigan"}}, "other.pth")
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
    assert is_done(apnet2("vocode", an_npy(), "out.wav", "--model", "new/model"))
    assert holds("out.wav", vocoded())
    status, _, err = apnet2("import", "g_00000007", "--out", a_file("file"))
    assert status == 1 and "file: File exists" in one_line(err)


def test_printed_commands_are_for_the_shell(apnet2):
    torch.save(tiny.official_generator(), "g_00000007")
    torch.save(tiny.official_discriminators(), "do_00000007")
    arguments = "g_00000007", "--discriminators", "do_00000007", "--out", "my model's"
    commands = [shlex.split(line.partition(":")[2]) for line in apnet2("import", *arguments)[1].splitlines()[3:]]
    assert [command[:2] for command in commands] == [["apnet2", "vocode"], ["apnet2", "install"], ["python", "-m"]]
    assert commands[0][-2:] == ["--model", "my model's"]
    assert commands[2][4:7:2] == ["my model's/config.json", "my model's/checkpoint_7.pth"]
    assert apnet2(*commands[1][1:])[0] == 0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((), "apnet2: the following arguments are required: COMMAND"),
        (("speak",), "invalid choice: 'speak'"),
        (("vocode", "in.wav"), "apnet2 vocode: expected IN and OUT"),
        (("vocode", "in.wav", "out/", "--format", "docx"), "argument --format: 'docx', expected one of .wav, .flac, "),
        (("mel",), "apnet2 mel: the following arguments are required: IN ... OUT"),
        (("vocode", "in.wav", "out.wav", "--loud"), "unrecognized arguments: --loud"),
        (("import", "g"), "apnet2 import: the following arguments are required: --out"),
    ],
)
def test_wrong_arguments(command, reason, apnet2):
    status, out, err = apnet2(*command)
    assert (status, out) == (2, "")
    assert reason in one_line(err) and "--help" in err


@pytest.mark.parametrize(
    "command", ["", "vocode", "mel", "evaluate", "pair", "import", "export", "install", "list", "remove"]
)
def test_help(command, apnet2):
    status, out, _ = apnet2(*command.split(), "--help")
    assert status == 0
    assert out.startswith(f"usage: apnet2 {command}".rstrip())
    assert max(map(len, out.splitlines())) <= 80


def test_version(apnet2):
    assert apnet2("--version") == (0, f"apnet2-tts-plugin {__version__}\n", "")


OURS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.Apnet2Error)]


@pytest.mark.parametrize("error", OURS)
def test_each_error_of_ours_is_one_line(error, apnet2, monkeypatch):
    def model_table():
        raise error("what and why")

    monkeypatch.setattr(store, "model_table", model_table)
    assert apnet2("list") == (1, "", "apnet2: what and why\n")


def test_our_own_mistakes_are_not_hidden(apnet2, monkeypatch):
    monkeypatch.setattr(store, "model_table", lambda: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        apnet2("list")


def test_only_our_warnings_are_shown(apnet2, monkeypatch):
    """A library's logger has no handler here, and Python would print its message all the same."""

    def model_table():
        logging.getLogger("library").warning("theirs")
        logging.getLogger("apnet2_tts_plugin.config").warning("ours")
        return []

    monkeypatch.setattr(store, "model_table", model_table)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    assert apnet2("list") == (0, "", "apnet2: ours\n")
