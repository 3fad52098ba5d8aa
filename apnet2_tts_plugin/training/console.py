"""What a run says of itself: what is trained on what, its figures under their names, and the command that goes on."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from trainer.logging import BaseDashboardLogger, ConsoleLogger

from apnet2_tts_plugin.training import distributed
from apnet2_tts_plugin.training.corpus import AudioFile
from apnet2_tts_plugin.training.step import DISCRIMINATOR_OPTIMIZER, GENERATOR_OPTIMIZER

NAMES = {  # of what the Trainer calls by the numbers of the optimizers
    f"current_lr_{DISCRIMINATOR_OPTIMIZER}": "lr_disc",
    f"current_lr_{GENERATOR_OPTIMIZER}": "lr_gen",
    f"loss_{GENERATOR_OPTIMIZER}": "loss_gen",
}


class Console(ConsoleLogger):
    """The Trainer's console, with figures under their own names and of a length that can be read."""

    def print_train_step(
        self,
        batch_steps: int,
        step: int,
        global_step: int,
        loss_dict: dict[str, float],
        avg_loss_dict: dict[str, float],
    ) -> None:
        """Figures of a step, and in brackets their averages in this epoch."""
        super().print_train_step(batch_steps, step, global_step, _short(loss_dict), _short(avg_loss_dict))

    def print_eval_step(self, step: int, loss_dict: dict[str, float], avg_loss_dict: dict[str, float]) -> None:
        """Figures of a held-out file, and in brackets their averages so far."""
        super().print_eval_step(step, _short(loss_dict), _short(avg_loss_dict))

    def print_epoch_end(self, epoch: int, avg_loss_dict: dict[str, float]) -> None:
        """Averages of an evaluation, and in brackets what they were in the one before; of some, more is better."""
        if distributed.rank() == 0:
            figures, before = _short(avg_loss_dict), self.old_eval_loss_dict
            rows = [f"     | > {name}: {value}  ({before.get(name, value)})" for name, value in figures.items()]
            self.log_with_flush("\n".join(["\n  --> EVALUATION (BEFORE)", *rows, ""]))
            self.old_eval_loss_dict = figures


def named(figures: dict[str, float]) -> dict[str, float]:
    """The figures, also averages, under their own names."""

    def own(name: str) -> str:
        stem = name.removeprefix("avg_")
        return name.removesuffix(stem) + NAMES.get(stem, stem)

    return {own(name): value for name, value in figures.items()}


def _short(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in named(figures).items()}


def name_figures(dashboard: BaseDashboardLogger) -> None:
    """Have a logger of the Trainer, such as that for TensorBoard, write figures under their own names."""
    write = dashboard.add_scalars
    dashboard.add_scalars = lambda scope_name, scalars, step: write(scope_name, named(scalars), step)


def recordings(files: Iterable[AudioFile]) -> str:
    """How many recordings there are, and how long they are together."""
    files = list(files)
    minutes = sum(file.n_samples / file.sample_rate for file in files) / 60
    return f"{len(files)} recordings ({f'{minutes / 60:.1f} hours' if minutes >= 60 else f'{minutes:.1f} minutes'})"


def parameters(network: nn.Module) -> str:
    """How many parameters a network has."""
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def command_to_go_on(folder: Path) -> str:
    """The command by which the run in `folder` goes on, as a shell takes it, from any folder."""
    main = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m
    script = ["-m", main.name] if main else [str(Path(sys.argv[0]).absolute())]
    command = shlex.join([sys.orig_argv[0], *script, "--continue_path", str(folder.absolute())])
    return f"{command} (by the same launcher)" if distributed.world_size() > 1 else command
