"""The one rule for which weights of a folder are taken."""

import os
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
    checkpoints = sorted(file for file in path.glob("*.pth") if file.name not in TABLES)
    best = [file for file in checkpoints if file.name == BEST_NAME] or checkpoints
    checkpoint = best[0] if len(best) == 1 else None
    safetensors = path / WEIGHTS_NAME if Path(path, WEIGHTS_NAME).is_file() else None
    found = checkpoint or safetensors if checkpoint_first else safetensors or checkpoint
    if found is None:
        names = ", ".join(file.name for file in checkpoints) or "none"
        raise CheckpointError(
            f"{path}: expected {WEIGHTS_NAME}, {BEST_NAME} or one other .pth file in it, found {names}; name the file"
        )
    return found
