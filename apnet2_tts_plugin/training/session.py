"""A training run inside coqui's Trainer: where it stands, how it is saved and resumed, when it stops.

A checkpoint is written between two steps only, and holds all that the next step depends on, so that a resumed run goes
on as if it had never stopped.
"""

import logging
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from trainer.generic_utils import KeepAverage
from trainer.io import save_model

from apnet2_tts_plugin import checkpoints, distributed
from apnet2_tts_plugin.config import EVAL_METRICS, ConfigError

if TYPE_CHECKING:
    from trainer import Trainer

    from apnet2_tts_plugin.model import Apnet2

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder

GRACE = 10  # seconds


class DivergedError(RuntimeError):
    """A run whose losses or gradients are no longer finite; the message is one line."""


class Average(KeepAverage):
    """The mean of all values; the Trainer's own leaves the first one of each name out."""

    def add_value(self, name: str, init_val: float = 0.0, init_iter: int = 1) -> None:
        super().add_value(name, init_val, init_iter)


class Run:
    """What a running Trainer does not know of itself.

    Args:
        model: The model in training.
        trainer: Its Trainer, about to restore a checkpoint if there is one.

    Raises:
        CheckpointError: if nothing can be read that the run could go on or start from.
        LaunchError: if this is one of several processes that cannot find each other.
    """

    def __init__(self, model: "Apnet2", trainer: "Trainer"):
        self.model = model
        self.trainer = trainer
        self.folder = Path(trainer.output_path)
        self.batches_done = 0  # of this epoch
        self.trained = False  # whether the training part of this epoch is over
        self.within_step = False
        self.saved: tuple[int, bool] | None = None  # steps and `trained` of the last checkpoint written
        self.signal: int | None = None
        self.listening: dict[int, Any] = {}  # signals, and what was done about them before
        self.best: float | None = None  # figure of `best_model.pth`; None until it has been looked at
        self.evaluated_steps = -1  # after how many steps the running evaluation began
        self.resumed: dict[str, Any] | None = None
        self.bar: tqdm | None = None
        self.bar_context = ExitStack()
        distributed.join(trainer)
        if trainer.continue_run:
            # the same one for all, whatever a network file system shows the others
            found = newest_checkpoint(self.folder) if distributed.rank() == 0 else None
            path, self.resumed = distributed.gather(found)[0]
            trainer.args.restore_path = str(path)
        elif trainer.args.restore_path:
            logger.info("Restored the %s", checkpoints.restore(model, trainer.args.restore_path))
            trainer.args.restore_path = ""  # the Trainer would take no other file than its own

    def begin(self) -> None:
        """Take up the checkpoint's position, and the Trainer's saving; a new run is saved before its first step.

        Raises:
            ConfigError: if the folder of a new run is another run's already.
            LaunchError: if the processes have not the same files.
        """
        trainer = self.trainer
        if trainer.continue_run and distributed.rank() == 0:
            for path in self.folder.glob(".*.tmp"):  # what a kill left of a save
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            checkpoints.save_config(trainer.config, self.folder)
        distributed.share_weights(self.model)
        self._check_same_files()
        if distributed.rank() > 0:
            trainer.config.run_eval = False  # rank 0 does it, while the others wait
        trainer.save_checkpoint = self.save
        trainer.save_best_model = self.save_best
        if self.resumed:
            trainer.total_steps_done = self.resumed["total_steps"]
            trainer.start_with_eval = self.trained = self.resumed["trained"]
            self.batches_done = self.resumed["samples_done"] // self.samples_per_step
            set_rng_states(self.resumed["rng"])
        elif not trainer.continue_run:
            self._take_folder()

    def _take_folder(self) -> None:
        """Write the first checkpoint, unless the folder, which has the time in its name, is another run's already."""
        taken = False
        if distributed.rank() == 0:
            claim = self.folder / ".claim.tmp"  # the other may have started in the same second
            try:
                claim.touch(exist_ok=False)
            except FileExistsError:
                taken = True
            else:
                taken = any(self.folder.glob("*.pth"))
                if not taken and self.trainer.config.save_checkpoints:
                    self.save()
                claim.unlink()
        if distributed.gather(taken)[0]:
            raise ConfigError(
                f"run_name: {self.trainer.config.run_name!r}, expected another than that of the run in {self.folder}, "
                "which began in the same minute: start again in a minute, or choose another run_name or output_path"
            )

    def _check_same_files(self) -> None:
        """All processes must train on the same files, or their epochs would end at different steps."""
        files = [(file.path.name, file.n_samples) for file in self.trainer.train_loader.dataset.files]
        for rank, others in enumerate(distributed.gather(files)):
            if others != files:
                raise distributed.LaunchError(
                    f"rank {rank} has other training files ({len(others)}) than rank {distributed.rank()} "
                    f"({len(files)}), expected the same ones: see which are skipped, and why"
                )

    @property
    def samples_per_step(self) -> int:
        """Training segments of one step, of all processes together."""
        return self.trainer.config.batch_size * self.trainer.grad_accum_steps * distributed.world_size()

    def epoch_starts(self) -> None:
        """Before the first training step of an epoch, or the first one after a resume."""
        trainer = self.trainer
        batches = trainer.train_loader.batch_sampler
        batches.epoch, batches.start = trainer.epochs_done, self.batches_done
        trainer.keep_avg_train = Average()
        if self.resumed and self.batches_done:
            trainer.keep_avg_train.avg_values = dict(self.resumed["averages"])
            trainer.keep_avg_train.iters = dict(self.resumed["averaged"])
        self.resumed = None
        self._listen()
        if self.bar is None:
            self._open_bar(len(trainer.train_loader))

    def step_starts(self) -> None:
        """Between this and `step_ends`, nothing can be saved."""
        self.within_step = True

    def step_ends(self) -> None:
        """After each training step: save if it is time, and stop if a signal asks for it."""
        self.within_step = False
        self.batches_done += 1
        config = self.trainer.config
        self._show_progress()
        if config.save_checkpoints and self.trainer.total_steps_done % config.save_step == 0:
            self.save()
        if distributed.any_process(self.signal is not None, self.model.device):
            self.save()
            distributed.wait_for_all()  # the first one to leave makes torchrun stop the others
            raise KeyboardInterrupt

    def training_ends(self) -> None:
        """After the last training step of an epoch."""
        self.trained = True

    def evaluates(self) -> None:
        """Before each evaluated file: start new averages for a new evaluation, and stop if a signal asks for it."""
        if self.signal is not None:
            raise KeyboardInterrupt
        is_new = self.evaluated_steps != self.trainer.total_steps_done
        if is_new or not isinstance(self.trainer.keep_avg_eval, Average):
            self.evaluated_steps = self.trainer.total_steps_done
            self.trainer.keep_avg_eval = Average()

    def epoch_ends(self) -> None:
        """After evaluation; the last epoch leaves a checkpoint to go on from with more epochs."""
        last = self.trainer.epochs_done + 1 == self.trainer.config.epochs
        if last and self.trainer.config.save_checkpoints:
            self.save()
        self.batches_done, self.trained = 0, False
        if last:
            self._stop_listening()
            self.bar_context.close()
            self.bar = None
            self.trainer.train_loader = None  # its processes would keep the interpreter from ending

    def save(self) -> None:
        """Write `checkpoint_<steps>.pth` and delete the oldest ones, unless a step is half done or has gone wrong.

        One that cannot be written is tried again at the next call.
        """
        state = (self.trainer.total_steps_done, self.trained)
        if self.within_step or self.saved == state or not self._may_write():
            return
        written = self._write(f"checkpoint_{self.trainer.total_steps_done}.pth", self.trainer.best_loss)
        if written is None:
            return
        self.saved = state
        kept = self.trainer.config.save_n_checkpoints
        for path in numbered_files(self.folder, "checkpoint")[kept:] if kept else []:
            if path != written:
                path.unlink()

    def _may_write(self) -> bool:
        if distributed.rank() > 0:
            return False
        is_finite = all(tensor.isfinite().all() for tensor in self.model.state_dict().values())
        if not is_finite:
            logger.warning("Not saved: the weights are not finite; the last checkpoint is left as it is")
        return is_finite

    def save_best(self) -> None:
        """Write `best_model_<steps>.pth`, and a copy as `best_model.pth`, if no evaluation was better than this one."""
        config = self.trainer.config
        averages = self.trainer.keep_avg_eval if config.run_eval else self.trainer.keep_avg_train
        figure = averages.avg_values.get(f"avg_{config.target_loss}")
        if distributed.rank() > 0 or not averages.avg_values or self.trainer.total_steps_done <= config.save_best_after:
            return
        if figure is None:
            logger.warning("target_loss: there is no %r in %s", config.target_loss, sorted(averages.avg_values))
            return
        sign = -1 if config.target_loss in EVAL_METRICS else 1  # the highest of these is best
        if self.best is None:
            self.best = min([sign * float("inf"), *self._best_on_disk()], key=lambda best: sign * best)
        if not sign * figure < sign * self.best or not self._may_write():
            return
        train_loss = self.trainer.keep_avg_train.avg_values.get(f"avg_{config.target_loss}", float("inf"))
        best_loss = {"train_loss": train_loss, "eval_loss": figure, "target": config.target_loss}
        path = self._write(f"best_model_{self.trainer.total_steps_done}.pth", best_loss)
        if path is None:
            return
        self.best, self.trainer.best_loss = figure, best_loss
        if not config.save_all_best:
            for older in numbered_files(self.folder, "best_model"):
                if older != path:
                    older.unlink()
        write_or_log(self.folder / "best_model.pth", lambda copy: shutil.copyfile(path, copy))

    def _best_on_disk(self) -> list[float]:
        """The figures of this folder's best models, as far as they can be read and are of the same kind."""
        target, figures = self.trainer.config.target_loss, []
        for path in [self.folder / "best_model.pth", *numbered_files(self.folder, "best_model")]:
            with suppress(checkpoints.CheckpointError):
                loss = checkpoints.read_tensors(path).get("model_loss")
                if (
                    isinstance(loss, dict)
                    and loss.get("target", target) == target
                    and loss.get("eval_loss") is not None
                ):
                    figures.append(loss["eval_loss"])
        return figures

    def _write(self, name: str, model_loss: Any) -> Path | None:
        """Write a file to go on from; None if it could not be written."""
        trainer = self.trainer
        path = self.folder / name

        def write(temporary: Path) -> None:
            save_model(
                trainer.config,
                self.model,
                temporary,
                current_step=trainer.total_steps_done,
                epoch=trainer.epochs_done,
                optimizer=trainer.optimizer,
                scheduler=trainer.scheduler,
                scaler=trainer.scaler if trainer.use_amp_scaler else None,
                model_loss=model_loss,
                run=self._state(),
            )
            checkpoints.verify(temporary)

        if not write_or_log(path, write):
            return None
        logger.info("Saved %s", path)
        return path

    def _state(self) -> dict[str, Any]:
        averages = self.trainer.keep_avg_train
        return {
            "total_steps": self.trainer.total_steps_done,
            "samples_done": self.batches_done * self.samples_per_step,
            "trained": self.trained,
            "averages": dict(averages.avg_values) if averages else {},
            "averaged": dict(averages.iters) if averages else {},
            "rng": rng_states(),
        }

    def _listen(self) -> None:
        """Let the first SIGINT or SIGTERM end the run after its step; another SIGINT ends it at once."""
        is_main_thread = threading.current_thread() is threading.main_thread()
        if self.listening or self.signal is not None or not is_main_thread:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell
                self.listening[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self.signal = number
        self._stop_listening()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # clusters and torchrun may each send one
        logger.warning("%s: stopping after this step; Ctrl-C stops at once", signal.Signals(number).name)

    def _stop_listening(self) -> None:
        for number, previous in self.listening.items():
            signal.signal(number, previous)
        self.listening = {}

    def _open_bar(self, steps_per_epoch: int) -> None:
        trainer = self.trainer
        self.bar = tqdm(
            desc="Training",
            total=trainer.config.epochs * steps_per_epoch,
            initial=trainer.total_steps_done,
            unit="step",
            dynamic_ncols=True,
            disable=True if distributed.rank() > 0 else None,
        )
        self.bar_context.callback(self.bar.close)
        if not self.bar.disable:
            self.bar_context.enter_context(logging_redirect_tqdm([logging.getLogger("trainer"), logging.getLogger()]))

    def _show_progress(self) -> None:
        steps_per_second = self.bar.format_dict["rate"]
        if steps_per_second:
            config = self.trainer.config
            seconds = self.samples_per_step * config.seq_len / config.audio.sample_rate
            self.bar.set_postfix_str(f"{steps_per_second * seconds:.1f} s of audio/s", refresh=False)
        self.bar.update()


def leave_signals_to_parent(_worker: int) -> None:
    """For processes that load data: a signal to the whole group must not take them from the step being made.

    SIGTERM is also how they are told to end, so they do that `GRACE` seconds later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, GRACE))


def write_or_log(path: Path, write: Callable[[Path], Any]) -> bool:
    """Write a file whole; one that cannot be written is left as it was, and costs an error in the log, not the run."""
    try:
        checkpoints.write_atomically(path, write)
    except (OSError, RuntimeError, checkpoints.CheckpointError) as error:
        # torch closes its file after the system's error with one of its own, which says nothing
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        logger.error(
            "Not saved: %s (%s); training goes on with the files saved before: make room for the next one",
            path,
            str(cause).partition("\n")[0],
        )
        return False
    return True


def numbered_files(folder: Path, kind: str) -> list[Path]:
    """`<kind>_<steps>.pth` in `folder`, the newest first."""
    paths = [path for path in folder.glob(f"{kind}_*.pth") if path.stem.rpartition("_")[2].isdigit()]
    return sorted(paths, key=_steps, reverse=True)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The newest file in a run's folder that is whole, and the state of the run in it, None in the Trainer's own files.

    Raises:
        CheckpointError: if there is none.
    """
    paths = [*numbered_files(folder, "checkpoint"), *numbered_files(folder, "best_model")]
    for path in sorted(paths, key=_steps, reverse=True):
        try:
            checkpoints.verify(path)
            return path, checkpoints.read_tensors(path).get("run")
        except checkpoints.CheckpointError as error:
            logger.warning("Renamed to .damaged, going back to the one before: %s", error)
            path.rename(f"{path}.damaged")  # or it would count as the newest of those to keep
    raise checkpoints.CheckpointError(f"{folder}: no checkpoint that could be read, expected checkpoint_<steps>.pth")


def _steps(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def rng_states() -> dict[str, Any]:
    """The states of all random number generators, as plain tensors, tuples and numbers."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Put all random number generators back to `states`."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class Watch:
    """Counts the steps in a row that were not finite, and ends the run when there are too many.

    Args:
        limit: Steps in a row that may be skipped.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped = 0

    def step(self, number: int, faults: list[str], files: list[str]) -> None:
        """Take note of step `number`, in which the figures named in `faults` were not finite.

        Raises:
            DivergedError: if more than `limit` steps in a row had faults.
        """
        self.skipped = self.skipped + 1 if faults else 0
        if not faults:
            return
        files = [name for part in distributed.gather(files) for name in part]
        what = f"step {number}: {', '.join(faults)} not finite (files: {', '.join(files) or 'unknown'})"
        if self.skipped > self.limit:
            message = (
                f"{what}; {self.skipped} steps in a row, more than max_skipped_steps ({self.limit}): the run has "
                "diverged. Go on from its last checkpoint with a lower learning rate, or with grad_clip"
            )
            logger.error(message)
            raise DivergedError(message)
        logger.warning("Skipped %s", what)
