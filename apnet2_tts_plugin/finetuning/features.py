"""Features to train on, computed once for a whole corpus and kept in files beside the audio (config `feature_path`)."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from apnet2_tts_plugin.errors import Apnet2Error, FinetuningError
from apnet2_tts_plugin.files import write_atomically, write_text

logger = logging.getLogger(__name__)

T = TypeVar("T")

SOURCE_NAME = "source.json"


def write_features(
    paths: list[Path],
    data_path: Path,
    feature_path: Path,
    compute: Callable[[list[Path]], Iterable[tuple[Path, np.ndarray]]],
) -> list[Path]:
    """Write the features of audio files, each file whole or not at all, where `training.features` looks for them.

    Those of `data_path/a/b.wav` become `feature_path/a/b.npy`. A file whose features are there and not older than its
    audio is done already, so that an interrupted run goes on where it stopped.

    Args:
        paths: Audio files below `data_path`.
        data_path: Folder with the audio.
        feature_path: Folder for the features; made if need be.
        compute: From audio files to each of them with its features (channels, T), in any order; it leaves out those
            that cannot be used, see `skip_unusable`.

    Returns:
        The files left out; what was made of them before is removed.

    Raises:
        OSError: if a file cannot be written; the rest is not tried.
    """
    targets = missing_or_stale(paths, data_path, feature_path)
    n_pending = len(targets)
    with tqdm(total=n_pending, desc="Computing features", unit="file", disable=None, leave=False) as bar:
        for path, features in compute(list(targets)):
            write_array(targets.pop(path), features)
            bar.update()
    for target in targets.values():
        target.unlink(missing_ok=True)
    if targets:
        logger.warning("Left out %d of %d audio files", len(targets), len(paths))
    return list(targets)


def missing_or_stale(paths: list[Path], data_path: Path, feature_path: Path) -> dict[Path, Path]:
    """The audio files without features, or with some that are older than the audio, and where these are to be."""
    targets = {path: Path(feature_path, path.relative_to(data_path).with_suffix(".npy")) for path in paths}
    return {path: target for path, target in targets.items() if not _is_done(path, target)}


def _is_done(path: Path, target: Path) -> bool:
    try:
        return target.stat().st_mtime_ns >= path.stat().st_mtime_ns
    except OSError:  # no features yet, or no audio, of which reading it will tell
        return False


def skip_unusable(path: Path, function: Callable[..., T], *arguments: Any) -> T | None:
    """What `function` makes of an audio file; None, and a line in the log, if the file cannot be used."""
    try:
        return function(*arguments)
    except Apnet2Error as error:
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
        write_atomically(path, write)
    except OSError as error:  # NumPy's own, of a disk that is full, has a message alone
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def note_source(folder: Path, source: dict[str, Any], what: str) -> None:
    """Note in `source.json` what the features below `folder` depend on, so that those of others are never mixed in.

    A note is binding as soon as there are features.

    Args:
        folder: The folder; made if need be.
        source: What they depend on, as JSON has it.
        what: What they are called in a message.

    Raises:
        FinetuningError: if the folder has features of another source.
    """
    path = folder / SOURCE_NAME
    if next(folder.rglob("*.npy"), None) is None:
        write_text(path, json.dumps(source, indent=1))
        return
    if not path.is_file():
        raise FinetuningError(
            f"{folder}: has {what} and no {path.name} that says of what; delete the folder, or name another one"
        )
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuningError(f"{path}: cannot be read ({error}); delete the folder it is in") from error
    if differing := [name for name, value in source.items() if noted.get(name) != value]:
        raise FinetuningError(
            f"{folder}: has {what} of another {' and '.join(differing)}, see {path.name} in it; "
            "delete the folder, or name another one"
        )
