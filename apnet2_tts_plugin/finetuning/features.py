"""Features to train on, computed once for a whole corpus and kept in files beside the audio (config `feature_path`).

Those that a trained model of coqui's computes begin with its checkpoint (`find_checkpoint`).
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile as sf
from tqdm import tqdm

from apnet2_tts_plugin.checkpoints import CheckpointError, write_atomically

logger = logging.getLogger(__name__)

T = TypeVar("T")

TABLES = ("speakers.pth", "language_ids.pth")  # that coqui writes beside its checkpoints


def write_features(
    paths: list[Path], data_path: Path, feature_path: Path, compute: Callable[[Path], np.ndarray]
) -> int:
    """Write the features of audio files, each file whole or not at all, where `corpus.with_features` looks for them.

    Those of `data_path/a/b.wav` become `feature_path/a/b.npy`. A file whose features are there and not older than its
    audio is done already, so that an interrupted run goes on where it stopped. One that cannot be read, or of which
    `compute` says by an error of this package that it cannot be used, is named in the log and left out, and what was
    made of it before is removed.

    Args:
        paths: Audio files below `data_path`.
        data_path: Folder with the audio.
        feature_path: Folder for the features; made if need be.
        compute: From an audio file to its features (channels, T).

    Returns:
        Number of files written.

    Raises:
        OSError: if a file cannot be written; the rest is not tried.
    """
    targets = pending(paths, data_path, feature_path)
    n_written = 0
    for path, target in tqdm(targets.items(), desc="Computing features", unit="file", disable=None, leave=False):
        features = attempt(path, compute, path)
        if features is None:
            target.unlink(missing_ok=True)
        else:
            write_array(target, features)
            n_written += 1
    if n_written < len(targets):
        logger.warning("Left out %d of %d audio files", len(targets) - n_written, len(paths))
    return n_written


def pending(paths: list[Path], data_path: Path, feature_path: Path) -> dict[Path, Path]:
    """The audio files without features, or with some that are older than the audio, and where these are to be."""
    targets = {path: Path(feature_path, path.relative_to(data_path).with_suffix(".npy")) for path in paths}
    return {path: target for path, target in targets.items() if not _is_done(path, target)}


def _is_done(path: Path, target: Path) -> bool:
    try:
        return target.stat().st_mtime_ns >= path.stat().st_mtime_ns
    except OSError:  # no features yet, or no audio, of which reading it will tell
        return False


def attempt(path: Path, function: Callable[..., T], *arguments: Any) -> T | None:
    """What `function` makes of an audio file; None, and a line in the log, if the file cannot be read or used."""
    try:
        return function(*arguments)
    except (ValueError, sf.LibsndfileError) as error:
        if isinstance(error, ValueError) and not type(error).__module__.startswith(__package__):
            raise  # a mistake of ours, not a property of the file
        logger.warning("Left out %s: %s", path, str(error).removeprefix(f"{path}: "))
    return None


def write_array(path: Path, features: np.ndarray) -> None:
    """Write a `.npy` file in float32, whole or not at all; missing folders are made.

    Raises:
        OSError: if it cannot be written; the message is one line that names it.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, NumPy would add a suffix to it
            np.save(file, np.asarray(features, dtype=np.float32))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:  # NumPy's own, of a disk that is full, has a message alone
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def find_checkpoint(path: str | os.PathLike[Any]) -> Path:
    """`path`, or the checkpoint to take in the folder `path`: `best_model.pth`, or else the only one.

    Raises:
        CheckpointError: if there is none, or several and no `best_model.pth`.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder, expected a trained model of coqui's")
    if not path.is_dir():
        return path
    found = sorted(file for file in path.glob("*.pth") if file.name not in TABLES)
    best = path / "best_model.pth"
    if best not in found and len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(f"{path}: expected {best.name} or one other .pth file, found {names}; name the file")
    return best if best in found else found[0]
