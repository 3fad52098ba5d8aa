"""Arrays that belong to recordings, in files of their own: written once, found, checked, and mapped into memory."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from apnet2_tts_plugin.errors import Apnet2Error, DataError, one_line
from apnet2_tts_plugin.files import write_atomically
from apnet2_tts_plugin.training.corpus import AudioFile

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder

T = TypeVar("T")


def open_features(path: Path) -> np.ndarray:
    """The array in a `.npy` file, mapped into memory and read where it is used.

    Raises:
        DataError: if there is none.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a .npy file ({one_line(error)})") from error


def with_features(
    files: list[AudioFile],
    data_path: str | Path,
    feature_path: str | Path,
    n_channels: int,
    sample_rate: int,
    hop_length: int,
    kind: str = "mel",
) -> list[AudioFile]:
    """The same files, each with its features, (n_channels, T) in a `.npy` file.

    They are natural-log mels, as `network.spectra.LogMel` makes them, or latents, as `finetuning.latents.encode`
    does. Those of `data_path/a/b.wav` are in `feature_path/a/b.npy`, or else in `feature_path/b.npy`.

    Args:
        files: Audio files below `data_path`.
        data_path: Folder with the audio.
        feature_path: Folder with the features.
        n_channels: Number of bands of a mel, or channels of a latent.
        sample_rate: Rate in Hz that the audio must have.
        hop_length: Step between the frames in samples.
        kind: What messages call them, "mel" or "latent".

    Raises:
        DataError: if a file has no features, or some that do not have this shape, are not floating, are empty or are
            more than one frame shorter or longer than the analysis of its audio, or if the audio has another rate.
    """
    found = [replace(file, features=_find_features(file.path, Path(data_path), Path(feature_path))) for file in files]
    missing = [file.path for file in found if file.features is None]
    if missing:
        first, other = _feature_places(missing[0], Path(data_path), Path(feature_path))
        places = first if first == other else f"{first} nor {other}"
        raise DataError(f"{missing[0]}: no {kind} in {places}; {len(missing)} of {len(files)} audio files have none")
    for file in tqdm(found, desc=f"Checking {kind}s", disable=None, leave=False):
        _check_features(file, n_channels, sample_rate, hop_length, kind)
    return found


def _feature_places(path: Path, data_path: Path, feature_path: Path) -> tuple[Path, Path]:
    return feature_file(path, data_path, feature_path), feature_path / f"{path.stem}.npy"


def _find_features(path: Path, data_path: Path, feature_path: Path) -> Path | None:
    return next((place for place in _feature_places(path, data_path, feature_path) if place.is_file()), None)


def _check_features(file: AudioFile, n_channels: int, sample_rate: int, hop_length: int, kind: str) -> None:
    if file.sample_rate != sample_rate:
        raise DataError(f"{file.path}: {file.sample_rate} Hz, expected {sample_rate} Hz with {kind}s to learn from")
    features = open_features(file.features)
    if features.ndim != 2 or features.shape[0] != n_channels:
        hint = "; it is transposed" if features.ndim == 2 and features.shape[1] == n_channels else ""
        raise DataError(f"{file.features}: {kind} of shape {features.shape}, expected ({n_channels}, frames){hint}")
    if not np.issubdtype(features.dtype, np.floating):
        raise DataError(f"{file.features}: {kind} of type {features.dtype}, expected floating numbers")
    n_frames = file.n_samples // hop_length + 1
    if features.shape[1] == 0 or abs(features.shape[1] - n_frames) > 1:
        raise DataError(
            f"{file.features}: {kind} of {features.shape[1]} frames, expected {n_frames} for the {file.n_samples} "
            f"samples of {file.path} with a hop of {hop_length}"
        )


def write_features(
    paths: list[Path],
    data_path: Path,
    feature_path: Path,
    compute: Callable[[list[Path]], Iterable[tuple[Path, np.ndarray]]],
) -> list[Path]:
    """Write the features of audio files, each file whole or not at all, where `with_features` looks for them.

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
    targets = {path: feature_file(path, data_path, feature_path) for path in paths}
    return {path: target for path, target in targets.items() if not _is_done(path, target)}


def feature_file(path: Path, data_path: str | Path, feature_path: str | Path) -> Path:
    """Where the features of the audio file `path` are: for `data_path/a/b.wav` at `feature_path/a/b.npy`."""
    return Path(feature_path, path.relative_to(data_path).with_suffix(".npy"))


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
