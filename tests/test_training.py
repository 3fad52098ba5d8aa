"""Training inside coqui's Trainer: logs, checkpoints, schedules, resuming, the recipes and `train_vocoder`."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import soundfile as sf
import torch
from golden_weights import golden_waveform
from small_run import SMALL, fit, make_corpus, make_trainer, small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from TTS.bin import train_vocoder

from apnet2_tts_plugin import checkpoints
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A finished run of 2 epochs of 2 steps, with everything logged."""
    config = small_config(corpus, tmp_path_factory.mktemp("run"), plot_step=1, log_model_step=2)
    return fit(config, figures=True)


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
            assert logged[1][name] == pytest.approx(value, rel=0.02, abs=1e-3), name


def test_restore_path_starts_from_the_weights(run, corpus, tmp_path):
    checkpoint = Path(run.output_path) / "best_model.pth"
    config = small_config(corpus, tmp_path, epochs=1, lr_gen=1e-12, lr_disc=1e-12)
    restored = fit(config, restore_path=str(checkpoint))
    state = torch.load(checkpoint, weights_only=True)["model"]
    for name, tensor in restored.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-6, rtol=1e-4)


def test_restore_path_takes_an_exported_model(run, corpus, tmp_path, caplog):
    checkpoints.export(Path(run.output_path) / "best_model.pth", tmp_path / "exported")
    config = small_config(corpus, tmp_path / "out", epochs=1, lr_gen=1e-12, lr_disc=1e-12)
    with caplog.at_level(logging.INFO, "trainer"):
        restored = fit(config, restore_path=str(tmp_path / "exported" / "model.safetensors"))
    assert "Restored the generator of model.safetensors; the discriminators start anew" in caplog.messages
    state = torch.load(Path(run.output_path) / "best_model.pth", weights_only=True)["model"]
    for name, tensor in restored.model.generator.state_dict().items():
        torch.testing.assert_close(tensor, state[f"generator.{name}"], atol=1e-6, rtol=1e-4)


def test_small_run_takes_a_few_files(corpus, tmp_path):
    training = make_trainer(small_config(corpus, tmp_path, batch_size=1), small_run=2)
    assert len(training.train_loader) == 2


def test_mels_to_learn_from_reach_the_generator(corpus, tmp_path):
    """Mels of silence for the files that are trained on and evaluated, whatever sounds in them."""
    for path in corpus.glob("*.wav"):
        frames = sf.info(path).frames // 256 + 1
        (tmp_path / "mels").mkdir(exist_ok=True)
        np.save(tmp_path / "mels" / f"{path.stem}.npy", np.full((80, frames), -11.0, dtype=np.float32))
    config = small_config(corpus, tmp_path, feature_path=str(tmp_path / "mels"), epochs=1)
    training = make_trainer(config)
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
    # coqpit takes no further arguments where a list is shorter than by default
    config = small_config(corpus, tmp_path, epochs=1, eval_metrics=["pesq", "stoi"])
    config.save_json(tmp_path / "config.json")
    with pytest.raises(SystemExit) as end:
        train_vocoder.main(["--config_path", str(tmp_path / "config.json"), "--coqpit.batch_size", "2"])
    assert end.value.code == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "best_model.pth").is_file()
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 2


def recipe(path: str, patch: pytest.MonkeyPatch):
    return scripts.load(scripts.RECIPES / f"{path}.py", patch)


def test_recipes_take_what_the_launcher_passes(monkeypatch):
    args = recipe("ljspeech/apnet2/train_apnet2", monkeypatch).parse_args(
        ["--continue_path=", "--restore_path=", "--group_id=group_1", "--use_ddp=true", "--batch_size=2", "--rank=1"]
    )
    assert args.use_ddp is True and args.rank == 1 and args.group_id == "group_1" and args.batch_size == 2


TRAIN_RECIPES = ["ljspeech/apnet2/train_apnet2", "flite/apnet2/train_apnet2"]


@pytest.mark.parametrize("path", TRAIN_RECIPES)
def test_recipes_name_missing_data_in_one_line(path, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as end:
        recipe(path, monkeypatch).main(["--data_path", str(tmp_path / "nowhere")])
    assert str(tmp_path / "nowhere") in end.value.code and "no such folder" in end.value.code


@pytest.mark.slow
def test_the_flite_recipe_trains(tmp_path, monkeypatch):
    """With smaller networks; that of LJSpeech does in tests/test_distributed.py."""
    script = recipe("flite/apnet2/train_apnet2", monkeypatch)
    small = {"phase": PredictorConfig(**SMALL), "mpd_channels": [4, 8], "mrd_channels": 4, "eval_metrics": []}
    monkeypatch.setattr(script, "Apnet2Config", lambda **settings: Apnet2Config(**settings | small))
    wavs = make_corpus(tmp_path / "wavs", n_files=81, n_samples=8192)
    settings = ["--batch_size", "1", "--steps", "1", "--seq_len", "8192"]
    script.main(["--data_path", str(wavs), "--output_path", str(tmp_path / "out"), *settings])
    (best,) = (tmp_path / "out").glob("*/best_model.pth")
    script.main(["--continue_path", str(best.parent)])  # the run knows its data
