"""Runs that are killed go on as if nothing had happened."""

import json
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trainer.io
import trainer.trainer
from small_run import fit, in_child, make_corpus, make_trainer, small_config

from apnet2_tts_plugin import run as run_module
from apnet2_tts_plugin.checkpoints import CheckpointError
from apnet2_tts_plugin.config import ConfigError
from apnet2_tts_plugin.run import newest_checkpoint, numbered_files, rng_states, set_rng_states

EPOCHS, STEPS_PER_EPOCH = 3, 3
N_STEPS = EPOCHS * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def resumable_config(corpus, out, **settings):
    """A run of which not all checkpoints are kept."""
    defaults = {"epochs": EPOCHS, "batch_size": 2, "save_n_checkpoints": 2}
    return small_config(corpus, out, **defaults | settings)


def start(corpus, out, diary: Path, kill_after=0, kill_in_save=0, wait_after=None, workers=0):
    """Start a run, or go on with the one in `out`, in a child; `diary` gets a line for each step.

    The child kills itself after `kill_after` steps, or when half of its save number `kill_in_save` is written; after
    `wait_after` steps it waits for a signal.
    """
    config = resumable_config(corpus, out, num_loader_workers=workers)
    folders = sorted(path for path in out.glob("*") if numbered_files(path, "checkpoint"))
    args = {"continue_path": str(folders[0])} if folders else {}
    saves = 0

    def write(trainer_):
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        lr = trainer_.optimizer[0].param_groups[0]["lr"]
        with diary.open("a") as file:
            print(json.dumps([trainer_.total_steps_done, lr, *drawn]), file=file, flush=True)

    def kill(trainer_):
        if trainer_.total_steps_done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer_.total_steps_done == wait_after:
            deadline = time.monotonic() + 60
            while trainer_.model.run.signal is None and time.monotonic() < deadline:
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
        training = make_trainer(config, callbacks={"on_train_step_start": write, "on_train_step_end": kill}, **args)
        optimize = training.model.optimize

        def note_batch(batch, trainer_):
            with diary.with_suffix(".batches").open("a") as file:
                names = [Path(path).name for path in batch["path"]]
                sums = [round(float(x), 6) for x in batch["waveform"].square().sum(dim=1)]
                print(json.dumps([trainer_.total_steps_done, names, sums]), file=file, flush=True)
            return optimize(batch, trainer_)

        training.model.optimize = note_batch
        training.fit()

    return in_child(main)


def result(out: Path) -> dict:
    """What the last checkpoint of a finished run holds."""
    (folder,) = out.glob("*")
    path, _ = newest_checkpoint(folder)
    assert path.name == f"checkpoint_{N_STEPS}.pth"
    return torch.load(path, weights_only=True)


def last_of_each_step(diary: Path) -> dict:
    """Lines of a diary by step; a step that was made twice must have the same line."""
    lines = {}
    for line in map(json.loads, diary.read_text().splitlines()):
        assert lines.setdefault(line[0], line) == line
    return lines


def assert_equal(a, b, where=""):
    """Bitwise equality of nested containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b or a != a, where


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(corpus, folder / "out", folder / "diary")
    process.join()
    assert process.exitcode == 0
    return folder


def compare(folder: Path, uninterrupted: Path):
    expected, found = result(uninterrupted / "out"), result(folder / "out")
    for key in ("model", "optimizer", "scheduler", "step", "epoch", "model_loss"):
        assert_equal(expected[key], found[key], key)
    timeless = [
        {name: value for name, value in content["run"]["averages"].items() if not name.endswith("_time")}
        for content in (expected, found)
    ]
    assert timeless[0] == pytest.approx(timeless[1], rel=1e-12)
    for name in ("diary", "diary.batches"):
        assert last_of_each_step(folder / name) == last_of_each_step(uninterrupted / name)
    best = [torch.load(next((f / "out").glob("*/best_model.pth")), weights_only=True) for f in (folder, uninterrupted)]
    assert_equal(best[0]["model"], best[1]["model"])
    assert best[0]["model_loss"] == best[1]["model_loss"]


def test_killed_after_steps_and_in_saves(corpus, uninterrupted, tmp_path):
    """Within an epoch, at its end, in the middle of writing a checkpoint and of writing the best model."""
    for kill in ({"kill_after": 1}, {"kill_after": 3}, {"kill_in_save": 1}, {"kill_in_save": 2}):
        process = start(corpus, tmp_path / "out", tmp_path / "diary", **kill)
        process.join()
        assert process.exitcode == -signal.SIGKILL, kill
    assert list(tmp_path.glob("out/*/.*.tmp"))  # the last kill left half a file
    process = start(corpus, tmp_path / "out", tmp_path / "diary")
    process.join()
    assert process.exitcode == 0
    assert not list(tmp_path.glob("out/*/.*.tmp"))
    compare(tmp_path, uninterrupted)


def wait_for_steps(process, diary: Path, n_steps: int) -> None:
    """Wait until a run has begun `n_steps` more steps, or is over."""
    diary.touch()
    goal = len(diary.read_text().splitlines()) + n_steps
    while len(diary.read_text().splitlines()) < goal and process.is_alive():
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_moments(corpus, uninterrupted, tmp_path):
    chance = random.Random(7)
    while True:
        process = start(corpus, tmp_path / "out", tmp_path / "diary")
        wait_for_steps(process, tmp_path / "diary", chance.randint(3, 6))
        process.join(chance.uniform(0, 0.5))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
    assert process.exitcode == 0
    compare(tmp_path, uninterrupted)


@pytest.mark.slow
def test_the_same_batches_with_workers(corpus, uninterrupted, tmp_path):
    start(corpus, tmp_path / "out", tmp_path / "diary", kill_after=4, workers=2).join()
    process = start(corpus, tmp_path / "out", tmp_path / "diary", workers=2)
    process.join()
    assert process.exitcode == 0
    batches = last_of_each_step(tmp_path / "diary.batches")
    assert batches == last_of_each_step(uninterrupted / "diary.batches")


@pytest.mark.parametrize(
    ("number", "workers"), [pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow), (signal.SIGINT, 2)]
)
def test_signals_save_after_the_step(corpus, uninterrupted, tmp_path, number, workers):
    """To the whole group of processes, as terminals and clusters send them."""
    diary = tmp_path / "diary"
    process = start(corpus, tmp_path / "out", diary, workers=workers, wait_after=4)
    wait_for_steps(process, diary, 4)
    os.killpg(process.pid, number)
    process.join()
    assert process.exitcode == 130
    (folder,) = (tmp_path / "out").glob("*")
    steps = len(diary.read_text().splitlines())
    assert newest_checkpoint(folder)[0].name in {f"checkpoint_{n}.pth" for n in (steps, steps - 1)}
    process = start(corpus, tmp_path / "out", diary)
    process.join()
    assert process.exitcode == 0
    compare(tmp_path, uninterrupted)


def test_damaged_newest_files_are_left_out(corpus, tmp_path, caplog):
    folder = Path(fit(resumable_config(corpus, tmp_path, epochs=2)).output_path)
    newest, older, *_ = sorted(
        [*numbered_files(folder, "checkpoint"), *numbered_files(folder, "best_model")],
        key=lambda path: int(path.stem.rpartition("_")[2]),
        reverse=True,
    )
    content = bytearray(newest.read_bytes())
    newest.write_bytes(content[: len(content) // 2])
    (folder / "checkpoint_99.pth").write_bytes(b"")
    content[len(content) // 2] ^= 1
    (folder / "checkpoint_98.pth").write_bytes(content)
    with caplog.at_level(logging.WARNING, run_module.logger.name):
        assert newest_checkpoint(folder)[0] == older
    for name in (newest.name, "checkpoint_99.pth", "checkpoint_98.pth"):
        assert any(name in message and "going back" in message for message in caplog.messages)
        assert not (folder / name).exists() and (folder / f"{name}.damaged").exists()
    resumed = fit(resumable_config(corpus, tmp_path), continue_path=str(folder))
    assert resumed.total_steps_done == 6


def test_a_folder_without_checkpoints_is_named(tmp_path):
    (tmp_path / "checkpoint_1.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: no checkpoint that could be read"):
        newest_checkpoint(tmp_path)


def test_a_worse_model_does_not_replace_the_best_one_after_a_resume(corpus, tmp_path):
    folder = Path(fit(resumable_config(corpus, tmp_path, epochs=1)).output_path)
    best = torch.load(folder / "best_model.pth", weights_only=True)
    best["model_loss"]["eval_loss"] = 1e-9  # nothing beats it
    torch.save(best, folder / "best_model.pth")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"epochs": 3}))
    resumed = fit(resumable_config(corpus, tmp_path, epochs=3), continue_path=str(folder))
    assert resumed.total_steps_done == 9
    assert torch.load(folder / "best_model.pth", weights_only=True)["model_loss"]["eval_loss"] == 1e-9


@pytest.mark.slow
def test_more_epochs_can_be_added(corpus, tmp_path):
    folder = Path(fit(resumable_config(corpus, tmp_path, epochs=1)).output_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"epochs": 2}))
    resumed = fit(resumable_config(corpus, tmp_path, epochs=2), continue_path=str(folder))
    straight = fit(resumable_config(corpus, tmp_path / "straight", epochs=2))
    assert resumed.total_steps_done == straight.total_steps_done == 6
    for name, tensor in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("save_checkpoints", [True, False])
def test_a_crash_before_the_first_save_keeps_the_logs(corpus, tmp_path, save_checkpoints):
    def crash(_):
        raise RuntimeError("on purpose")

    config = resumable_config(corpus, tmp_path, save_checkpoints=save_checkpoints)
    training = make_trainer(config, callbacks={"on_train_step_start": crash})
    with pytest.raises(SystemExit):
        training.fit()
    folder = Path(training.output_path)
    assert (folder / "trainer_0_log.txt").is_file()
    assert (folder / "checkpoint_0.pth").is_file() == save_checkpoints


def test_only_the_last_checkpoints_are_kept(corpus, tmp_path):
    folder = fit(resumable_config(corpus, tmp_path, save_step=1, save_n_checkpoints=2, epochs=2)).output_path
    assert [path.name for path in numbered_files(folder, "checkpoint")] == ["checkpoint_6.pth", "checkpoint_5.pth"]
    assert len(list(Path(folder).glob("best_model_*.pth"))) == 1
    assert not [path for path in Path(folder).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kept", [0, None])
def test_all_checkpoints_are_kept_on_request(corpus, tmp_path, kept):
    folder = fit(resumable_config(corpus, tmp_path, save_step=1, save_n_checkpoints=kept, epochs=1)).output_path
    assert len(numbered_files(folder, "checkpoint")) == 4


def test_the_best_model_survives_damage_to_its_copy(corpus, tmp_path):
    folder = Path(fit(resumable_config(corpus, tmp_path, epochs=1)).output_path)
    (best,) = folder.glob("best_model_*.pth")
    content = torch.load(best, weights_only=True)
    content["model_loss"]["eval_loss"] = 1e-9
    torch.save(content, best)
    (folder / "best_model.pth").write_bytes(b"")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"epochs": 2}))
    fit(resumable_config(corpus, tmp_path, epochs=2), continue_path=str(folder))
    assert torch.load(best, weights_only=True)["model_loss"]["eval_loss"] == 1e-9


def test_random_number_generators_are_put_back():
    states = rng_states()
    drawn = [random.random(), np.random.rand(), float(torch.rand(()))]
    set_rng_states(states)
    assert drawn == [random.random(), np.random.rand(), float(torch.rand(()))]


def test_the_configuration_of_a_run_is_written_whole(corpus, tmp_path, monkeypatch):
    folder = Path(fit(resumable_config(corpus, tmp_path, epochs=1)).output_path)
    before = (folder / "config.json").read_text()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        make_trainer(resumable_config(corpus, tmp_path), continue_path=str(folder))
    assert (folder / "config.json").read_text() == before
    monkeypatch.undo()
    (folder / "config.json").write_text(before.replace('"epochs": 1,', '"epochs": 2,'))
    continued = make_trainer(resumable_config(corpus, tmp_path), continue_path=str(folder))
    assert continued.config.epochs == json.loads((folder / "config.json").read_text())["epochs"] == 2


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

    monkeypatch.setattr(run_module, "save_model", save_half)
    training = make_trainer(config, callbacks={"on_train_step_start": look})
    eval_step = training.model.eval_step

    def improve(batch, criterion, optimizer_idx):
        outputs, logged = eval_step(batch, criterion, optimizer_idx)
        return outputs, logged and logged | {"loss_mel": 1 / training.total_steps_done}

    training.model.eval_step = improve
    with caplog.at_level(logging.ERROR, run_module.logger.name):
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
    write = run_module.save_model
    monkeypatch.setattr(run_module, "save_model", lambda *args, **kwargs: full_disk())
    training.save_checkpoint()
    assert names(Path(training.output_path)) == {"checkpoint_0.pth"}
    monkeypatch.setattr(run_module, "save_model", write)
    training.save_checkpoint()
    assert names(Path(training.output_path)) == {"checkpoint_0.pth", "checkpoint_1.pth"}


def test_a_best_model_without_room_for_its_copy(corpus, tmp_path, monkeypatch, caplog):
    training = make_trainer(resumable_config(corpus, tmp_path, epochs=1))
    folder = Path(training.output_path)
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: full_disk())
    with caplog.at_level(logging.ERROR, run_module.logger.name):
        training.fit()
    assert names(folder) >= {"best_model_3.pth", "checkpoint_3.pth"} and "best_model.pth" not in names(folder)
    assert f"Not saved: {folder / 'best_model.pth'} ([Errno 28] No space left on device)" in caplog.text


@pytest.fixture
def same_minute(monkeypatch):
    """The clock stands still: runs of one name get one folder."""
    monkeypatch.setattr(trainer.trainer, "get_experiment_folder_path", lambda root, name: Path(root, name))


def test_a_second_run_of_the_same_minute_is_refused(corpus, tmp_path, same_minute):
    config = resumable_config(corpus, tmp_path)
    folder = Path(make_trainer(config).output_path)
    before, settings = (folder / "checkpoint_0.pth").read_bytes(), (folder / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"run_name: 'test', expected another .* start again in a minute") as error:
        make_trainer(resumable_config(corpus, tmp_path, batch_size=3))
    assert (folder / "config.json").read_bytes() == settings
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert names(folder) == {"checkpoint_0.pth"} and (folder / "checkpoint_0.pth").read_bytes() == before


def test_a_second_run_of_the_same_second_is_refused(corpus, tmp_path, same_minute, monkeypatch):
    """While the first one still writes its first checkpoint."""
    config = resumable_config(corpus, tmp_path)

    def start_another(*args, **kwargs):
        monkeypatch.undo()
        monkeypatch.setattr(trainer.trainer, "get_experiment_folder_path", lambda root, name: Path(root, name))
        with pytest.raises(ConfigError, match="start again in a minute"):
            make_trainer(config)
        trainer.io.save_model(*args, **kwargs)

    monkeypatch.setattr(run_module, "save_model", start_another)
    assert names(Path(make_trainer(config).output_path)) == {"checkpoint_0.pth"}
