"""The one rule for which weights of a folder are taken."""

import os
from collections.abc import Collection
from pathlib import Path

from apnet2_tts_plugin.errors import CheckpointError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
BEST_NAME = "best_model.pth"
TABLES = ("speakers.pth", "language_ids.pth")  # that coqui writes beside its checkpoints


def find_weights(path: str | os.PathLike, checkpoint_first: bool = False) -> Path:
    """`path` if it is a file; in a folder `model.safetensors`, or else its checkpoint.

    The checkpoint of a folder is `best_model.pth`, or else the only `.pth` file in it, coqui's tables of speakers and
    languages left out.

    Args:
        path: A file, or a folder: an exported or imported model, a run of the Trainer, a model that coqui-tts has.
        checkpoint_first: Prefer the checkpoint, which may have discriminators to go on from.

    Raises:
        CheckpointError: if there is none, or several to choose from.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder, expected weights")
    if not path.is_dir():
        return path
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    found = choose_weights(names, checkpoint_first)
    if found is None:
        names = ", ".join(_checkpoints(names)) or "none"
        raise CheckpointError(
            f"{path}: expected {WEIGHTS_NAME}, {BEST_NAME} or one other .pth file in it, found {names}; name the file"
        )
    return path / found


def choose_weights(names: Collection[str], checkpoint_first: bool = False) -> str | None:
    """The one of the files in a folder that `find_weights` takes; None if there is none, or several to choose from."""
    checkpoints = _checkpoints(names)
    checkpoint = BEST_NAME if BEST_NAME in checkpoints else checkpoints[0] if len(checkpoints) == 1 else None
    safetensors = WEIGHTS_NAME if WEIGHTS_NAME in names else None
    return checkpoint or safetensors if checkpoint_first else safetensors or checkpoint


def _checkpoints(names: Collection[str]) -> list[str]:
    return [name for name in names if name.endswith(".pth") and name not in TABLES]
