"""Runs that are killed go on as if nothing had happened."""

import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trainer.io
import trainer.trainer
from small_run import change_config, fit, in_child, make_corpus, make_trainer, small_config, watch
from torch.utils._pytree import tree_flatten

from apnet2_tts_plugin.config import OFFICIAL_DECAY
from apnet2_tts_plugin.errors import CheckpointError, ConfigError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.training import session
from apnet2_tts_plugin.training.state import newest_checkpoint, numbered_files

EPOCHS, STEPS_PER_EPOCH = 3, 3
N_STEPS = EPOCHS * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def resumable_config(corpus, out, **settings):
    """A run of which not all checkpoints are kept."""
    defaults = {"epochs": EPOCHS, "batch_size": 2, "save_n_checkpoints": 2}
    return small_config(corpus, out, **defaults | settings)


def start(corpus, folder: Path, kill_after=0, kill_in_save=0, wait_after=None, workers=0):
    """Start a run, or go on with the one that is there, in a child; `diary` gets a line for each step it begins.

    The child kills itself after `kill_after` steps, or when half of its save number `kill_in_save` is written; after
    `wait_after` steps it waits for a signal.
    """
    config = resumable_config(corpus, folder / "out", num_loader_workers=workers)
    runs = sorted(path.parent for path in folder.glob("out/*/checkpoint_*.pth"))
    args = {"continue_path": str(runs[0])} if runs else {}
    saves = 0

    def kill(trainer_):
        if trainer_.total_steps_done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer_.total_steps_done == wait_after:
            deadline = time.monotonic() + 60
            while trainer_.model.session.signals.received is None and time.monotonic() < deadline:
                time.sleep(0.01)

    def save_half(state, path, **kwargs):
        nonlocal saves
        saves += 1
        torch.save(state, path)
        if saves == kill_in_save:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def main():
        trainer.io.save_fsspec = save_half
        training = make_trainer(config, callbacks={"on_train_step_end": kill}, **args)

        def note_batch(batch):
            if training.model.training:
                drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
                names = [Path(path).name for path in batch["path"]]
                sums = batch["waveform"].square().sum(dim=1).tolist()
                line = [training.total_steps_done, training.optimizer[0].param_groups[0]["lr"], *drawn, *names, *sums]
                with (folder / "diary").open("a") as file:
                    print(json.dumps(line), file=file, flush=True)
            return batch

        training.model.format_batch = note_batch
        training.fit()

    (folder / "diary").touch()
    return in_child(main)


def exit_code(process) -> int:
    process.join()
    return process.exitcode


def steps_begun(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / "diary").read_text().splitlines()]


def assert_equal(a, b) -> None:
    """Bitwise equality of nested containers."""
    (leaves, structure), (others, other_structure) = tree_flatten(a), tree_flatten(b)
    assert structure == other_structure
    for x, y in zip(leaves, others, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y or x != x


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert exit_code(start(corpus, folder)) == 0
    return folder


def outcome(folder: Path) -> tuple[dict, list]:
    """What a finished run leaves: its averages, and all that is to be the same to the last bit."""
    (run,) = folder.glob("out/*")
    last = torch.load(run / f"checkpoint_{N_STEPS}.pth", weights_only=True)
    best = torch.load(run / "best_model.pth", weights_only=True)
    averages = {name: value for name, value in last["run"]["averages"].items() if not name.endswith("_time")}
    states = [last[name] for name in ("model", "optimizer", "scheduler", "step", "epoch", "model_loss")]
    return averages, [*states, best["model"], best["model_loss"]]


def compare(folder: Path, uninterrupted: Path) -> None:
    """The run in `folder` ended as the one that was never interrupted, and began each of its steps as that one did."""
    (averages, state), (expected_averages, expected_state) = outcome(folder), outcome(uninterrupted)
    assert averages == pytest.approx(expected_averages, rel=1e-12)
    assert_equal(state, expected_state)
    expected = {step: line for step, *line in steps_begun(uninterrupted)}
    assert len(expected) == N_STEPS and {step for step, *_ in steps_begun(folder)} == set(expected)
    assert all(line == expected[step] for step, *line in steps_begun(folder))


def test_killed_after_steps_and_in_saves(corpus, uninterrupted, tmp_path):
    """Within an epoch, at its end, in the middle of writing a checkpoint and of writing the best model."""
    for kill in ({"kill_after": 1}, {"kill_after": 3}, {"kill_in_save": 1}, {"kill_in_save": 2}):
        assert exit_code(start(corpus, tmp_path, **kill)) == -signal.SIGKILL, kill
    assert list(tmp_path.glob("out/*/.*.tmp"))  # the last kill left half a file
    assert exit_code(start(corpus, tmp_path)) == 0
    assert not list(tmp_path.glob("out/*/.*.tmp"))
    compare(tmp_path, uninterrupted)


def wait_for_steps(process, folder: Path, n_steps: int) -> None:
    """Wait until a run has begun `n_steps` more steps, or is over."""
    goal = len(steps_begun(folder)) + n_steps
    while len(steps_begun(folder)) < goal and process.is_alive():
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_moments(corpus, uninterrupted, tmp_path):
    chance = random.Random(7)
    while True:
        process = start(corpus, tmp_path)
        wait_for_steps(process, tmp_path, chance.randint(3, 6))
        process.join(chance.uniform(0, 0.5))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
    assert process.exitcode == 0
    compare(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("number", "workers"), [pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow), (signal.SIGINT, 2)]
)
def test_signals_save_after_the_step(corpus, uninterrupted, tmp_path, number, workers):
    """To the whole group of processes, as terminals and clusters send them."""
    process = start(corpus, tmp_path, workers=workers, wait_after=4)
    wait_for_steps(process, tmp_path, 4)
    os.killpg(process.pid, number)
    assert exit_code(process) == 130
    (run,) = tmp_path.glob("out/*")
    steps = len(steps_begun(tmp_path))
    assert newest_checkpoint(run).name in {f"checkpoint_{n}.pth" for n in (steps, steps - 1)}
    assert exit_code(start(corpus, tmp_path, workers=workers)) == 0
    compare(tmp_path, uninterrupted)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The folder of a run of one epoch, which is to make another one."""
    folder = Path(fit(resumable_config(corpus, tmp_path_factory.mktemp("finished"), epochs=1)).output_path)
    change_config(folder, epochs=2)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """Its copy, to go on with."""
    return shutil.copytree(finished, tmp_path / "run")


def go_on(corpus, folder: Path):
    """Go on with the run in `folder`, with the configuration that is there."""
    training = fit(resumable_config(corpus, folder.parent), continue_path=str(folder))
    assert training.total_steps_done == 6
    return training


def change_checkpoint(path: Path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_damaged_newest_files_are_left_out(corpus, folder, caplog):
    damaged = [folder / f"checkpoint_{n}.pth" for n in (3, 98, 99)]
    content = bytearray(damaged[0].read_bytes())
    damaged[0].write_bytes(content[: len(content) // 2])
    damaged[1].write_bytes(b"")
    content[len(content) // 2] ^= 1
    damaged[2].write_bytes(content)
    assert newest_checkpoint(folder).name == "best_model_3.pth"
    for path in damaged:
        assert any(path.name in message and "going back" in message for message in caplog.messages)
        assert not path.exists() and path.with_suffix(".pth.damaged").exists()
    go_on(corpus, folder)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "Permission denied")])
def test_a_whole_checkpoint_that_cannot_be_read_stays_as_it_is(folder, monkeypatch, error):
    """Whether its content is compared or loaded when that happens; and the one before is not taken instead."""
    before = names(folder)

    def fail(*args, **kwargs):
        raise error

    for owner, name in ((zipfile.ZipFile, "testzip"), (torch, "load")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(CheckpointError, match=r"checkpoint_3\.pth: (cannot be read|not a readable file)"):
                newest_checkpoint(folder)
        assert names(folder) == before
    assert newest_checkpoint(folder).name == "checkpoint_3.pth"


def test_what_could_not_be_loaded_is_not_saved(corpus, tmp_path, caplog):
    training = make_trainer(resumable_config(corpus, tmp_path))
    training.total_steps_done = 1
    training.optimizer[0].param_groups[0]["lr"] = np.float64(0.5)
    training.save_checkpoint()
    folder = Path(training.output_path)
    assert names(folder) == {"checkpoint_0.pth"}
    assert caplog.messages[-1].startswith(f"Not saved: {folder / 'checkpoint_1.pth'} (")
    assert caplog.messages[-1].endswith("training goes on with the files saved before")


def test_a_run_goes_on_whose_settings_were_numbers_of_numpy(corpus, tmp_path):
    settings = {"lr_gen": 2e-4 * np.sqrt(2), "batch_size": np.int64(2), "epochs": 1}
    folder = Path(fit(resumable_config(corpus, tmp_path, **settings)).output_path)
    change_config(folder, epochs=2)
    go_on(corpus, folder)
    assert not list(folder.glob("*.damaged"))


def test_a_run_knows_its_data_from_any_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    config = resumable_config(Path(corpus.name), Path(os.path.relpath(tmp_path)), epochs=1)
    folder = Path(fit(config).output_path).resolve()
    monkeypatch.chdir("/")
    change_config(folder, epochs=2)
    go_on(corpus, folder)
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["data_path"], settings["output_path"]) == (str(corpus), str(tmp_path))


def said(caplog, start: str) -> str:
    """The end of the only message with this start."""
    (message,) = (message for message in caplog.messages if message.startswith(start))
    return message.removeprefix(start)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The first words of a command that runs a recipe in a folder with a blank."""
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "my recipes" / "train.py"), "--steps", "3"])
    monkeypatch.setattr(sys, "orig_argv", ["python", *sys.argv])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    return ["python", sys.argv[0]]


def test_a_run_says_what_is_trained_and_how_it_goes_on(corpus, tmp_path, caplog, script):
    folder = Path(fit(resumable_config(corpus, tmp_path / "my runs", epochs=1)).output_path)
    assert "Training from scratch" in caplog.messages
    assert "Training on 6 recordings (0.1 minutes), held out: 1 recordings (0.0 minutes)" in caplog.messages
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks(corpus, tmp_path)]
    assert said(caplog, "Parameters: ") == "generator {:,}, discriminators {:,} (mpd) and {:,} (mrd)".format(*sizes)
    best = torch.load(folder / "best_model.pth", weights_only=True)["model_loss"]["eval_loss"]
    assert said(caplog, "Best model: ") == f"{folder / 'best_model.pth'} (loss_mel {best:.5g})"
    command = shlex.split(said(caplog, f"To train more epochs, raise epochs in {folder / 'config.json'}; then: "))
    assert command == [*script, "--continue_path", str(folder)]
    caplog.clear()
    change_config(folder, epochs=2)
    go_on(corpus, folder)
    assert f"Going on from {folder / 'checkpoint_3.pth'}, after step 3" in caplog.messages
    assert "Training from scratch" not in caplog.messages


def networks(corpus, tmp_path):
    model = Apnet2(resumable_config(corpus, tmp_path))
    model.add_discriminators()
    return model.generator, model.mpd, model.mrd


def test_an_interrupt_says_how_to_go_on(corpus, tmp_path, monkeypatch, caplog, script):
    def interrupt(trainer_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "_exit", lambda code: None)  # which is how the Trainer ends then
    training = make_trainer(resumable_config(corpus, tmp_path), callbacks={"on_train_step_start": interrupt})
    training.fit()
    assert shlex.split(said(caplog, "To go on: ")) == [*script, "--continue_path", str(training.output_path)]


def test_figures_on_the_console_have_their_names(corpus, tmp_path, caplog):
    fit(resumable_config(corpus, tmp_path, epochs=2, print_eval=True))
    text = "\n".join(caplog.messages)
    assert {"lr_gen: 0.0002  (0.0002)", "lr_disc: 0.0002  (0.0002)"} <= set(text.split("     | > ".join(["\n", ""])))
    assert "avg_loss_gen: " in text and "current_lr" not in text and "loss_1" not in text
    figures = re.findall(r"\| > \S+: ([-\d.e+]+)  \(([-\d.e+]+)\)", text)
    assert len(figures) > 50
    assert all(len(figure.replace(".", "").lstrip("0-")) <= 6 for pair in figures for figure in pair)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    (tmp_path / "checkpoint_1.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: no checkpoint that could be read"):
        newest_checkpoint(tmp_path)


MISFIT = "its optimizers or schedules do not fit"


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"mpd_channels": [4, 5]}, None, r"mpd\.parts\.0\S* is \(4,.*\), expected \(5,.*the run's config.json another"),
        ({"optimizer": "Adam"}, None, "made with optimizer 'AdamW', expected 'Adam' as configured"),
        (
            {"lr_scheduler_gen": "StepLR", "lr_scheduler_gen_params": {"step_size": 1}},
            None,
            "made with lr_scheduler_gen 'ExponentialLR', expected 'StepLR' as configured",
        ),
        ({}, lambda content: content["model"].popitem(), r"the weights do not fit: mrd\.\S* is missing"),
        ({}, lambda content: content.pop("optimizer"), MISFIT),
        ({}, lambda content: content["optimizer"].pop(), MISFIT),
        ({}, lambda content: content["optimizer"].reverse(), MISFIT),
        ({}, lambda content: content["optimizer"][1].pop("state"), MISFIT),
        ({}, lambda content: content["optimizer"][1]["state"][0].update(exp_avg=torch.zeros(3)), MISFIT),
        ({}, lambda content: content["scheduler"].pop(), MISFIT),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(corpus, folder, settings, change, message):
    change_config(folder, **settings)
    if change:
        change_checkpoint(folder / "checkpoint_3.pth", change)
    config = resumable_config(corpus, folder)
    model = Apnet2(config)
    before = {name: tensor.clone() for name, tensor in model.generator.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        make_trainer(config, model=model, continue_path=str(folder))
    assert str(error.value).startswith(str(folder / "checkpoint_3.pth")) and "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.generator.state_dict().items())


def test_settings_without_effect_on_a_run_that_goes_on_are_named(corpus, folder, caplog):
    betas = {"betas": [0.5, 0.9], "weight_decay": 0.01, "fused": True}
    change_config(folder, lr_gen=0.1, lr_scheduler_disc_params={"gamma": 0.5}, optimizer_params=betas)
    training = go_on(corpus, folder)
    advice = "without effect on a run that goes on; --restore_path starts another one with it"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"optimizer_params.betas: (0.5, 0.9) (it stays (0.8, 0.99)): {advice}",
        f"lr_scheduler_disc_params.gamma: 0.5 (it stays {OFFICIAL_DECAY}): {advice}",
        f"lr_gen: 0.1 (it stays 0.0002): {advice}",
    ]
    assert [o.param_groups[0]["lr"] for o in training.optimizer] == pytest.approx([2e-4 * OFFICIAL_DECAY**6] * 2)


@pytest.mark.parametrize(("target", "last"), [("loss_mel", 3), ("loss_real", 6)])
def test_a_worse_model_does_not_replace_the_best_one_after_a_resume(corpus, folder, target, last):
    """Unless it is the best one by another metric."""
    change_checkpoint(folder / "checkpoint_3.pth", lambda content: content["model_loss"].update(eval_loss=1e-9))
    change_config(folder, target_loss=target)
    go_on(corpus, folder)
    assert torch.load(folder / "best_model.pth", weights_only=True)["step"] == last


def test_more_epochs_can_be_added(corpus, folder, tmp_path):
    resumed = go_on(corpus, folder)
    straight = fit(resumable_config(corpus, tmp_path / "straight", epochs=2))
    torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("save_checkpoints", [True, False])
def test_a_crash_before_the_first_save_keeps_the_logs(corpus, tmp_path, save_checkpoints):
    config = resumable_config(corpus, tmp_path, save_checkpoints=save_checkpoints)
    training = make_trainer(config, callbacks={"on_train_step_start": lambda trainer_: 1 / 0})
    with pytest.raises(SystemExit):
        training.fit()
    folder = Path(training.output_path)
    assert (folder / "trainer_0_log.txt").is_file()
    assert (folder / "checkpoint_0.pth").is_file() == save_checkpoints


@pytest.mark.parametrize(("kept", "left"), [(2, [3, 2]), (0, [3, 2, 1, 0]), (None, [3, 2, 1, 0])])
def test_the_last_checkpoints_are_kept(corpus, tmp_path, kept, left):
    folder = Path(fit(resumable_config(corpus, tmp_path, save_step=1, save_n_checkpoints=kept, epochs=1)).output_path)
    assert [path.name for path in numbered_files(folder, "checkpoint")] == [f"checkpoint_{n}.pth" for n in left]
    assert names(folder) == {*(f"checkpoint_{n}.pth" for n in left), "best_model.pth", "best_model_3.pth"}


def test_the_configuration_of_a_run_is_written_whole(corpus, folder, monkeypatch):
    before = (folder / "config.json").read_text()
    monkeypatch.setattr(Path, "write_text", lambda *args, **kwargs: full_disk())
    with pytest.raises(OSError, match="No space left"):
        go_on(corpus, folder)
    assert (folder / "config.json").read_text() == before
    monkeypatch.undo()
    go_on(corpus, folder)
    assert json.loads((folder / "config.json").read_text())["epochs"] == 2


def full_disk():
    raise OSError(28, "No space left on device")


def full_disk_under_torch():
    """On closing its file, torch replaces the system's error by one of its own."""
    try:
        full_disk()
    finally:
        raise RuntimeError("unexpected pos 1344 vs 1238")


def names(folder: Path) -> set[str]:
    """Of the checkpoints, and of all hidden files."""
    return {path.name for pattern in ("*.pth", ".*") for path in folder.glob(pattern)}


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (full_disk, "No space left on device"),
        (full_disk_under_torch, "No space left on device"),
        (lambda: None, "not a whole torch file"),
    ],
)
def test_a_full_disk_does_not_end_the_run(corpus, tmp_path, monkeypatch, caplog, fail, reason):
    """In the second of three epochs it takes but half of each file; each epoch gives the best model so far."""
    config = resumable_config(corpus, tmp_path, save_step=STEPS_PER_EPOCH)
    left = []

    def save_half(config, model, path, *, current_step, **state):
        trainer.io.save_model(config, model, path, current_step=current_step, **state)
        if current_step == 6:
            os.truncate(path, os.path.getsize(path) // 2)
            fail()

    def look(trainer_):
        if trainer_.total_steps_done == 6:
            left.append(names(Path(trainer_.output_path)))

    monkeypatch.setattr(session, "save_model", save_half)
    training = make_trainer(config, callbacks={"on_train_step_start": look})
    watch(training.model, "eval_step", lambda: {"loss_mel": 1 / training.total_steps_done})
    training.fit()
    folder = Path(training.output_path)
    assert left == [{"checkpoint_0.pth", "checkpoint_3.pth", "best_model_3.pth", "best_model.pth"}]
    assert names(folder) == {"checkpoint_3.pth", "checkpoint_9.pth", "best_model_9.pth", "best_model.pth"}
    assert torch.load(folder / "best_model.pth", weights_only=True)["model_loss"]["eval_loss"] == 1 / 9
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(messages) == 2
    for message, name in zip(messages, ("checkpoint_6.pth", "best_model_6.pth"), strict=True):
        assert message.startswith(f"Not saved: {folder / name} (") and reason in message and "\n" not in message


def test_a_checkpoint_that_was_not_written_is_tried_again(corpus, tmp_path, monkeypatch):
    """By the save that a signal asks for, after the same step."""
    training = make_trainer(resumable_config(corpus, tmp_path))
    training.total_steps_done = 1
    write = session.save_model
    monkeypatch.setattr(session, "save_model", lambda *args, **kwargs: full_disk())
    training.save_checkpoint()
    assert names(Path(training.output_path)) == {"checkpoint_0.pth"}
    monkeypatch.setattr(session, "save_model", write)
    training.save_checkpoint()
    assert names(Path(training.output_path)) == {"checkpoint_0.pth", "checkpoint_1.pth"}


@pytest.mark.parametrize("links", [True, False])
def test_the_best_model_takes_its_room_once(corpus, tmp_path, monkeypatch, links):
    """Where the file system has second names for a file."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    folder = Path(fit(resumable_config(corpus, tmp_path, epochs=1)).output_path)
    best, numbered = folder / "best_model.pth", folder / "best_model_3.pth"
    assert best.samefile(numbered) == links and best.read_bytes() == numbered.read_bytes()


def test_a_best_model_without_room_for_its_copy(corpus, tmp_path, monkeypatch, caplog):
    training = make_trainer(resumable_config(corpus, tmp_path, epochs=1))
    folder = Path(training.output_path)
    monkeypatch.setattr(os, "link", lambda *paths: full_disk())
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: full_disk())
    training.fit()
    assert names(folder) >= {"best_model_3.pth", "checkpoint_3.pth"} and "best_model.pth" not in names(folder)
    assert f"Not saved: {folder / 'best_model.pth'} ([Errno 28] No space left on device)" in caplog.text


def test_a_second_run_of_the_same_minute_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.trainer, "get_experiment_folder_path", lambda root, name: Path(root, name))
    folder = Path(make_trainer(resumable_config(corpus, tmp_path)).output_path)
    before = {path: path.read_bytes() for path in (folder / "checkpoint_0.pth", folder / "config.json")}
    with pytest.raises(ConfigError, match=r"run_name: 'test', expected another .* start again in a minute") as error:
        make_trainer(resumable_config(corpus, tmp_path, batch_size=3))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert names(folder) == {"checkpoint_0.pth"}
    assert {path: path.read_bytes() for path in before} == before
