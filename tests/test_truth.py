"""What a run says of itself: faults, norms, averages, evaluation, progress; and what it does about faults."""

import functools
import io
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
from small_run import (
    change_config,
    fit,
    make_batch,
    make_corpus,
    make_trainer,
    small_config,
    spoil_middle,
    stub_trainer,
    watch,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apnet2_tts_plugin.errors import ConfigError, DataError, DivergedError, MissingPackageError
from apnet2_tts_plugin.metrics import speech
from apnet2_tts_plugin.training import progress
from apnet2_tts_plugin.training.guard import NonFiniteGuard
from apnet2_tts_plugin.training.state import newest_checkpoint

make_model = functools.partial(tiny.model, mpd_periods=[2], mrd_resolutions=[[512, 128, 512]], max_skipped_steps=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def model():
    return make_model()


def broken() -> dict:
    return {**make_batch(), "waveform": make_batch()["waveform"] * float("nan")}


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def rates(trainer) -> list[float]:
    return [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizer]


def spoil(model) -> None:
    with torch.no_grad():
        next(model.generator.parameters()).fill_(float("nan"))


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(model, caplog):
    trainer = stub_trainer(model)
    before = weights(model)
    _, logged = model.optimize(broken(), trainer)
    assert torch.equal(weights(model), before)
    assert all(math.isfinite(value) for value in logged.values())
    (message,) = caplog.messages
    assert "step 0" in message and "loss_mel" in message and "0.wav, 1.wav" in message
    model.optimize(make_batch(), trainer)
    assert not torch.equal(weights(model), before)


def test_too_many_in_a_row_stop_the_run(model):
    trainer = stub_trainer(model)
    for batch in (broken(), broken(), make_batch(), broken(), broken()):
        model.optimize(batch, trainer)
    with pytest.raises(DivergedError, match=r"3 steps in a row, more than max_skipped_steps \(2\)") as error:
        model.optimize(broken(), trainer)
    assert "0.wav" in str(error.value) and "\n" not in str(error.value)


def test_a_gradient_that_is_not_finite_is_a_fault_too(model):
    trainer = stub_trainer(model)
    next(model.generator.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = weights(model.generator)
    with pytest.raises(DivergedError, match="grad_norm_gen not finite"):
        for _ in range(3):
            model.optimize(make_batch(), trainer)
    assert torch.equal(weights(model.generator), before)


@pytest.fixture(scope="module")
def diverged(corpus, tmp_path_factory):
    """The folder of a run whose weights are spoilt in its sixth step."""
    config = small_config(corpus, tmp_path_factory.mktemp("diverged"), epochs=20, max_skipped_steps=1)
    callback = {"on_train_step_start": lambda trainer: trainer.total_steps_done == 5 and spoil(trainer.model)}
    training = make_trainer(config, callbacks=callback)
    with pytest.raises(SystemExit) as end:
        training.fit()
    assert end.value.code == 1
    return Path(training.output_path)


def test_a_diverged_run_keeps_its_last_good_files(diverged):
    log = (diverged / "trainer_0_log.txt").read_text()
    assert f"Saved {diverged / 'checkpoint_4.pth'}" in log and "step 6" in log and "the run has diverged" in log
    assert newest_checkpoint(diverged).name == "checkpoint_4.pth"  # that of step 6 is not written
    for path in diverged.glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert all(tensor.isfinite().all() for tensor in content["model"].values()), path


def test_a_diverged_run_can_be_restored_with_a_lower_rate(diverged, corpus, tmp_path):
    checkpoint, seen = newest_checkpoint(diverged), []
    training = make_trainer(
        small_config(corpus, tmp_path, epochs=1, lr_gen=1e-5, lr_disc=2e-5),
        callbacks={"on_train_step_start": lambda trainer: seen.append((rates(trainer), weights(trainer.model)))},
        restore_path=str(checkpoint),
    )
    training.fit()
    (first, restored), (second, _) = seen
    assert first == pytest.approx([2e-5, 1e-5]) and second == pytest.approx([2e-5, 1e-5], rel=1e-4)
    expected = torch.load(checkpoint, weights_only=True)["model"]
    assert torch.equal(restored, torch.cat([tensor.flatten() for tensor in expected.values()]))


def test_a_diverged_run_can_go_on_with_clipped_gradients(diverged, corpus, tmp_path):
    folder = shutil.copytree(diverged, tmp_path / "run")
    change_config(folder, grad_clip=[0.01, 0.25], epochs=3)
    training = fit(small_config(corpus, tmp_path), continue_path=str(folder))
    assert training.total_steps_done == 6 and weights(training.model).isfinite().all()
    model, logged = training.model, training.keep_avg_train
    for limit, name, networks in ((0.01, "disc", [model.mpd, model.mrd]), (0.25, "gen", [model.generator])):
        gradients = [parameter.grad for network in networks for parameter in network.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        assert norm == pytest.approx(limit, rel=1e-4) and logged[f"avg_grad_norm_{name}"] > limit


def test_half_precision_scaling_skips_and_recovers(model):
    """The scale is far too large at first: gradients overflow, nothing is updated, schedules stand still."""
    model.config.scheduler_after_epoch = False
    model.guard = NonFiniteGuard(limit=50)
    scaler = torch.GradScaler("cpu", init_scale=2.0**127)
    trainer = stub_trainer(model, use_amp_scaler=True, scaler=scaler)
    before = weights(model.generator)
    model.optimize(make_batch(), trainer)
    assert torch.equal(weights(model.generator), before)
    assert scaler.get_scale() == 2.0**126
    assert rates(trainer)[1] == 2e-4
    for _ in range(40):
        _, logged = model.optimize(make_batch(), trainer)
        if "grad_norm_gen" in logged and "grad_norm_disc" in logged:
            break
    assert not torch.equal(weights(model.generator), before)
    assert max(rates(trainer)) < 2e-4
    unscaled = make_model()
    _, expected = unscaled.optimize(make_batch(), stub_trainer(unscaled))
    assert logged["loss_mel"] == pytest.approx(expected["loss_mel"], rel=0.05)


def test_speech_that_is_not_finite_is_left_out_and_named(model, caplog):
    spoil(model)
    with torch.inference_mode():
        assert model.eval_step(make_batch(1), None, 1) == (None, None)
    (message,) = caplog.messages
    assert message.startswith("Left out of the evaluation: 0.wav: loss_") and message.endswith("waveform not finite")


def test_norms_are_those_of_the_networks(model):
    _, logged = model.optimize(make_batch(), stub_trainer(model))
    for name, network in (("gen", model.generator), ("mpd", model.mpd), ("mrd", model.mrd)):
        norm = torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).norm()
        assert logged[f"grad_norm_{name}"] == pytest.approx(norm.item(), rel=1e-5)
    assert logged["grad_norm_disc"] == pytest.approx(math.hypot(logged["grad_norm_mpd"], logged["grad_norm_mrd"]))


def test_norms_of_terms_on_request(model):
    """With all weights but one at 0, the norm of that term is the norm of the whole."""
    model.config.loss_weights = {name: 0.0 for name in model.config.loss_weights} | {"mel": 45.0}
    model.config.log_term_gradients = True
    model.config.plot_step = 2
    trainer = stub_trainer(model, total_steps_done=2)
    _, logged = model.optimize(make_batch(), trainer)
    assert logged["grad_norm_mel"] == pytest.approx(logged["grad_norm_gen"], rel=1e-4) and logged["grad_norm_mel"] > 0
    assert logged["grad_norm_amplitude"] == 0
    trainer.total_steps_done = 3
    assert "grad_norm_mel" not in model.optimize(make_batch(), trainer)[1]


def test_logged_averages_are_those_of_the_steps_and_files(corpus, tmp_path):
    training = make_trainer(small_config(corpus, tmp_path, epochs=1, eval_split_size=3, batch_size=1))
    calls = {
        "TrainEpochStats/avg_loss_mel": watch(training.model, "optimize"),
        "EvalStats/avg_loss_mel": watch(training.model, "eval_step"),
    }
    training.fit()
    assert [len(noted) for noted in calls.values()] == [4, 3]
    events = EventAccumulator(str(training.output_path)).Reload()
    for tag, noted in calls.items():
        (event,) = events.Scalars(tag)
        mean = sum(float(logged["loss_mel"]) for _, logged in noted) / len(noted)
        assert event.value == pytest.approx(mean, rel=1e-6), tag


@pytest.mark.parametrize("target", ["loss_mel", "pesq", "stoi"])
def test_the_best_model_is_picked_by_any_metric(corpus, tmp_path, monkeypatch, target):
    """The second of three epochs is made the best one by this metric and the worst one by the others."""
    training = make_trainer(small_config(corpus, tmp_path, epochs=3, target_loss=target, eval_metrics=["pesq", "stoi"]))
    good = {"loss_mel": 0.125, "pesq": 0.875, "stoi": 0.875}

    def invent():
        is_second = training.epochs_done == 1
        return {name: value if is_second == (name == target) else 1 - value for name, value in good.items()}

    watch(training.model, "eval_step", invent)
    monkeypatch.setattr(training.model, "_speech_metrics", lambda *args: {})
    training.fit()
    best = torch.load(Path(training.output_path) / "best_model.pth", weights_only=True)
    assert best["epoch"] == 1 and best["model_loss"]["eval_loss"] == good[target]


def test_evaluation_reports_what_is_installed(corpus, tmp_path, monkeypatch, caplog):
    settings = {"epochs": 1, "eval_metrics": ["pesq", "stoi"]}
    values = fit(small_config(corpus, tmp_path, **settings)).keep_avg_eval.avg_values
    assert 1 < values["avg_pesq"] < 4.7 and -1 < values["avg_stoi"] < 1 and values["avg_loss_mel"] > 0

    monkeypatch.setattr(speech, "PACKAGES", {"pesq": "no_such_package", "stoi": "no_such_package"})
    training = fit(small_config(corpus, tmp_path, run_name="without", **settings))
    assert not {"avg_pesq", "avg_stoi"} & set(training.keep_avg_eval.avg_values)
    advice = "pip install 'apnet2-tts-plugin[eval]', or leave them out of eval_metrics"
    assert f"Not evaluated, as not installed: pesq and stoi ({advice})" in caplog.messages
    with pytest.raises(MissingPackageError, match=r"pip install 'apnet2-tts-plugin\[eval\]'"):
        make_trainer(small_config(corpus, tmp_path, run_name="target", target_loss="pesq", **settings))


def test_the_figures_are_those_of_the_files_that_have_some(corpus, tmp_path, caplog):
    """Of three held-out files one has a sample that no figure can be computed from, though it is finite."""
    training = make_trainer(small_config(corpus, tmp_path, eval_split_size=3, epochs=1))
    evaluated = watch(training.model, "eval_step")

    def shout(batch):
        if not training.model.training and batch["path"] == [str(corpus / "05.wav")]:
            batch["waveform"][0, 4000] = 1e20
        return batch

    training.model.format_batch = shout
    training.fit()
    values = [float(logged["loss_mel"]) for _, logged in evaluated]
    assert len(values) == 2 and training.keep_avg_eval["avg_loss_mel"] == pytest.approx(sum(values) / 2)
    assert (Path(training.output_path) / "best_model.pth").is_file()
    (message,) = (message for message in caplog.messages if message.startswith("Left out of the evaluation"))
    assert "05.wav: loss_" in message and "loss_real" in message and message.endswith("not finite")


def add_nan(path: Path, at: int) -> None:
    samples, rate = sf.read(path)
    samples[at] = np.nan
    sf.write(path, samples, rate, subtype="FLOAT")


def test_held_out_files_that_go_bad_do_not_end_the_run(tmp_path, caplog):
    """One is damaged in its middle; one vanishes in the first of three epochs, and all in the second."""
    corpus = make_corpus(tmp_path / "corpus", n_samples=30000)
    good, vanishing = (corpus / f"{i:02}.wav" for i in (4, 6))
    bad = spoil_middle(corpus / "05.wav")

    def remove(trainer):
        for path in [vanishing, good][: trainer.epochs_done + 1]:
            path.unlink(missing_ok=True)

    config = small_config(corpus, tmp_path, eval_split_size=3, batch_size=4, epochs=3)
    training = make_trainer(config, callbacks={"on_train_epoch_end": remove}, figures=True)
    evaluated = watch(training.model, "eval_step")
    training.fit()
    assert training.total_steps_done == 3 and [batch["path"] for batch, _ in evaluated] == [[str(good)]]
    left_out = [message.split(": ")[1] for message in caplog.messages if message.startswith("Left out of the evalu")]
    assert left_out == [str(path) for path in (bad, vanishing, good, vanishing, good, vanishing)]


def test_a_held_out_file_without_its_mel_is_refused_before_the_first_step(tmp_path):
    corpus, mels = make_corpus(tmp_path / "corpus"), tmp_path / "mels"
    mels.mkdir()
    for i in range(6):
        np.save(mels / f"{i:02}.npy", np.zeros((80, 12000 // 256 + 1), np.float32))
    with pytest.raises(DataError, match=r"06\.wav: no mel in .*; 1 of 1 audio files have none"):
        make_trainer(small_config(corpus, tmp_path / "out", feature_path=str(mels)))
    assert not list(tmp_path.glob("out/*/*.pth"))


@pytest.mark.parametrize(
    ("spoil_file", "message"),
    [
        (lambda path: sf.write(path, np.zeros(12000), 22050), "none of 1 audio files can be used"),
        (lambda path: path.write_bytes(b"no sound"), "none of 1 audio files can be used"),
        (lambda path: add_nan(path, at=20000), r"none of 1 audio files can be used; .*06\.wav: it has NaN"),
    ],
)
def test_held_out_files_without_use_are_refused_before_the_first_step(tmp_path, spoil_file, message):
    corpus = make_corpus(tmp_path / "corpus", n_samples=24000)
    spoil_file(corpus / "06.wav")
    with pytest.raises(DataError, match=message):
        make_trainer(small_config(corpus, tmp_path / "out"))
    assert not list(tmp_path.glob("out/*/*.pth"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target_loss": "pesq", "eval_metrics": []}, "target_loss: 'pesq', expected one of"),
        ({"lr_scheduler_gen": None}, "lr_scheduler_gen: None, expected the name of a schedule"),
        ({"precision": "fp8"}, "precision: 'fp8', expected 'bf16' or 'fp16'"),
        ({"max_skipped_steps": -1}, "max_skipped_steps: -1, expected 0 or more"),
    ],
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(ConfigError, match=message):
        tiny.model(**setting)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(corpus, tmp_path, monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    settings = {"file": stream, "mininterval": 0, "ncols": 120}
    tqdm = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **given: tqdm(**given | settings))
    fit(small_config(corpus, tmp_path))
    shown = ("4/4", "step", "s of audio/s") if is_terminal else ()
    assert all(text in stream.getvalue() for text in shown) and bool(stream.getvalue()) == is_terminal
