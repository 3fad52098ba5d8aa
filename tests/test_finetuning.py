"""The recipes that fine-tune on an acoustic model's mels, from LJSpeech and two trained models to one that speaks."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts
import soundfile as sf
import tiny
import torch
from acoustic_models import build
from lj_speech import TEXTS, make_ljspeech
from small_run import change_config

from apnet2_tts_plugin.config import PredictorConfig
from apnet2_tts_plugin.finetuning import recipe as finetuning
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights import checkpoints, convert

RECIPES = scripts.RECIPES / "ljspeech"
GLOW_TTS, TACOTRON2 = (RECIPES / f"apnet2_{name}" / "train_apnet2.py" for name in ("glow_tts", "tacotron2"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_ljspeech(tmp_path_factory.mktemp("corpus") / "LJSpeech-1.1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a small APNet2 with its discriminators, as a run leaves it."""
    schedule = dict(lr_gen=0.1, lr_scheduler_gen_params={"gamma": 0.5}, scheduler_after_epoch=True)
    sizes = dict(mpd_periods=[2], mrd_resolutions=[[512, 128, 512]])
    model = tiny.model(5, precision="fp16", steps_to_start_discriminator=4855, **schedule, **sizes)
    model.add_discriminators()
    folder = tmp_path_factory.mktemp("trained")
    torch.save({"model": model.state_dict(), "config": model.config.to_dict()}, folder / "best_model.pth")
    checkpoints.save_config(model.config, folder)
    return folder


@pytest.fixture
def given(glow_tts, trained, corpus, tmp_path):
    """Arguments with which the recipe for a Glow-TTS can work; the later of two equal ones is taken."""
    return [*arguments(corpus, tmp_path / "out"), "--tts_path", glow_tts, "--restore_path", trained]


def arguments(corpus, out) -> list:
    sizes = ["--eval_split_size", 1, "--batch_size", 2, "--num_loader_workers", 0]
    return ["--data_path", corpus, "--output_path", out, *sizes]


def finetune(recipe: Path, argv: list) -> None:
    """Run a recipe in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_log", "eval_log"):  # figures take longer than all the rest
            patch.setattr(Apnet2, name, lambda *args: None)
        runpy.run_path(str(recipe))["main"](list(map(str, argv)))


def launch(recipe: Path, argv: list) -> None:
    """Run a recipe in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, recipe, *argv]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=500)


def run_folder(out: Path) -> Path:
    (folder,) = out.glob("apnet2_*_ljspeech-*")
    return folder


def refusal(argv: list, recipe: Path = GLOW_TTS) -> str:
    return scripts.refusal(lambda argv: finetune(recipe, argv), *argv)


def check_run(out: Path, trained: Path, tmp_path: Path, n_steps: int) -> None:
    """The run in `out` has trained on all mels from the weights of `trained`, and its result speaks."""
    folder, features = run_folder(out), out / "teacher_forced"
    assert len(list((features / "mels").iterdir())) == len(TEXTS)
    start = checkpoints.read_tensors(folder / "checkpoint_0.pth")["model"]
    for name, tensor in checkpoints.read_tensors(trained / "best_model.pth")["model"].items():
        assert torch.equal(start[name], tensor), name
    config = json.loads((folder / "config.json").read_text())
    assert (config["lr_gen"], config["lr_disc"]) == (5e-5, 5e-5)
    assert (config["precision"], config["steps_to_start_discriminator"]) == ("bf16", 0)
    assert not config["scheduler_after_epoch"] and config["lr_scheduler_gen_params"]["gamma"] == 0.999 ** (1 / 809)
    assert (config["data_path"], config["feature_path"]) == (str(features / "wavs"), str(features / "mels"))
    convert.export(folder / f"checkpoint_{n_steps}.pth", tmp_path / "exported")
    model = load_model(tmp_path / "exported")
    moved = [not torch.equal(start[f"generator.{name}"], new) for name, new in model.generator.state_dict().items()]
    assert all(moved)
    mel = np.load(features / "mels" / "LJ0.npy")
    waveform = model.inference(torch.from_numpy(mel)[None])
    assert waveform.shape == (1, 1, (mel.shape[1] - 1) * 256) and waveform.isfinite().all()
    assert waveform.numel() <= sf.info(features / "wavs" / "LJ0.wav").frames < waveform.numel() + 256


def test_fine_tuning_on_glow_tts(given, trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    finetune(GLOW_TTS, [*given, "--extraction_batch_size", 3, "--steps", 3])
    check_run(out, trained, tmp_path, n_steps=4)  # in epochs of two steps

    # going on needs neither the acoustic model nor LJSpeech
    monkeypatch.setattr(finetuning, "load_acoustic_model", None)
    change_config(run_folder(out), epochs=3)
    finetune(GLOW_TTS, ["--continue_path", run_folder(out)])
    assert (run_folder(out) / "checkpoint_6.pth").is_file()


def test_fine_tuning_a_phase_that_starts_from_the_pitch(given, tmp_path):
    sizes = PredictorConfig(channels=16, hidden_channels=32, blocks=1, response_norm="none")
    model = tiny.model(phase_start="pitch", pitch=sizes, consistency_iterations=1)
    checkpoints.save_config(model.config, start := tmp_path / "start")
    checkpoints.save_weights(model.generator, start)
    finetune(GLOW_TTS, [*given, "--restore_path", start, "--steps", 2])
    folder = run_folder(tmp_path / "out")
    checkpoint = checkpoints.read_tensors(folder / "checkpoint_2.pth")
    assert checkpoint["config"]["phase_start"] == "pitch" and checkpoint["config"]["consistency_iterations"] == 1
    assert not any(
        torch.equal(checkpoint["model"][f"generator.{name}"], old) for name, old in model.generator.state_dict().items()
    )


@pytest.mark.slow
def test_fine_tuning_on_tacotron2(given, trained, tmp_path):
    tacotron2 = build("tacotron2_ddc", tmp_path / "tacotron2")
    settings = ["--tts_path", tacotron2, "--restore_path", trained / "best_model.pth", "--steps", 2]
    finetune(TACOTRON2, [*given, *settings])
    check_run(tmp_path / "out", trained, tmp_path, n_steps=2)


@pytest.mark.slow
def test_two_processes_share_the_extraction(given, trained, tmp_path):
    launch(GLOW_TTS, [*given, "--batch_size", 1, "--steps", 2])
    check_run(tmp_path / "out", trained, tmp_path, n_steps=2)


@pytest.mark.slow
def test_one_of_two_processes_has_nothing_to_write(given, corpus, tmp_path):
    """It is done long before the other makes the folder."""
    bad = shutil.copytree(corpus, tmp_path / "LJSpeech-1.1")
    for name in ("LJ0", "LJ2"):
        (bad / "wavs" / f"{name}.wav").write_bytes(b"no sound")
    launch(GLOW_TTS, [*given, "--data_path", bad, "--batch_size", 1, "--steps", 2])
    mels = tmp_path / "out" / "teacher_forced" / "mels"
    assert sorted(path.name for path in mels.iterdir()) == ["LJ1.npy", "LJ3.npy"]


@pytest.mark.parametrize("recipe", [GLOW_TTS, TACOTRON2])
def test_defaults(recipe):
    args = runpy.run_path(str(recipe))["parse_args"]([])
    assert args.data_path == str(RECIPES / "LJSpeech-1.1" / "wavs") and args.output_path == str(recipe.parent)
    assert (args.steps, args.lr, args.batch_size, args.eval_split_size) == (100_000, 5e-5, 16, 50)


def test_the_recordings_or_the_folder_that_they_are_in(corpus):
    samples = finetuning.ljspeech_samples(str(corpus / "wavs"))
    assert samples == finetuning.ljspeech_samples(str(corpus)) and len(samples) == len(TEXTS)


def test_a_model_of_another_kind_is_refused(given, tmp_path):
    assert "glow-tts: a glow_tts, this recipe is for tacotron2 and tacotron" in refusal(given, TACOTRON2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--restore_path="], "--restore_path: none, expected the weights of a trained APNet2, or their folder"),
        (
            ["--restore_path=nowhere"],
            "--restore_path: nowhere is not there, expected the weights of a trained APNet2",
        ),
        (["--tts_path="], "--tts_path: none, expected the folder of a trained acoustic model"),
        (["--eval_split_size=4"], "--eval_split_size: 4, expected fewer than the 4 recordings"),
        (["--eval_split_size=0"], "--eval_split_size: 0, expected at least 1"),
        (["--batch_size=0"], "--batch_size: 0, expected at least 1"),
        (["--extraction_batch_size=-1"], "--extraction_batch_size: -1, expected at least 1"),
        (["--num_loader_workers=-1"], "num_loader_workers: -1, expected 0 or more"),
        (["--lr=-1"], "lr_gen: -1.0, expected a number above 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(settings, message, given, tmp_path):
    assert refusal([*given, *settings]) == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_weights_without_their_configuration_are_refused(given, trained, tmp_path):
    alone = shutil.copy(trained / "best_model.pth", tmp_path / "g_01000000")
    error = refusal([*given, "--restore_path", alone])
    assert "config.json: no such file, expected the configuration of the weights; `apnet2 import`" in error


def test_weights_that_do_not_fit_are_refused_before_mels_are_made(given, trained, tmp_path):
    vocoder = shutil.copytree(trained, tmp_path / "vocoder")
    change_config(vocoder, mpd_channels=[4, 16])
    assert "best_model.pth: the weights do not fit" in refusal([*given, "--restore_path", vocoder])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "No such file"),
        (b"LJ0|only two columns\n", "3 pipe-delimited columns"),
        (b"", "No training samples found"),
        (b"LJ0|\xff|\xff\n", "can't decode byte"),
    ],
)
def test_other_folders_than_ljspeech_are_refused(metadata, reason, given, tmp_path):
    if metadata is not None:
        (tmp_path / "metadata.csv").write_bytes(metadata)
    error = refusal([*given, "--data_path", tmp_path])
    assert f"{tmp_path}: expected LJSpeech as it is" in error and reason in error


def test_a_vocoder_that_cannot_follow_leaves_no_note(given, tmp_path, monkeypatch):
    monkeypatch.setenv("APNET2_STRICT", "1")
    assert "APNET2_STRICT allows no approximation" in refusal(given)
    assert not (tmp_path / "out").exists()


def test_no_recording_that_can_be_used(given, corpus, tmp_path):
    bad = shutil.copytree(corpus, tmp_path / "LJSpeech-1.1")
    for path in (bad / "wavs").iterdir():
        path.write_bytes(b"no sound")
    error = refusal([*given, "--data_path", bad])
    assert error == f"error: {bad}: none of 4 samples can be used, for the reasons in the log"


def test_a_process_without_recordings_of_its_own_goes_on(given, trained, corpus, tmp_path, monkeypatch):
    bad = shutil.copytree(corpus, tmp_path / "LJSpeech-1.1")
    (bad / "wavs" / "LJ3.wav").write_bytes(b"no sound")
    monkeypatch.setenv("WORLD_SIZE", "4")
    argv = [*given, "--data_path", bad, "--rank", 3]
    args = finetuning.parse_args("", GLOW_TTS.parent, list(map(str, argv)))
    samples = finetuning.ljspeech_samples(args.data_path)
    finetuning.extract_mels(args, ("glow_tts",), finetuning.vocoder_config(str(trained)), samples)
    assert not (tmp_path / "out" / "teacher_forced" / "wavs").exists()
