"""The recipes that fine-tune on an acoustic model's mels, from LJSpeech and two trained models to one that speaks."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from acoustic_models import build
from lj_speech import TEXTS, make_ljspeech
from small_run import SMALL

from apnet2_tts_plugin import checkpoints, extraction, finetuning, teacher_forcing
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.model import Apnet2

RECIPES = Path(__file__).parent.parent / "recipes" / "ljspeech"
GLOW_TTS = RECIPES / "apnet2_glow_tts" / "train_apnet2.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_ljspeech(tmp_path_factory.mktemp("corpus") / "LJSpeech-1.1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a small APNet2 with its discriminators, as a run leaves it."""
    torch.manual_seed(5)
    config = Apnet2Config(
        amplitude=PredictorConfig(**SMALL),
        phase=PredictorConfig(**SMALL),
        mpd_periods=[2],
        mpd_channels=[4, 8],
        mrd_resolutions=[[512, 128, 512]],
        mrd_channels=4,
        eval_metrics=[],
        num_eval_loader_workers=0,
        precision="fp16",
        steps_to_start_discriminator=4855,
        lr_gen=0.1,
        lr_scheduler_gen_params={"gamma": 0.5},
        scheduler_after_epoch=False,
    )
    model = Apnet2(config)
    model.add_discriminators()
    folder = tmp_path_factory.mktemp("trained")
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, folder / "best_model.pth")
    config.save_json(folder / "config.json")
    return folder


def arguments(corpus, out, *settings) -> list[str]:
    sizes = ["--eval_split_size", 1, "--batch_size", 2, "--num_loader_workers", 0]
    return [str(argument) for argument in ["--data_path", corpus, "--output_path", out, *sizes, *settings]]


def finetune(recipe: Path, *argv: str) -> None:
    """Run a recipe in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_log", "eval_log"):  # figures take longer than all the rest
            patch.setattr(Apnet2, name, lambda *args: None)
        runpy.run_path(str(recipe))["main"](list(argv))


def run_folder(out: Path) -> Path:
    (folder,) = out.glob("apnet2_*_ljspeech-*")
    return folder


def refusal(*argv: str, recipe: Path = GLOW_TTS) -> str:
    with pytest.raises(SystemExit) as caught:
        finetune(recipe, *argv)
    error, hint = caught.value.code.split("\n")
    assert error.startswith("error: ") and hint.startswith("recipes/ljspeech/README.md")
    return error


def check_run(out: Path, trained: Path, tmp_path: Path, n_steps: int) -> None:
    """The run in `out` has trained on all mels from the weights of `trained`, and its result speaks."""
    folder = run_folder(out)
    start = checkpoints.read_tensors(folder / "checkpoint_0.pth")["model"]
    for name, tensor in checkpoints.read_tensors(trained / "best_model.pth")["model"].items():
        assert torch.equal(start[name], tensor), name
    config = json.loads((folder / "config.json").read_text())
    assert (config["lr_gen"], config["lr_disc"]) == (5e-5, 5e-5)
    assert (config["precision"], config["steps_to_start_discriminator"]) == ("bf16", 0)
    assert config["scheduler_after_epoch"] and config["lr_scheduler_gen_params"] == {"gamma": 0.999}
    assert config["data_path"] == str(out / "teacher_forced" / "wavs")
    assert config["feature_path"] == str(out / "teacher_forced" / "mels")
    checkpoints.export(folder / f"checkpoint_{n_steps}.pth", tmp_path / "exported")
    model = load_model(tmp_path / "exported")
    moved = [not torch.equal(start[f"generator.{name}"], new) for name, new in model.generator.state_dict().items()]
    assert all(moved)
    mel = np.load(out / "teacher_forced" / "mels" / "LJ0.npy")
    waveform = model.inference(torch.from_numpy(mel)[None])
    assert waveform.shape == (1, 1, (mel.shape[1] - 1) * 256) and waveform.isfinite().all()
    assert waveform.numel() <= sf.info(out / "teacher_forced" / "wavs" / "LJ0.wav").frames < waveform.numel() + 256


def test_fine_tuning_on_glow_tts(glow_tts, trained, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    settings = ["--tts_path", glow_tts, "--restore_path", trained, "--extraction_batch_size", 3, "--steps", 3]
    finetune(GLOW_TTS, *arguments(corpus, out, *settings))
    assert len(list((out / "teacher_forced" / "mels").iterdir())) == len(TEXTS)
    check_run(out, trained, tmp_path, n_steps=4)  # in epochs of two steps

    # going on needs neither the acoustic model nor LJSpeech
    monkeypatch.setattr(teacher_forcing, "load_acoustic_model", None)
    config_path = run_folder(out) / "config.json"
    config = json.loads(config_path.read_text()) | {"epochs": 3}
    config_path.write_text(json.dumps(config))
    finetune(GLOW_TTS, "--continue_path", str(run_folder(out)))
    assert (run_folder(out) / "checkpoint_6.pth").is_file()


@pytest.mark.parametrize("name", ["apnet2_glow_tts", "apnet2_tacotron2"])
def test_defaults(name):
    args = runpy.run_path(str(RECIPES / name / "train_apnet2.py"))["parse_args"]([])
    assert args.data_path == str(RECIPES / "LJSpeech-1.1") and args.output_path == str(RECIPES / name)
    assert (args.steps, args.lr, args.batch_size, args.eval_split_size) == (100_000, 5e-5, 16, 50)


def test_missing_arguments_are_named(glow_tts, trained, corpus, tmp_path):
    given = arguments(corpus, tmp_path / "out")
    assert "--restore_path: none, expected the weights of a trained APNet2" in refusal(*given)
    assert "--restore_path: nowhere is not there" in refusal(*given, "--restore_path", "nowhere")
    restore = ["--restore_path", str(trained / "best_model.pth")]
    assert "--tts_path: none, expected the folder of a trained acoustic model" in refusal(*given, *restore)
    acoustic = ["--tts_path", str(glow_tts)]
    assert "glow-tts: a glow_tts, this recipe is for tacotron2 and tacotron" in refusal(
        *given, *restore, *acoustic, recipe=RECIPES / "apnet2_tacotron2" / "train_apnet2.py"
    )
    alone = shutil.copy(trained / "best_model.pth", tmp_path / "g_01000000")
    assert "config.json: no such file, expected the configuration of the weights; `apnet2 import`" in refusal(
        *given, *acoustic, "--restore_path", str(alone)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "No such file"),
        ("LJ0|only two columns\n", "3 pipe-delimited columns"),
        ("", "No training samples found"),
        (b"LJ0|\xff|\xff\n", "can't decode byte"),
    ],
)
def test_other_folders_than_ljspeech_are_refused(metadata, reason, glow_tts, trained, tmp_path):
    if metadata is not None:
        (tmp_path / "metadata.csv").write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode())
    models = ["--tts_path", str(glow_tts), "--restore_path", str(trained)]
    error = refusal(*arguments(tmp_path, tmp_path / "out"), *models)
    assert f"{tmp_path}: expected LJSpeech as it is" in error and reason in error


def test_too_few_recordings_are_refused(glow_tts, trained, corpus, tmp_path):
    models = ["--tts_path", str(glow_tts), "--restore_path", str(trained), "--eval_split_size", "4"]
    error = refusal(*arguments(corpus, tmp_path / "out"), *models)
    assert "eval_split_size: 4, expected fewer than the 4 audio files there are" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--eval_split_size", "0"], "--eval_split_size: 0, expected at least 1"),
        (["--batch_size", "0"], "--batch_size: 0, expected at least 1"),
        (["--extraction_batch_size=-1"], "--extraction_batch_size: -1, expected at least 1"),
        (["--num_loader_workers=-1"], "--num_loader_workers: -1, expected at least 0"),
        (["--lr=-1"], "--lr: -1.0, expected a number above 0"),
    ],
)
def test_numbers_that_cannot_work_are_refused(settings, message, glow_tts, trained, corpus, tmp_path):
    models = ["--tts_path", str(glow_tts), "--restore_path", str(trained)]
    assert refusal(*arguments(corpus, tmp_path / "out", *models), *settings) == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_refused_before_mels_are_made(glow_tts, trained, corpus, tmp_path):
    vocoder = shutil.copytree(trained, tmp_path / "vocoder")
    config = json.loads((vocoder / "config.json").read_text()) | {"mpd_channels": [4, 16]}
    (vocoder / "config.json").write_text(json.dumps(config))
    models = ["--tts_path", str(glow_tts), "--restore_path", str(vocoder)]
    assert "best_model.pth: the weights do not fit" in refusal(*arguments(corpus, tmp_path / "out", *models))
    assert not (tmp_path / "out").exists()


def test_a_vocoder_that_cannot_follow_leaves_no_note(glow_tts, trained, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("APNET2_STRICT", "1")
    models = ["--tts_path", str(glow_tts), "--restore_path", str(trained)]
    assert "APNET2_STRICT allows no approximation" in refusal(*arguments(corpus, tmp_path / "out", *models))
    assert not (tmp_path / "out").exists()


def test_no_recording_that_can_be_used(glow_tts, trained, corpus, tmp_path):
    bad = shutil.copytree(corpus, tmp_path / "LJSpeech-1.1")
    for path in (bad / "wavs").iterdir():
        path.write_bytes(b"no sound")
    models = ["--tts_path", str(glow_tts), "--restore_path", str(trained)]
    error = refusal(*arguments(bad, tmp_path / "out", *models))
    assert error == f"error: {bad}: none of 4 samples can be used, for the reasons in the log"


def test_a_process_without_recordings_of_its_own_goes_on(glow_tts, trained, corpus, tmp_path, monkeypatch):
    bad = shutil.copytree(corpus, tmp_path / "LJSpeech-1.1")
    (bad / "wavs" / "LJ3.wav").write_bytes(b"no sound")
    monkeypatch.setenv("WORLD_SIZE", "4")
    argv = [*arguments(bad, tmp_path / "out"), "--tts_path", str(glow_tts), "--rank", "3"]
    args = finetuning.parse_args("", GLOW_TTS.parent, argv)
    samples = finetuning.ljspeech_samples(args.data_path)
    finetuning.extract_mels(args, ("glow_tts",), finetuning.vocoder_config(str(trained)), samples)
    assert not (tmp_path / "out" / "teacher_forced" / "wavs").exists()


def test_ctrl_c_ends_the_extraction_in_one_line(glow_tts, trained, corpus, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "extract", interrupted)
    models = ["--tts_path", str(glow_tts), "--restore_path", str(trained)]
    with pytest.raises(SystemExit) as end:
        finetune(GLOW_TTS, *arguments(corpus, tmp_path / "out", *models))
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on\n")


@pytest.mark.slow
def test_fine_tuning_on_tacotron2(trained, corpus, tmp_path):
    tacotron2, out = build("tacotron2_ddc", tmp_path / "tacotron2"), tmp_path / "out"
    settings = ["--tts_path", tacotron2, "--restore_path", trained / "best_model.pth", "--steps", 2]
    finetune(RECIPES / "apnet2_tacotron2" / "train_apnet2.py", *arguments(corpus, out, *settings))
    check_run(out, trained, tmp_path, n_steps=2)


@pytest.mark.slow
def test_one_of_two_processes_has_nothing_to_write(glow_tts, trained, corpus, tmp_path):
    """It is done long before the other makes the folder."""
    bad, out = shutil.copytree(corpus, tmp_path / "LJSpeech-1.1"), tmp_path / "out"
    for name in ("LJ0", "LJ2"):
        (bad / "wavs" / f"{name}.wav").write_bytes(b"no sound")
    settings = ["--tts_path", glow_tts, "--restore_path", trained, "--batch_size", 1, "--steps", 2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", GLOW_TTS]
    subprocess.run([*command, *arguments(bad, out, *settings)], check=True, capture_output=True, timeout=500)
    assert sorted(path.name for path in (out / "teacher_forced" / "mels").iterdir()) == ["LJ1.npy", "LJ3.npy"]


@pytest.mark.slow
def test_two_processes_share_the_extraction(glow_tts, trained, corpus, tmp_path):
    out = tmp_path / "out"
    settings = ["--tts_path", glow_tts, "--restore_path", trained, "--batch_size", 1, "--steps", 2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", GLOW_TTS]
    subprocess.run([*command, *arguments(corpus, out, *settings)], check=True, capture_output=True, timeout=500)
    assert len(list((out / "teacher_forced" / "mels").iterdir())) == len(TEXTS)
    check_run(out, trained, tmp_path, n_steps=2)
