"""Training inside coqui's Trainer: logs, checkpoints, schedules, resuming, the recipes and `train_vocoder`."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile as sf
import torch
from golden_weights import golden_waveform
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer import Trainer, TrainerArgs
from TTS.bin import train_vocoder

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2

SMALL = {"channels": 16, "hidden_channels": 32, "blocks": 1}
RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(7):
        sf.write(folder / f"{i}.wav", golden_waveform(12000, i), 22050, subtype="PCM_16")
    return folder


def small_config(corpus, out, **settings) -> Apnet2Config:
    defaults = {
        "run_name": "test",
        "output_path": str(out),
        "data_path": str(corpus),
        "eval_split_size": 1,
        "batch_size": 3,
        "epochs": 2,
        "num_loader_workers": 0,
        "num_eval_loader_workers": 0,
        "run_eval": True,
        "print_step": 1,
        "plot_step": 1,
        "log_model_step": 2,
        "save_step": 2,
        "amplitude": PredictorConfig(**SMALL),
        "phase": PredictorConfig(**SMALL),
        "mpd_periods": [2, 3],
        "mpd_channels": [4, 8],
        "mrd_resolutions": [[512, 128, 512]],
        "mrd_channels": 4,
    }
    return Apnet2Config(**defaults | settings)


def fit(config: Apnet2Config, **args) -> Trainer:
    trainer = Trainer(
        TrainerArgs(**args),
        config,
        output_path=config.output_path,
        model=Apnet2(config),
        train_samples=["unused"],
        eval_samples=["unused"],
        parse_command_line_args=False,
    )
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A finished run of 2 epochs of 2 steps."""
    return fit(small_config(corpus, tmp_path_factory.mktemp("run")))


def test_a_run_leaves_checkpoints_and_the_best_model(run):
    names = {path.name for path in Path(run.output_path).iterdir()}
    assert {"config.json", "best_model.pth", "checkpoint_2.pth"} <= names
    assert run.total_steps_done == 4


def test_losses_figures_and_audio_are_logged(run):
    events = EventAccumulator(str(run.output_path), {"scalars": 0, "images": 0, "audio": 0}).Reload()
    tags = events.Tags()
    terms = set(Apnet2Config().loss_weights) - {"multi_resolution_stft"}
    logged = {tag.split("/")[1] for tag in tags["scalars"] if tag.startswith("TrainIterStats/")}
    assert {f"loss_{term}" for term in terms} <= logged
    assert {"loss_gen", "loss_disc", "loss_disc_mpd", "loss_disc_mrd", "grad_norm_gen", "grad_norm_disc"} <= logged
    assert "EvalStats/avg_loss_mel" in tags["scalars"]
    assert set(tags["images"]) == {"TrainFigures/log_mel", "EvalFigures/log_mel"}
    kinds = {f"{scope}/{kind}" for scope in ("TrainAudios", "EvalAudios") for kind in ("target", "generated")}
    assert kinds == set(tags["audio"])
    assert all(math.isfinite(e.value) for tag in tags["scalars"] for e in events.Scalars(tag))


def test_the_best_model_is_picked_by_the_eval_mel_error(run):
    best = torch.load(Path(run.output_path) / "best_model.pth", weights_only=True)
    assert best["model_loss"]["eval_loss"] == run.best_loss["eval_loss"]
    assert run.best_loss["eval_loss"] <= run.keep_avg_eval["avg_loss_mel"]
    assert run.config.target_loss == "loss_mel"


def test_the_saved_model_speaks(run):
    model = Apnet2(run.config)
    model.load_checkpoint(run.config, Path(run.output_path) / "best_model.pth", eval=True)
    assert model.mpd is None and model.mrd is None and not model.training
    assert model.inference(torch.zeros(1, 80, 5)).shape == (1, 1, 1024)


def test_both_networks_learn(run, corpus):
    torch.manual_seed(run.config.training_seed)
    state = run.model.state_dict()
    fresh = Apnet2(run.config)
    fresh.add_discriminators()
    for network in ("generator", "mpd", "mrd"):
        before = dict(getattr(fresh, network).named_parameters())
        changed = [bool((state[f"{network}.{name}"] != p).any()) for name, p in before.items()]
        assert all(changed)


def test_schedules_step_once_an_epoch_by_default(run):
    for optimizer in run.optimizer:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4 * 0.999**2)


def test_schedules_can_step_with_every_update(corpus, tmp_path):
    trainer = fit(small_config(corpus, tmp_path, scheduler_after_epoch=False, epochs=1))
    for optimizer in trainer.optimizer:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4 * 0.999**2)


def test_discriminators_wait_for_their_start(corpus, tmp_path):
    config = small_config(corpus, tmp_path, steps_to_start_discriminator=3)
    model = Apnet2(config)
    trainer = SimpleNamespace(use_amp_scaler=False, optimizer=model.get_optimizer(), total_steps_done=2)
    before = {name: tensor.clone() for name, tensor in model.mpd.state_dict().items()}
    batch = {"waveform": torch.randn(2, 8192) * 0.1}
    assert "loss_disc" not in model.optimize(batch, trainer)[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.mpd.state_dict().items())
    trainer.total_steps_done = 3
    assert "loss_disc" in model.optimize(batch, trainer)[1]
    assert not all(torch.equal(tensor, before[name]) for name, tensor in model.mpd.state_dict().items())


def test_gradients_are_clipped_on_request(corpus, tmp_path):
    config = small_config(
        corpus, tmp_path, optimizer="SGD", optimizer_params={}, grad_clip=[0.0, 1.0], lr_gen=1.0, lr_disc=1e-6
    )
    model = Apnet2(config)
    before = torch.cat([p.detach().flatten().clone() for p in model.generator.parameters()])
    trainer = SimpleNamespace(use_amp_scaler=False, optimizer=model.get_optimizer(), total_steps_done=0)
    _, logged = model.optimize({"waveform": torch.randn(2, 8192) * 0.1}, trainer)
    after = torch.cat([p.detach().flatten() for p in model.generator.parameters()])
    assert logged["grad_norm_gen"] > 1
    assert (after - before).norm() == pytest.approx(1.0, rel=1e-3)


def test_losses_under_bfloat16_autocast_are_close(corpus, tmp_path):
    batch = {"waveform": torch.from_numpy(golden_waveform(16384, 3)).reshape(2, 8192)}
    logged = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = Apnet2(small_config(corpus, tmp_path))
        trainer = SimpleNamespace(use_amp_scaler=False, optimizer=model.get_optimizer(), total_steps_done=0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logged.append(model.optimize(batch, trainer)[1])
    for name, value in logged[0].items():
        if name.startswith("loss_"):
            assert logged[1][name].dtype == torch.float32, name
            assert logged[1][name].item() == pytest.approx(value.item(), rel=0.02, abs=1e-3), name


def test_continue_path_goes_on(corpus, tmp_path):
    first = fit(small_config(corpus, tmp_path, epochs=1))
    checkpoint = Path(first.output_path) / "checkpoint_1.pth"
    first.total_steps_done = 1
    first.save_checkpoint()
    assert checkpoint.is_file()
    resumed = fit(small_config(corpus, tmp_path, epochs=3), continue_path=str(first.output_path))
    assert Path(resumed.output_path) == Path(first.output_path)
    assert resumed.total_steps_done > 2


def test_a_worse_model_does_not_replace_the_best_one_after_a_resume(corpus, tmp_path):
    """The newest checkpoint is of the middle of an epoch, without an evaluation."""
    first = fit(small_config(corpus, tmp_path, epochs=1))
    folder = Path(first.output_path)
    best = torch.load(folder / "best_model.pth", weights_only=True)
    best["model_loss"]["eval_loss"] = 1e-9  # nothing beats it
    for path in folder.glob("best_model*.pth"):
        torch.save(best, path)
    first.total_steps_done += 1
    first.save_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"epochs": 3}))
    resumed = fit(small_config(corpus, tmp_path, epochs=3), continue_path=str(folder))
    assert resumed.total_steps_done > first.total_steps_done
    assert resumed.best_loss["eval_loss"] == 1e-9
    assert torch.load(folder / "best_model.pth", weights_only=True)["model_loss"]["eval_loss"] == 1e-9


def test_gradient_accumulation_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="grad_accum_steps: 2, expected 1"):
        fit(small_config(corpus, tmp_path), grad_accum_steps=2)


def test_restore_path_starts_from_the_weights(run, corpus, tmp_path):
    checkpoint = Path(run.output_path) / "best_model.pth"
    config = small_config(corpus, tmp_path, epochs=1, lr_gen=1e-12, lr_disc=1e-12)
    restored = fit(config, restore_path=str(checkpoint))
    state = torch.load(checkpoint, weights_only=True)["model"]
    for name, tensor in restored.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-6, rtol=1e-4)


def test_train_vocoder_trains_it(corpus, tmp_path):
    """coqui's own command; its split by file-system order is replaced by ours."""
    config = small_config(corpus, tmp_path, epochs=1)
    config.save_json(tmp_path / "config.json")
    with pytest.raises(SystemExit) as end:
        train_vocoder.main(["--config_path", str(tmp_path / "config.json"), "--coqpit.batch_size", "2"])
    assert end.value.code == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "best_model.pth").is_file()
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 2


def recipe(path: str):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), RECIPES / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRAIN_RECIPES = ["ljspeech/apnet2/train_apnet2", "flite/apnet2/train_apnet2"]


@pytest.mark.parametrize("path", TRAIN_RECIPES)
def test_recipes_name_missing_data_in_one_line(path, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as end:
        recipe(path).main(["--data_path", str(tmp_path / "nowhere")])
    assert str(tmp_path / "nowhere") in end.value.code and "no such folder" in end.value.code


@pytest.mark.slow
@pytest.mark.parametrize(("path", "n_files"), [(TRAIN_RECIPES[0], 51), (TRAIN_RECIPES[1], 81)])
def test_recipes_train(path, n_files, tmp_path):
    wavs = tmp_path / "wavs"
    wavs.mkdir()
    for i in range(n_files):
        sf.write(wavs / f"{i:03}.wav", golden_waveform(8192, i), 22050, subtype="PCM_16")
    settings = ["--batch_size", "1", "--steps", "1", "--num_loader_workers", "0"]
    recipe(path).main(["--data_path", str(wavs), "--output_path", str(tmp_path / "out"), *settings])
    (best,) = (tmp_path / "out").glob("*/best_model.pth")
    # the run knows its data
    recipe(path).main(["--continue_path", str(best.parent)])
