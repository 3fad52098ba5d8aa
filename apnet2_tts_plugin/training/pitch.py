"""The pitch of recordings, to train on: found once by WORLD's Harvest, kept in files, and read where a segment lies."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from apnet2_tts_plugin.audio import read_audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.metrics.inputs import optional_package
from apnet2_tts_plugin.training.corpus import AudioFile
from apnet2_tts_plugin.training.features import feature_file, open_features, skip_unusable, write_features
from apnet2_tts_plugin.training.source import note_source

PERIOD = 0.005  # seconds between the frequencies in a file
ANALYSIS_RATE = 16000  # Hz, enough for pitch


def write_pitch(config: Apnet2Config, files: list[AudioFile], n_processes: int = 1) -> None:
    """Write the pitch of a corpus, each file once, as `training.features.write_features` does.

    Args:
        config: `data_path`, where to write to (`f0_path`), and the range of the frequencies.
        files: Audio files below `config.data_path`.
        n_processes: How many work at a time; with one or none it is this one.

    Raises:
        MissingPackageError: if pyworld is not installed.
        DataError: if the folder has pitch of another `data_path`, or of another range.
        OSError: if a file cannot be written.
    """
    optional_package("pyworld")

    def compute(paths: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
        arguments = paths, repeat(config.f0_min), repeat(config.f0_max)
        if n_processes < 2:
            yield from readable(paths, map(harvest, *arguments))
            return
        with ProcessPoolExecutor(n_processes, get_context("spawn")) as pool:
            yield from readable(paths, pool.map(harvest, *arguments))

    def readable(paths: list[Path], found: Iterable[np.ndarray | None]) -> Iterator[tuple[Path, np.ndarray]]:
        return ((path, f0) for path, f0 in zip(paths, found, strict=True) if f0 is not None)

    folder = pitch_folder(config)
    note_source(folder, pitch_source(config), "pitch", takes_unknown=True)  # older versions wrote no note
    write_features([file.path for file in files], Path(config.data_path), folder, compute)


def with_pitch(config: Apnet2Config, files: list[AudioFile]) -> list[AudioFile]:
    """The files whose pitch `write_pitch` has written, each with it."""
    found = [replace(file, f0=feature_file(file.path, config.data_path, pitch_folder(config))) for file in files]
    return [file for file in found if file.f0.is_file()]


def pitch_source(config: Apnet2Config) -> dict[str, Any]:
    """What the pitch depends on; see `source.note_source`."""
    data_path = str(Path(config.data_path).resolve())
    return {"data_path": data_path, "f0_min": config.f0_min, "f0_max": config.f0_max}


def pitch_folder(config: Apnet2Config) -> Path:
    """Where the pitch of the recordings is."""
    return Path(config.f0_path) if config.f0_path else Path(config.output_path, "f0")


def harvest(path: Path, f0_min: float, f0_max: float) -> np.ndarray | None:
    """The fundamental frequency of a recording every `PERIOD` (Harvest, Interspeech 2017).

    Returns:
        Hz (1, M) in float32, 0 where nothing is voiced, the first one at the first sample; None, and a line in the log,
        if the recording cannot be read.
    """
    import pyworld

    waveform = skip_unusable(path, read_audio, path, ANALYSIS_RATE)
    if waveform is None:
        return None
    f0, _ = pyworld.harvest(waveform.astype(np.float64), ANALYSIS_RATE, f0_min, f0_max, 1000 * PERIOD)
    return f0.astype(np.float32)[None]


def pitch_at(path: Path, times: np.ndarray) -> np.ndarray:
    """Frequencies in Hz (T,) at `times` (T,) in seconds, interpolated where both neighbours are voiced; 0 for unvoiced,
    and beyond the ends."""
    f0 = open_features(path)[0]
    position = np.clip(times / PERIOD, 0, len(f0) - 1)
    left = np.floor(position).astype(int)
    right = np.minimum(left + 1, len(f0) - 1)
    weight = position - left
    nearest = np.where(weight < 0.5, f0[left], f0[right])
    both = (f0[left] > 0) & (f0[right] > 0)
    found = np.where(both, f0[left] * (1 - weight) + f0[right] * weight, nearest)
    return np.where(times <= len(f0) * PERIOD, found, 0.0).astype(np.float32)
