"""How recipes end: at the mistakes of users and machines in one line, at ours with a traceback."""

import pytest
import scripts
import tiny
import torch
from small_run import change_config, make_corpus

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.loader import read_config
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.checkpoints import read_tensors

LJSPEECH = [f"ljspeech/apnet2{name}" for name in ("", "_glow_tts", "_tacotron2", "_vits")]


def main_of(name, patch):
    return scripts.load(scripts.RECIPES / name / "train_apnet2.py", patch).main


@pytest.fixture(params=["flite/apnet2", "ljspeech/apnet2"])
def failing(request, tmp_path, monkeypatch):
    """Runs a recipe whose Trainer cannot be made, for the reason given."""
    main, corpus = main_of(request.param, monkeypatch), make_corpus(tmp_path / "wavs", 3)

    def run(error):
        def broken(*args, **kwargs):
            raise error

        monkeypatch.setattr(recipe, "Trainer", broken)
        main(["--data_path", str(corpus), "--output_path", str(tmp_path / "out"), "--eval_split_size", "1"])

    return run


@pytest.mark.parametrize("error", [DataError("a.wav: no sound"), FileNotFoundError(2, "No such file", "a.wav")])
def test_mistakes_of_users_and_machines_are_a_line(failing, error):
    assert scripts.refusal(lambda argv: failing(error)) == f"error: {error}"


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_our_own_mistakes_have_a_traceback(failing, error):
    with pytest.raises(type(error)) as caught:
        failing(error)
    assert caught.value is error


@pytest.mark.parametrize("name", LJSPEECH)
def test_processes_that_cannot_train_together_are_told_in_a_line(name, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    error = scripts.refusal(main_of(name, monkeypatch))
    assert error == "error: local rank 2: there are 2 GPUs, expected no more processes than those"


def test_ctrl_c_is_a_line(capsys):
    with pytest.raises(SystemExit) as end, recipe.mistakes_in_one_line("recipes/README.md"):
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted; the same command goes on\n"


@pytest.fixture
def named(tmp_path, monkeypatch):
    """The tiny model, trained without discriminators, as the bundled `apnet2`; and a folder of that name."""
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "home"))
    (tmp_path / "here" / "apnet2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    folder = tiny.save(tmp_path / "bundled" / "apnet2")
    change_config(folder, steps_to_start_discriminator=10**9, mpd_periods=[2])
    return folder


def arguments(tmp_path, *others) -> list[str]:
    corpus = make_corpus(tmp_path / "wavs", 3)
    given = "--eval_split_size 1 --batch_size 1 --segments_per_file 1 --num_loader_workers 0".split()
    return ["--data_path", str(corpus), "--output_path", str(tmp_path / "out"), *given, *others]


def test_fine_tuning_a_model_that_has_a_name(named, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Apnet2, "eval_log", lambda *args: None)
    monkeypatch.setattr(Apnet2, "train_log", lambda *args: None)
    main = main_of("voice/apnet2", monkeypatch)
    main(arguments(tmp_path, "--steps", "2"))
    assert "Restored from apnet2: generator of model.safetensors; the discriminators start anew" in caplog.messages
    (run,) = (tmp_path / "out").iterdir()
    start, end = (read_tensors(run / f"checkpoint_{n}.pth")["model"] for n in (0, 2))
    for name, tensor in tiny.generator().state_dict().items():
        assert torch.equal(start[f"generator.{name}"], tensor) and not torch.equal(end[f"generator.{name}"], tensor)
    assert all(torch.equal(start[name], end[name]) for name in start if name.startswith("mpd."))  # not trained
    config = read_config(run / "config.json")
    assert (config.mpd_periods, config.phase.channels) == ([2], 16)
    main(["--continue_path", str(run)])  # whatever a new run would start from


def test_a_model_of_another_size_leaves_no_folder(named, tmp_path, monkeypatch):
    main = main_of("ljspeech/apnet2", monkeypatch)
    error = scripts.refusal(main, *arguments(tmp_path, "--restore_path", "apnet2"))
    assert error.startswith(f"error: {named / 'model.safetensors'}: the weights do not fit: ")
    assert not (tmp_path / "out").exists()
    error = scripts.refusal(main, *arguments(tmp_path, "--restore_path", "apnet3"))
    assert error == "error: apnet3: no such file or folder, expected weights"
    assert not (tmp_path / "out").exists()
