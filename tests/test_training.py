"""Training inside coqui's Trainer: logs, checkpoints, schedules, starting weights, the recipes and `train_vocoder`."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import scripts
import soundfile as sf
import tiny
import torch
from small_run import fit, make_batch, make_corpus, make_trainer, small_config, stub_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer.trainer_utils import get_scheduler
from TTS.bin import train_vocoder

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import ConfigError
from apnet2_tts_plugin.model import MAX_CLIPS, Apnet2
from apnet2_tts_plugin.network import precision
from apnet2_tts_plugin.recipe import RecipeArgs, run_settings
from apnet2_tts_plugin.training.data import EpochBatches
from apnet2_tts_plugin.weights import convert


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A finished run of 2 epochs of 2 steps, with everything logged."""
    settings = {"plot_step": 1, "log_model_step": 2, "eval_split_size": MAX_CLIPS + 1, "batch_size": 2}
    config = small_config(corpus, tmp_path_factory.mktemp("run"), **settings)
    return fit(config, figures=True)


@pytest.mark.parametrize(("start", "accumulation", "n_steps", "share"), [(10**9, 1, 80, 0.5), (0, 2, 60, 0.7)])
def test_it_learns(start, accumulation, n_steps, share):
    """A segment by heart, without discriminators; and two in parts, against them."""
    torch.manual_seed(0)  # of the discriminators
    sizes = dict(mpd_periods=[2, 3], mrd_resolutions=[[512, 128, 512]])
    model = tiny.model(lr_gen=3e-3, lr_disc=3e-3, steps_to_start_discriminator=start, **sizes)
    trainer, batch = stub_trainer(model, grad_accum_steps=accumulation), make_batch(accumulation)
    logged = [model.optimize(batch, trainer)[1] for _ in range(n_steps)]
    errors = [values["loss_mel"] for values in logged]
    assert sum(errors[-5:]) / 5 < share * errors[0]
    if start == 0:
        assert logged[-1]["loss_disc"] < 0.98 * logged[0]["loss_disc"]


@pytest.mark.parametrize(
    ("cpuinfo", "emulates"),
    [
        ("flags : avx2 avx512f avx512_vnni", True),
        ("flags : avx512f avx512_bf16", False),
        ("Features : asimd bf16 i8mm", False),
        (None, False),
    ],
)
def test_bf16_without_instructions_is_warned_of(cpuinfo, emulates, corpus, tmp_path, monkeypatch, caplog):
    path = tmp_path / "cpuinfo"
    if cpuinfo:
        path.write_text(cpuinfo)
    monkeypatch.setattr(precision, "Path", {"/proc/cpuinfo": path}.get)
    assert precision.emulates_bf16("cpu") == emulates
    for mixed in (False, True):
        caplog.clear()
        make_trainer(small_config(corpus, tmp_path / str(mixed), mixed_precision=mixed))
        assert ("no instructions for bfloat16" in caplog.text) == (mixed and emulates)


def test_a_run_leaves_checkpoints_and_the_best_model_which_speaks(run):
    folder = Path(run.output_path)
    assert {"config.json", "best_model.pth", "checkpoint_2.pth"} <= {path.name for path in folder.iterdir()}
    assert run.total_steps_done == 4
    best = torch.load(folder / "best_model.pth", weights_only=True)["model_loss"]["eval_loss"]
    assert best == run.best_loss["eval_loss"] <= run.keep_avg_eval["avg_loss_mel"]
    model = Apnet2(run.config)
    model.load_checkpoint(run.config, folder / "best_model.pth", eval=True)
    assert model.mpd is None and model.mrd is None and not model.training
    assert model.inference(torch.zeros(1, 80, 5)).shape == (1, 1, 1024)


def test_all_weights_are_trained(run):
    first = torch.load(Path(run.output_path) / "checkpoint_0.pth", weights_only=True)["model"]
    assert not [name for name, tensor in run.model.state_dict().items() if torch.equal(tensor, first[name])]


def test_losses_figures_and_audio_are_logged(run):
    events = EventAccumulator(str(run.output_path), {"scalars": 0, "images": 0, "audio": 0}).Reload()
    tags = events.Tags()
    terms = set(Apnet2Config().loss_weights) - {"multi_resolution_stft", "pitch", "voicing", "latent_mel", "phasor"}
    logged = {tag.split("/")[1] for tag in tags["scalars"] if tag.startswith("TrainIterStats/")}
    assert {f"loss_{term}" for term in terms} <= logged
    assert {"loss_gen", "loss_disc", "loss_disc_mpd", "loss_disc_mrd", "grad_norm_gen", "grad_norm_disc"} <= logged
    assert "EvalStats/avg_loss_mel" in tags["scalars"]
    names = [f"{i}_{file.path.stem}" for i, file in enumerate(run.eval_loader.dataset.files[:MAX_CLIPS], 1)]
    assert len(names) == MAX_CLIPS < len(run.eval_loader)
    assert set(tags["images"]) == {"TrainFigures/log_mel", *(f"EvalFigures/log_mel/{name}" for name in names)}
    audios = {f"{kind}/{name}" for kind in ("target", "generated") for name in names}
    assert set(tags["audio"]) == {"TrainAudios/target", "TrainAudios/generated", *(f"EvalAudios/{a}" for a in audios)}
    assert {"TrainIterStats/lr_gen", "TrainEpochStats/avg_lr_disc", "EvalStats/avg_loss_gen"} <= set(tags["scalars"])
    assert not [tag for tag in tags["scalars"] if tag.endswith(("_0", "_1"))]  # the Trainer's names, by optimizer
    assert all(math.isfinite(e.value) for tag in tags["scalars"] for e in events.Scalars(tag))


@pytest.mark.parametrize("world_size", [1, 4, 8])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(16, 1), (4, 4), (3, 2)])
def test_the_last_rate_of_a_recipe_depends_on_its_updates_alone(world_size, batch_size, accumulation, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    args = RecipeArgs(steps=3000, batch_size=batch_size, grad_accum_steps=accumulation, eval_split_size=50)
    config = tiny.config(**run_settings(args, n_files=1000))
    steps_per_epoch = len(EpochBatches(950, batch_size * accumulation, 0, 0, world_size))
    assert 0 <= config.epochs * steps_per_epoch - args.steps < steps_per_epoch
    assert not config.scheduler_after_epoch
    for name in ("gen", "disc"):
        assert config[f"lr_scheduler_{name}"] == "ExponentialLR"
        decay = config[f"lr_scheduler_{name}_params"]["gamma"] ** args.steps
        assert decay == pytest.approx(0.999 ** (3000 / 809), rel=1e-9)


@pytest.mark.parametrize(("accumulation", "n_updates"), [(2, 3), (4, 4)])
def test_the_rates_of_a_recipe_fall_with_each_update(corpus, tmp_path, accumulation, n_updates):
    """Of 6 files, one in a part, until three updates are done and the epoch is over."""
    settings = {"steps": 3, "batch_size": 1, "grad_accum_steps": accumulation, "num_loader_workers": 0}
    args = RecipeArgs(data_path=str(corpus), output_path=str(tmp_path), eval_split_size=1, **settings)
    rates = []

    def note(trainer):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizer])

    config = small_config(corpus, tmp_path, **run_settings(args, n_files=7))
    make_trainer(config, callbacks={"on_train_step_end": note}, grad_accum_steps=accumulation).fit()
    expected = [[2e-4 * 0.999 ** (n / 809)] * 2 for n in range(1, n_updates + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("n_files", "accumulation", "world_size"), [(21, 1, 1), (150, 1, 1), (1000, 1, 1), (150, 3, 4)]
)
@pytest.mark.parametrize("recipe", ["voice", "natural"])
def test_a_cosine_is_down_to_nothing_when_the_last_epoch_ends(
    recipe, n_files, accumulation, world_size, tmp_path, monkeypatch
):
    """A run has whole epochs, and behind its half-period a cosine rises again."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    for i in range(n_files):
        (tmp_path / f"{i}.wav").touch()
    module = scripts.load(scripts.RECIPES / recipe / "apnet2" / "train_apnet2.py", monkeypatch)
    config = module.make_config(
        module.parse_args(["--data_path", str(tmp_path), "--grad_accum_steps", str(accumulation)])
    )
    n_segments = (n_files - config.eval_split_size) * config.segments_per_file
    per_epoch = len(EpochBatches(n_segments, config.batch_size * accumulation, 0, 0, world_size))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr_gen)
    schedule = get_scheduler(config.lr_scheduler_gen, config.lr_scheduler_gen_params, optimizer)
    rates = []
    for _ in range(config.epochs * per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == sorted(rates, reverse=True) and rates[-1] < 1e-6 * rates[0]


@pytest.mark.parametrize(
    ("preset", "start", "iterations"),
    [("base", "pitch", 2), ("freev", "pitch", 2), ("pitch", "pitch", 2), ("tiny", "", 2), ("base", "none", 0)],
)
def test_with_a_phase_that_starts_from_the_pitch_iterations_keep_the_mel(
    preset, start, iterations, corpus, monkeypatch
):
    module = scripts.load(scripts.RECIPES / "ljspeech" / "apnet2" / "train_apnet2.py", monkeypatch)
    settings = ["--data_path", str(corpus), "--eval_split_size", "1", "--preset", preset, "--phase_start", start]
    config = module.make_config(module.parse_args(settings))
    assert (config.consistency_iterations, config.consistency_target == "mel") == (iterations, iterations > 0)


@pytest.mark.parametrize("name", ["batch_size", "grad_accum_steps", "segments_per_file", "eval_split_size", "steps"])
def test_arguments_of_recipes_that_cannot_work(name):
    with pytest.raises(ConfigError, match=f"--{name}: 0, expected at least 1"):
        run_settings(RecipeArgs(**{name: 0}), n_files=100)


def test_too_few_recordings_for_a_recipe():
    with pytest.raises(ConfigError, match="--eval_split_size: 50, expected fewer than the 32 recordings"):
        run_settings(RecipeArgs(), n_files=32)


def test_discriminators_wait_for_their_start():
    model = tiny.model(steps_to_start_discriminator=3)
    trainer = stub_trainer(model, total_steps_done=2)
    before = {name: tensor.clone() for name, tensor in model.mpd.state_dict().items()}
    assert "loss_disc" not in model.optimize(make_batch(), trainer)[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.mpd.state_dict().items())
    trainer.total_steps_done = 3
    assert "loss_disc" in model.optimize(make_batch(), trainer)[1]
    assert not all(torch.equal(tensor, before[name]) for name, tensor in model.mpd.state_dict().items())


def test_losses_under_bfloat16_autocast_are_close():
    logged = []
    for enabled in (False, True):
        model = tiny.model()
        torch.manual_seed(0)  # of the discriminators
        trainer = stub_trainer(model)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logged.append(model.optimize(make_batch(), trainer)[1])
    for name, value in logged[0].items():
        if name.startswith("loss_"):
            assert logged[1][name] == pytest.approx(value, rel=0.02, abs=1e-3), name


@pytest.mark.parametrize("exported", [False, True])
def test_restore_path_starts_from_the_weights(run, corpus, tmp_path, caplog, exported):
    source = Path(run.output_path) / "best_model.pth"
    state = torch.load(source, weights_only=True)["model"]
    if exported:
        convert.export(source, tmp_path / "exported")
        source = tmp_path / "exported" / "model.safetensors"
        state = {name: tensor for name, tensor in state.items() if name.startswith("generator.")}
    with caplog.at_level(logging.INFO, "trainer"):
        restored = make_trainer(small_config(corpus, tmp_path), restore_path=str(source))
    for name, tensor in state.items():
        assert torch.equal(restored.model.state_dict()[name], tensor), name
    discriminators = "generator of model.safetensors; the discriminators start anew"
    what = discriminators if exported else "generator and discriminators of best_model.pth"
    assert f"Restored from {source}: {what}" in caplog.messages
    assert "other settings" not in caplog.text


def test_restored_weights_of_other_settings_are_warned_of(run, corpus, tmp_path, caplog):
    source, config = Path(run.output_path) / "best_model.pth", small_config(corpus, tmp_path)
    config.phase.look_ahead = 1
    with caplog.at_level(logging.INFO, "trainer"):
        make_trainer(config, restore_path=str(source))
    assert "These weights were trained with other settings: phase.look_ahead -1 (now 1)" in caplog.messages


def test_small_run_takes_a_few_files(corpus, tmp_path):
    training = make_trainer(small_config(corpus, tmp_path, batch_size=1), small_run=2)
    assert len(training.train_loader) == 2


def test_mels_to_learn_from_reach_the_generator(corpus, tmp_path):
    """Mels of silence for the files that are trained on and evaluated, whatever sounds in them."""
    mels = tmp_path / "mels"
    mels.mkdir()
    for path in corpus.glob("*.wav"):
        np.save(mels / path.stem, np.full((80, sf.info(path).frames // 256 + 1), -11.0, dtype=np.float32))
    training = make_trainer(small_config(corpus, tmp_path, feature_path=str(mels), epochs=1))
    seen = []
    training.model.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    training.fit()
    assert len(seen) == 3 and all((mel == -11.0).all() for mel in seen)


@pytest.mark.slow
def test_compiled_networks_learn_the_same(corpus, tmp_path, monkeypatch):
    """For a step; traced, that is, and run without the compiler, which takes minutes."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compile_(network, backend="aot_eager"))
    logged = []
    for use_compile in (False, True):
        settings = {"batch_size": 6, "mpd_periods": [2], "run_eval": False, "use_compile": use_compile}
        training = fit(small_config(corpus, tmp_path / str(use_compile), epochs=1, **settings))
        logged.append(training.keep_avg_train.avg_values)
    assert logged[1]["avg_loss_mel"] == pytest.approx(logged[0]["avg_loss_mel"], rel=1e-3)
    assert logged[1]["avg_grad_norm_gen"] == pytest.approx(logged[0]["avg_grad_norm_gen"], rel=1e-2)


def test_train_vocoder_trains_it(corpus, tmp_path):
    """coqui's own command; its split by file-system order is replaced by ours."""
    config = small_config(corpus, tmp_path, epochs=1)
    config.save_json(tmp_path / "config.json")
    with pytest.raises(SystemExit) as end:
        train_vocoder.main(["--config_path", str(tmp_path / "config.json"), "--coqpit.batch_size", "2"])
    assert end.value.code == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "best_model.pth").is_file()
    settings = json.loads((folder / "config.json").read_text())
    assert settings["batch_size"] == 2 and settings["eval_metrics"] == []


def recipe(corpus: str, patch: pytest.MonkeyPatch):
    return scripts.load(scripts.RECIPES / corpus / "apnet2" / "train_apnet2.py", patch)


def test_recipes_take_what_the_launcher_passes(monkeypatch):
    args = recipe("ljspeech", monkeypatch).parse_args(
        ["--continue_path=", "--restore_path=", "--group_id=group_1", "--use_ddp=true", "--batch_size=2", "--rank=1"]
    )
    assert args.use_ddp is True and args.rank == 1 and args.group_id == "group_1" and args.batch_size == 2


@pytest.mark.parametrize("corpus", ["ljspeech", "flite"])
def test_recipes_name_missing_data_in_one_line(corpus, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as end:
        recipe(corpus, monkeypatch).main(["--data_path", str(tmp_path / "nowhere")])
    error, advice = end.value.code.split("\n")
    assert error.startswith(f"error: {tmp_path / 'nowhere'}: no such folder") and "recipes" in advice


@pytest.mark.slow
def test_the_flite_recipe_trains(tmp_path, monkeypatch):
    """With smaller networks; that of LJSpeech does in tests/test_distributed.py."""
    script = recipe("flite", monkeypatch)
    small = {"phase": tiny.config().phase, "eval_metrics": []}
    monkeypatch.setattr(script, "Apnet2Config", lambda **settings: tiny.config(**settings | small))
    wavs = make_corpus(tmp_path / "wavs", n_files=81, n_samples=8192)
    settings = ["--batch_size", "1", "--steps", "1", "--seq_len", "8192"]
    script.main(["--data_path", str(wavs), "--output_path", str(tmp_path / "out"), *settings])
    (best,) = (tmp_path / "out").glob("*/best_model.pth")
    script.main(["--continue_path", str(best.parent)])  # the run knows its data
