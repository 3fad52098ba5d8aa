"""A corpus: which of its audio files can be used, and which are held out."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from apnet2_tts_plugin.audio import LOUDEST, UNKNOWN_LENGTH, open_audio
from apnet2_tts_plugin.errors import DataError

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder

SILENCE = 1e-4  # peak below which a file teaches nothing
FLOATING = ("FLOAT", "DOUBLE")  # what a file can hold NaN and any scale in


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A readable file with sound in it.

    Args:
        path: The file.
        n_samples: Its length in samples at its own rate.
        sample_rate: That rate in Hz.
        features: A `.npy` file with a mel or latent to learn from instead of the mel that is analysed; None for that.
        f0: A `.npy` file with its pitch, see `training.pitch`; None where that is not asked for.
    """

    path: Path
    n_samples: int
    sample_rate: int
    features: Path | None = None
    f0: Path | None = None


def split(paths: list[Path], n_eval: int) -> tuple[list[Path], list[Path]]:
    """Training and evaluation files: the last `n_eval` paths in sorted order are held out.

    Raises:
        DataError: if nothing would be left to train on.
    """
    paths = sorted(paths)
    if n_eval >= len(paths):
        raise DataError(f"eval_split_size: {n_eval}, expected fewer than the {len(paths)} audio files there are")
    return paths[: len(paths) - n_eval], paths[len(paths) - n_eval :]


def usable(paths: list[Path]) -> list[AudioFile]:
    """The files that can be read and are neither empty nor silent; the others are named in the log and counted.

    Raises:
        DataError: if none is left.
    """
    if not paths:
        raise DataError("no audio files are given, expected a folder of them (config field `data_path`)")
    files, reason = [], ""
    for path in tqdm(paths, desc="Checking audio", disable=None, leave=False):
        try:
            files.append(inspect(path))
        except (DataError, OSError) as error:
            reason = reason or f"{path}: {error}"
            logger.warning("Skipped %s: %s", path, error)
    n_skipped = len(paths) - len(files)
    if not files:
        raise DataError(f"none of {n_skipped} audio files can be used; the first one: {reason}")
    if n_skipped:
        logger.warning("Skipped %d of %d audio files", n_skipped, len(paths))
    return files


def inspect(path: Path) -> AudioFile:
    """Look at a file, without reading it whole unless its samples are floating numbers.

    Raises:
        DataError: if it cannot be read, or has no sound in it.
    """
    try:
        with open_audio(path) as file:
            _check_sound(file)
            return AudioFile(path, file.frames, file.samplerate)
    except sf.LibsndfileError as error:
        raise DataError(error.error_string) from error


def _check_sound(file: sf.SoundFile) -> None:
    if file.frames == 0:
        raise DataError("it is empty")
    if file.frames >= UNKNOWN_LENGTH:
        raise DataError("it does not tell its length; writing it anew helps")
    # Reading stops at the first sound, so that of files of integers only the silent ones are read whole.
    peaks = map(_peak, file.blocks(blocksize=16384, dtype="float32", always_2d=True))
    if not any([peak > SILENCE for peak in peaks] if file.subtype in FLOATING else (peak > SILENCE for peak in peaks)):
        raise DataError("it is silent")
    file.seek(file.frames - 1)  # fails where the end of a compressed file is missing
    if len(file.read()) == 0:
        raise DataError("its end is missing")


def _peak(block: np.ndarray) -> float:
    """The peak of samples (n, channels), mixed down as they are read."""
    peak = np.abs(block.mean(axis=1)).max()
    if not np.isfinite(peak):
        raise DataError("it has NaN or infinite samples")
    if peak > LOUDEST:
        raise DataError(f"its samples reach {peak:.4g}, expected -1 to 1; divide those of 16 bit by 32768")
    return peak
