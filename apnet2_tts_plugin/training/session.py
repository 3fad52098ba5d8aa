"""A training run inside coqui's Trainer: where it stands, how it is saved and resumed, when it stops.

A checkpoint is written between two steps only, and holds all that the next step depends on, so that a resumed run goes
on as if it had never stopped.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from trainer import Trainer
from trainer.generic_utils import KeepAverage
from trainer.io import save_model

from apnet2_tts_plugin.config import EVAL_METRICS
from apnet2_tts_plugin.errors import CheckpointError, ConfigError, LaunchError, one_line
from apnet2_tts_plugin.files import write_atomically
from apnet2_tts_plugin.network.precision import emulates_bf16
from apnet2_tts_plugin.training import distributed
from apnet2_tts_plugin.training.console import Console, command_to_go_on, name_figures, parameters, recordings
from apnet2_tts_plugin.training.progress import ProgressBar
from apnet2_tts_plugin.training.signals import StopSignals
from apnet2_tts_plugin.training.state import (
    newest_checkpoint,
    numbered_files,
    restore_states,
    rng_states,
    set_rng_states,
)
from apnet2_tts_plugin.weights.checkpoints import read_tensors, save_config, verify
from apnet2_tts_plugin.weights.find import BEST_NAME, CONFIG_NAME
from apnet2_tts_plugin.weights.origin import other_settings
from apnet2_tts_plugin.weights.restore import restore

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder


class Average(KeepAverage):
    """The mean of all values; the Trainer's own leaves the first one of each name out."""

    def add_value(self, name: str, init_val: float = 0.0, init_iter: int = 1) -> None:
        super().add_value(name, init_val, init_iter)


class Session:
    """What a running Trainer does not know of itself.

    Args:
        model: The model in training.
        trainer: Its Trainer, about to restore a checkpoint if there is one.

    Raises:
        CheckpointError: if nothing can be read that the run could go on or start from.
        LaunchError: if this is one of several processes that cannot find each other.
    """

    def __init__(self, model: nn.Module, trainer: Trainer):
        self.model = model
        self.trainer = trainer
        self.folder = Path(trainer.output_path)
        self.batches_done = 0  # of this epoch
        self.trained = False  # whether the training part of this epoch is over
        self.within_step = False
        self.saved: tuple[int, bool] | None = None  # steps and `trained` of the last checkpoint written
        self.evaluated_steps = -1  # after how many steps the running evaluation began
        self.checkpoint: Path | None = None  # to go on from
        self.averages: tuple[dict, dict] | None = None  # of the part of an epoch before a resume
        self.signals = StopSignals()
        self.bar: ProgressBar | None = None
        self._tidy_console()
        distributed.join(trainer)
        distributed.wait_for_all()  # some may still write features to train on
        if trainer.continue_run:
            # the same one for all, whatever a network file system shows the others
            found = newest_checkpoint(self.folder) if distributed.rank() == 0 else None
            self.checkpoint = distributed.gather(found)[0]
        elif trainer.args.restore_path:
            self._restore(trainer.args.restore_path)
        else:
            logger.info("Training from scratch")
        trainer.args.restore_path = ""  # the Trainer would skip in silence what does not fit

    def _restore(self, path: str) -> None:
        logger.info("Restored from %s: %s", path, restore(self.model, path))
        others = other_settings(self.trainer.config, path)
        if others:
            logger.warning("These weights were trained with other settings: %s", ", ".join(others))

    def _tidy_console(self) -> None:
        trainer = self.trainer
        trainer.c_logger = Console()
        name_figures(trainer.dashboard_logger)
        # more of them than processors do no harm
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        for handler in logging.getLogger("trainer").handlers:  # file names may be of any bytes
            if isinstance(handler, logging.FileHandler) and handler.stream:
                handler.stream.reconfigure(errors="backslashreplace")

    def begin(self) -> None:
        """Take up the checkpoint's position, and the Trainer's saving; a new run is saved before its first step.

        Raises:
            CheckpointError: if something in the checkpoint does not fit.
            ConfigError: if the folder of a new run is another run's already.
            LaunchError: if the processes have not the same files.
        """
        trainer = self.trainer
        self._check_same_files()
        self._warn_of_emulation()
        trainer.save_checkpoint = self.save
        trainer.save_best_model = self.save_best
        if self.checkpoint is not None:
            self._resume(read_tensors(self.checkpoint))
        distributed.broadcast_weights(self.model)
        if distributed.rank() > 0:
            trainer.config.run_eval = False  # rank 0 does it, while the others wait
        else:
            self._introduce()
        if self.checkpoint is None:
            self._take_folder()

    def _warn_of_emulation(self) -> None:
        config, device = self.trainer.config, "cuda" if self.trainer.use_cuda else "cpu"
        is_bf16 = config.precision == "bf16" or device == "cpu"  # where the Trainer knows no other
        if config.mixed_precision and is_bf16 and distributed.rank() == 0 and emulates_bf16(device):
            logger.warning(
                "mixed_precision: this device has no instructions for bfloat16, which makes it several times, or even "
                "a hundred times, as slow as float32; false is faster"
            )

    def _introduce(self) -> None:
        """Say what is trained on what."""
        trainer, model, start = self.trainer, self.model, self.trainer.config.steps_to_start_discriminator
        held_out = recordings(trainer.eval_loader.dataset.files) if trainer.eval_loader else "none"
        logger.info("Training on %s, held out: %s", recordings(trainer.train_loader.dataset.files), held_out)
        joins = f" from step {start} on" if start else ""
        sizes = parameters(model.generator), parameters(model.mpd), parameters(model.mrd), joins
        logger.info("Parameters: generator %s, discriminators %s (mpd) and %s (mrd)%s", *sizes)

    def _resume(self, content: dict[str, Any]) -> None:
        trainer, run = self.trainer, content.get("run")
        if run is None:
            raise CheckpointError(f"{self.checkpoint}: holds no run to go on with; start from it by --restore_path")
        ineffective = restore_states(self.model, trainer, content, self.checkpoint)
        trainer.epochs_done = content["epoch"]
        trainer.best_loss = content.get("model_loss") or trainer.best_loss
        trainer._restore_best_loss = lambda: None  # it would read the file again
        trainer.total_steps_done = run["total_steps"]
        trainer.start_with_eval = self.trained = run["trained"]
        self.batches_done = run["samples_done"] // self.samples_per_step
        self.averages = (run["averages"], run["averaged"])
        set_rng_states(run["rng"])
        logger.info("Going on from %s, after step %d", self.checkpoint, trainer.total_steps_done)
        for setting in ineffective:
            logger.warning(
                "%s: without effect on a run that goes on; --restore_path starts another one with it", setting
            )
        if distributed.rank() == 0:
            for path in self.folder.glob(".*.tmp"):  # what a kill left of a save
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            save_config(trainer.config, self.folder)

    def _take_folder(self) -> None:
        """Write the first checkpoint, unless the folder, which has the time in its name, is another run's already."""
        taken = False
        if distributed.rank() == 0:
            taken = any(self.folder.glob("*.pth"))
            if not taken and self.trainer.config.save_checkpoints:
                self.save()
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
                raise LaunchError(
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
        if self.averages and self.batches_done:
            trainer.keep_avg_train.avg_values, trainer.keep_avg_train.iters = map(dict, self.averages)
        self.averages = None
        self.signals.listen()
        if self.bar is None:
            config = trainer.config
            n_steps = config.epochs * len(trainer.train_loader)
            seconds = self.samples_per_step * config.seq_len / config.audio.sample_rate
            self.bar = ProgressBar(n_steps, trainer.total_steps_done, seconds, hidden=distributed.rank() > 0)

    def step_starts(self) -> None:
        """Between this and `step_ends`, nothing can be saved."""
        self.within_step = True

    def step_ends(self) -> None:
        """After each training step: save if it is time, and stop if a signal asks for it."""
        self.within_step = False
        self.batches_done += 1
        config = self.trainer.config
        self.bar.step()
        if config.save_checkpoints and self.trainer.total_steps_done % config.save_step == 0:
            self.save()
        if distributed.any_process(self.signals.received is not None, self.model.device):
            self.save()
            distributed.wait_for_all()  # the first one to leave makes torchrun stop the others
            raise KeyboardInterrupt

    def training_ends(self) -> None:
        """After the last training step of an epoch."""
        self.trained = True

    def evaluates(self) -> None:
        """Before each evaluated file: start new averages for a new evaluation, and stop if a signal asks for it."""
        if self.signals.received is not None:
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
            self.signals.stop_listening()
            if self.bar is not None:
                self.bar.close()
                self.bar = None
            self.trainer.train_loader = None  # its processes would keep the interpreter from ending
            self._say_how_it_ended()
            distributed.leave()

    def _say_how_it_ended(self) -> None:
        if distributed.rank() > 0:
            return
        best, name = self.folder / BEST_NAME, self.trainer.config.target_loss
        logger.info("Done: %d steps", self.trainer.total_steps_done)
        if best.is_file():
            logger.info("Best model: %s (%s %.5g)", best, name, self.trainer.best_loss["eval_loss"])
        if self.saved:
            config, command = self.folder / CONFIG_NAME, command_to_go_on(self.folder)
            logger.info("To train more epochs, raise epochs in %s; then: %s", config, command)

    def interrupted(self) -> None:
        """After an interrupt, and what the Trainer saves then."""
        if distributed.rank() == 0 and numbered_files(self.folder, "checkpoint"):
            logger.info("To go on: %s", command_to_go_on(self.folder))

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
        """Write `best_model_<steps>.pth`, also called `best_model.pth`, if no evaluation was better than this one."""
        trainer, config = self.trainer, self.trainer.config
        averages = trainer.keep_avg_eval if config.run_eval else trainer.keep_avg_train
        value = averages.avg_values.get(f"avg_{config.target_loss}")
        if distributed.rank() > 0 or not averages.avg_values or trainer.total_steps_done <= config.save_best_after:
            return
        if value is None:
            logger.warning("target_loss: there is no %r in %s", config.target_loss, sorted(averages.avg_values))
            return
        sign = -1 if config.target_loss in EVAL_METRICS else 1  # the highest of these is best
        comparable = trainer.best_loss.get("target") == config.target_loss
        best = trainer.best_loss["eval_loss"] if comparable else sign * float("inf")
        if not sign * value < sign * best or not self._may_write():
            return
        train_loss = trainer.keep_avg_train.avg_values.get(f"avg_{config.target_loss}", float("inf"))
        best_loss = {"train_loss": train_loss, "eval_loss": value, "target": config.target_loss}
        path = self._write(f"best_model_{trainer.total_steps_done}.pth", best_loss)
        if path is None:
            return
        trainer.best_loss = best_loss
        if not config.save_all_best:
            for older in numbered_files(self.folder, "best_model"):
                if older != path:
                    older.unlink()
        write_or_log(self.folder / BEST_NAME, lambda copy: link_or_copy(path, copy))

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
            verify(temporary)
            read_tensors(temporary)

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


def write_or_log(path: Path, write: Callable[[Path], Any]) -> bool:
    """Write a file whole; one that cannot be written is left as it was, and costs an error in the log, not the run."""
    try:
        write_atomically(path, write)
    except (OSError, RuntimeError, CheckpointError) as error:
        # torch closes its file after the system's error with one of its own, which says nothing
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        advice = ": make room for the next one" if isinstance(cause, OSError) else ""
        logger.error(
            "Not saved: %s (%s); training goes on with the files saved before%s", path, one_line(cause), advice
        )
        return False
    return True


def link_or_copy(path: Path, other: Path) -> None:
    """Make `other` a second name of the file at `path`, or a copy where there are no such names."""
    other.unlink()
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
