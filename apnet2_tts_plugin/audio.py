"""Reading recordings: which files there are, and their samples."""

import os
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from apnet2_tts_plugin.errors import DataError

SUFFIXES = (".wav", ".flac")
UNKNOWN_LENGTH = 2**40  # samples; FLAC files that were written through a pipe claim 2**63 - 1


def find_audio(folder: str | Path) -> list[Path]:
    """All WAV and FLAC files below `folder`, sorted by their path.

    Raises:
        DataError: if there is no such folder, or none of these files in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with the training audio (config field `data_path`)")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    if not paths:
        raise DataError(f"{folder}: no {' or '.join(SUFFIXES)} file below this folder")
    return paths


def read_audio(path: str | Path, sample_rate: int, start: int = 0, n_samples: int = -1) -> np.ndarray:
    """Read a file, or `n_samples` of it from `start` (at the file's own rate), as mono float32 at `sample_rate` Hz.

    Raises:
        DataError: if it cannot be read there, or has NaN or infinite samples.
    """
    try:
        with sf.SoundFile(os.fsencode(path)) as file:  # whatever bytes the name has
            file.seek(start)
            waveform = file.read(n_samples, dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except sf.LibsndfileError as error:
        raise DataError(f"{path}: cannot be read at sample {start} ({error.error_string})") from error
    if not np.isfinite(waveform).all():
        raise DataError(f"{path}: has NaN or infinite samples")
    return waveform if rate == sample_rate else soxr.resample(waveform, rate, sample_rate)
