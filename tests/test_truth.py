"""What a run says of itself: faults, norms, averages, evaluation, progress; and what it does about faults."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden_weights import golden_waveform
from small_run import fit, make_corpus, make_trainer, small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from apnet2_tts_plugin import metrics, run
from apnet2_tts_plugin.config import Apnet2Config, ConfigError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.run import Average, DivergedError, Watch, newest_checkpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    return Apnet2(small_config(tmp_path, tmp_path, eval_metrics=["pesq", "stoi"], max_skipped_steps=2))


def stub(model, **changes) -> SimpleNamespace:
    """As much of a Trainer as `optimize` needs."""
    trainer = SimpleNamespace(use_amp_scaler=False, total_steps_done=0, optimizer=model.get_optimizer())
    trainer.scheduler = model.get_scheduler(trainer.optimizer)
    return SimpleNamespace(**vars(trainer) | changes)


def batch(n: int = 2) -> dict:
    waveform = torch.from_numpy(golden_waveform(n * 8192, 3)).reshape(n, 8192)
    return {"waveform": waveform, "path": [f"{i}.wav" for i in range(n)]}


def broken(batch: dict) -> dict:
    return batch | {"waveform": batch["waveform"] * float("nan")}


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(model, caplog):
    trainer = stub(model)
    before = weights(model)
    with caplog.at_level(logging.WARNING, run.logger.name):
        _, logged = model.optimize(broken(batch()), trainer)
    assert torch.equal(weights(model), before)
    assert all(math.isfinite(value) for value in logged.values())
    (message,) = caplog.messages
    assert "step 0" in message and "loss_mel" in message and "0.wav, 1.wav" in message
    model.optimize(batch(), trainer)
    assert not torch.equal(weights(model), before)


def test_too_many_in_a_row_stop_the_run(model):
    trainer = stub(model)
    for bad in (True, True, False, True, True):
        model.optimize(broken(batch()) if bad else batch(), trainer)
    with pytest.raises(DivergedError, match=r"3 steps in a row, more than max_skipped_steps \(2\)") as error:
        model.optimize(broken(batch()), trainer)
    assert "0.wav" in str(error.value) and "\n" not in str(error.value)


def test_a_gradient_that_is_not_finite_is_a_fault_too(model):
    trainer = stub(model)
    next(model.generator.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = weights(model.generator)
    with pytest.raises(DivergedError, match="grad_norm_gen not finite"):
        for _ in range(3):
            model.optimize(batch(), trainer)
    assert torch.equal(weights(model.generator), before)


def test_a_diverged_run_keeps_its_last_good_checkpoint(corpus, tmp_path, capsys):
    config = small_config(corpus, tmp_path, epochs=20, max_skipped_steps=1)

    def break_it(trainer):
        if trainer.total_steps_done == 5:
            with torch.no_grad():
                next(trainer.model.generator.parameters()).fill_(float("nan"))

    training = make_trainer(config, callbacks={"on_train_step_start": break_it})
    with pytest.raises(SystemExit) as end:
        training.fit()
    assert end.value.code == 1
    assert "DivergedError: step 6" in capsys.readouterr().err
    path, _ = newest_checkpoint(Path(training.output_path))
    assert path.name == "checkpoint_4.pth"  # that of step 6 is not written
    assert all(tensor.isfinite().all() for tensor in torch.load(path, weights_only=True)["model"].values())


def test_half_precision_scaling_skips_and_recovers(model):
    """The scale is far too large at first: gradients overflow, nothing is updated, schedules stand still."""
    model.config.scheduler_after_epoch = False
    model.watch = Watch(limit=50)
    scaler = torch.GradScaler("cpu", init_scale=2.0**127)
    trainer = stub(model, use_amp_scaler=True, scaler=scaler)
    before, rate = weights(model.generator), trainer.optimizer[1].param_groups[0]["lr"]
    model.optimize(batch(), trainer)
    assert torch.equal(weights(model.generator), before)
    assert scaler.get_scale() == 2.0**126
    assert trainer.optimizer[1].param_groups[0]["lr"] == rate
    for _ in range(40):
        _, logged = model.optimize(batch(), trainer)
        if "grad_norm_gen" in logged and "grad_norm_disc" in logged:
            break
    assert not torch.equal(weights(model.generator), before)
    assert trainer.optimizer[1].param_groups[0]["lr"] < rate
    torch.manual_seed(0)
    unscaled = Apnet2(model.config)
    _, expected = unscaled.optimize(batch(), stub(unscaled))
    assert logged["loss_mel"] == pytest.approx(expected["loss_mel"], rel=0.05)


def test_speech_that_is_not_finite_has_no_score(model):
    model.eval()
    with torch.no_grad():
        next(model.generator.parameters()).fill_(float("nan"))
        _, logged = model.eval_step({"waveform": batch(1)["waveform"]}, None, 1)
    assert math.isnan(logged["pesq"]) and math.isnan(logged["stoi"]) and logged["loss_mel"].isnan()


def test_faults_are_in_the_log_of_the_run(corpus, tmp_path):
    def break_it(trainer):
        with torch.no_grad():
            next(trainer.model.generator.parameters()).fill_(float("nan"))

    config = small_config(corpus, tmp_path, max_skipped_steps=0, run_eval=False)
    training = make_trainer(config, callbacks={"on_train_step_start": break_it})
    with pytest.raises(SystemExit):
        training.fit()
    log = (Path(training.output_path) / "trainer_0_log.txt").read_text()
    assert "Saved" in log and "step 0" in log and "diverged" in log
    assert not list(Path(training.output_path).glob("best_model*"))


def test_norms_are_those_of_the_networks(model):
    trainer = stub(model)
    _, logged = model.optimize(batch(), trainer)
    for name, network in (("gen", model.generator), ("mpd", model.mpd), ("mrd", model.mrd)):
        norm = torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).norm()
        assert logged[f"grad_norm_{name}"] == pytest.approx(norm.item(), rel=1e-5)
    assert logged["grad_norm_disc"] == pytest.approx(math.hypot(logged["grad_norm_mpd"], logged["grad_norm_mrd"]))


def test_norms_of_terms_on_request(model):
    """With all weights but one at 0, the norm of that term is the norm of the whole."""
    model.config.loss_weights = {name: 0.0 for name in model.config.loss_weights} | {"mel": 45.0}
    model.config.log_term_gradients = True
    model.config.plot_step = 2
    trainer = stub(model, total_steps_done=2)
    _, logged = model.optimize(batch(), trainer)
    assert logged["grad_norm_mel"] == pytest.approx(logged["grad_norm_gen"], rel=1e-4) and logged["grad_norm_mel"] > 0
    assert logged["grad_norm_amplitude"] == 0
    trainer.total_steps_done = 3
    assert "grad_norm_mel" not in model.optimize(batch(), trainer)[1]


def test_averages_include_every_value():
    average = Average()
    for value in (10.0, 20.0, 30.0):
        average.update_value("x", value)
    assert average["x"] == 20.0


def test_logged_averages_are_those_of_the_steps_and_files(corpus, tmp_path):
    config = small_config(corpus, tmp_path, epochs=1, eval_split_size=3, batch_size=1)
    training = make_trainer(config)
    steps, files = [], []
    optimize, eval_step = training.model.optimize, training.model.eval_step

    def note_step(batch, trainer):
        outputs, logged = optimize(batch, trainer)
        steps.append(logged["loss_mel"])
        return outputs, logged

    def note_file(batch, criterion, optimizer_idx):
        outputs, logged = eval_step(batch, criterion, optimizer_idx)
        files.extend([logged["loss_mel"].item()] if logged else [])
        return outputs, logged

    training.model.optimize, training.model.eval_step = note_step, note_file
    training.fit()
    assert len(steps) == 4 and len(files) == 3
    events = EventAccumulator(str(training.output_path)).Reload()
    for tag, values in (("TrainEpochStats/avg_loss_mel", steps), ("EvalStats/avg_loss_mel", files)):
        (event,) = events.Scalars(tag)
        assert event.value == pytest.approx(sum(values) / len(values), rel=1e-6), tag


@pytest.mark.parametrize("target", ["loss_mel", "pesq", "stoi"])
def test_the_best_model_is_picked_by_any_figure(corpus, tmp_path, monkeypatch, target):
    """The second of three epochs is made the best one by this figure and the worst one by the others."""
    config = small_config(corpus, tmp_path, epochs=3, target_loss=target, eval_metrics=["pesq", "stoi"])
    training = make_trainer(config)
    good, bad = (0.1, 0.9) if target == "loss_mel" else (0.9, 0.1)
    eval_step = training.model.eval_step

    def invent(batch, criterion, optimizer_idx):
        outputs, logged = eval_step(batch, criterion, optimizer_idx)
        best = training.epochs_done == 1
        invented = {"loss_mel": 0.9 if best else 0.1, "pesq": 0.1 if best else 0.9, "stoi": 0.1 if best else 0.9}
        return outputs, logged and logged | invented | {target: good if best else bad}

    training.model.eval_step = invent
    monkeypatch.setattr(training.model, "_speech_metrics", lambda *args: {})
    training.fit()
    best = torch.load(Path(training.output_path) / "best_model.pth", weights_only=True)
    assert best["epoch"] == 1 and best["model_loss"]["eval_loss"] == good


def test_evaluation_reports_what_is_installed(corpus, tmp_path, monkeypatch):
    settings = {"epochs": 1, "eval_metrics": ["pesq", "stoi"]}
    training = fit(small_config(corpus, tmp_path, **settings))
    figures = training.keep_avg_eval.avg_values
    assert 1 < figures["avg_pesq"] < 4.7 and -1 < figures["avg_stoi"] < 1 and figures["avg_loss_mel"] > 0

    monkeypatch.setitem(metrics.PACKAGES, "pesq", "no_such_package")
    monkeypatch.setitem(metrics.PACKAGES, "stoi", "no_such_package")
    training = fit(small_config(corpus, tmp_path, run_name="without", **settings))
    assert not {"avg_pesq", "avg_stoi"} & set(training.keep_avg_eval.avg_values)
    with pytest.raises(metrics.MissingPackageError, match=r"pip install apnet2-tts-plugin\[eval\]"):
        make_trainer(small_config(corpus, tmp_path, run_name="target", target_loss="pesq", **settings))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target_loss": "loss_mell"}, "target_loss: 'loss_mell', expected one of"),
        ({"target_loss": "pesq", "eval_metrics": []}, "target_loss: 'pesq', expected one of"),
        ({"eval_metrics": ["mos"]}, "eval_metrics: .*mos.*expected some of"),
        ({"lr_scheduler_gen": None}, "lr_scheduler_gen: None, expected the name of a schedule"),
        ({"precision": "fp8"}, "precision: 'fp8', expected 'bf16' or 'fp16'"),
        ({"max_skipped_steps": -1}, "max_skipped_steps: -1, expected 0 or more"),
    ],
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(ConfigError, match=message):
        Apnet2Config(**setting).check_values()


class Terminal:
    """A stream that says it is a terminal, or not, and keeps what is written."""

    def __init__(self, is_terminal: bool):
        self.is_terminal = is_terminal
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(corpus, tmp_path, monkeypatch, is_terminal):
    stream = Terminal(is_terminal)
    monkeypatch.setattr(
        run, "tqdm", lambda **settings: tqdm(**settings | {"file": stream, "mininterval": 0, "ncols": 120})
    )
    fit(small_config(corpus, tmp_path))
    if is_terminal:
        assert "4/4" in stream.text and "step" in stream.text and "s of audio/s" in stream.text
    else:
        assert stream.text == ""
