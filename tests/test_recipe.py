"""How recipes end: at the mistakes of users and machines in one line, at ours with a traceback."""

import pytest
import scripts
from small_run import make_corpus

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.errors import DataError

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
