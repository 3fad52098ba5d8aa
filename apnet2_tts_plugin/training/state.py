"""What a resumed run needs to be the same run: its newest file, and the states that are in it."""

import copy
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trainer import Trainer

from apnet2_tts_plugin.errors import CheckpointError, DamagedError, one_line
from apnet2_tts_plugin.weights import checkpoints

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder


def numbered_files(folder: Path, kind: str) -> list[Path]:
    """`<kind>_<steps>.pth` in `folder`, the newest first."""
    paths = [path for path in folder.glob(f"{kind}_*.pth") if path.stem.rpartition("_")[2].isdigit()]
    return sorted(paths, key=_steps, reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """The newest file in a run's folder that is whole; damaged ones are renamed.

    Raises:
        CheckpointError: if there is none, or it cannot be read, though it is not damaged.
    """
    paths = [*numbered_files(folder, "checkpoint"), *numbered_files(folder, "best_model")]
    for path in sorted(paths, key=_steps, reverse=True):
        try:
            checkpoints.verify(path)
        except DamagedError as error:
            logger.warning("Renamed to .damaged, going back to the one before: %s", error)
            path.rename(f"{path}.damaged")  # or it would count as the newest of those to keep
        else:
            checkpoints.read_tensors(path)
            return path
    raise CheckpointError(f"{folder}: no checkpoint that could be read, expected checkpoint_<steps>.pth")


def restore_states(model: nn.Module, trainer: Trainer, content: dict[str, Any], path: Path) -> list[str]:
    """Load networks, optimizers, schedules and gradient scaler of a checkpoint, if all of them fit.

    Args:
        model: The model in training.
        trainer: Its Trainer.
        content: What the checkpoint at `path` holds.
        path: For the messages.

    Returns:
        Settings that have no effect, because the checkpoint has other values of them.

    Raises:
        CheckpointError: if anything is missing or does not fit; the networks are as they were then.
    """
    for name in ("optimizer", "lr_scheduler_disc", "lr_scheduler_gen"):
        saved = content.get("config", {}).get(name, trainer.config[name])
        if saved != trainer.config[name]:
            raise CheckpointError(
                f"{path}: made with {name} {saved!r}, expected {trainer.config[name]!r} as configured"
            )
    state = checkpoints.model_state(content, path)
    checkpoints.check_fit(model, state, path, "is the run's config.json another?")
    if trainer.use_amp_scaler and not content.get("scaler"):
        raise CheckpointError(f"{path}: made without a gradient scaler, expected one with precision 'fp16'")
    try:
        ineffective = ineffective_settings(trainer, content)
        # copies, because an optimizer would keep the file's own, mapped tensors
        for optimizer, saved in zip(trainer.optimizer, copy.deepcopy(content["optimizer"]), strict=True):
            optimizer.load_state_dict(saved)
            _check_shapes(optimizer)
        for schedule, saved in zip(trainer.scheduler, content["scheduler"], strict=True):
            schedule.load_state_dict(saved)
        if trainer.use_amp_scaler:
            trainer.scaler.load_state_dict(content["scaler"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its optimizers or schedules do not fit ({one_line(error)})") from error
    model.load_state_dict(state)
    return ineffective


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape not in ((), parameter.shape):
                raise ValueError(f"{name} of shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")


def ineffective_settings(trainer: Trainer, content: dict[str, Any]) -> list[str]:
    """Settings of the configuration that a checkpoint has other values of; to be asked before its states are loaded."""
    found = {}
    names = (("lr_disc", "lr_scheduler_disc_params"), ("lr_gen", "lr_scheduler_gen_params"))
    for i, (rate, params) in enumerate(names):
        own, saved = trainer.optimizer[i].param_groups[0], content["optimizer"][i]["param_groups"][0]
        found[rate] = own["initial_lr"], saved.get("initial_lr")
        found |= {f"optimizer_params.{name}": (own[name], saved.get(name)) for name in trainer.config.optimizer_params}
        own, saved = trainer.scheduler[i].state_dict(), content["scheduler"][i]
        found |= {f"{params}.{name}": (own[name], saved.get(name)) for name in trainer.config[params] if name in own}
    return [f"{name}: {value} (it stays {kept})" for name, (value, kept) in found.items() if value != kept]


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
