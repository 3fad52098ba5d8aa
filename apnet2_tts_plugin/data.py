"""Training audio: which files there are, and random segments of them, drawn anew for every file and epoch."""

import logging
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac")
SILENCE = 1e-4  # peak below which a file teaches nothing
UNKNOWN_LENGTH = 2**40  # samples; FLAC files that were written through a pipe claim 2**63 - 1
RESAMPLING_MARGIN = 64  # samples read on either side of a segment that is resampled, for the filter's edges


class DataError(ValueError):
    """Training data that cannot be used; the message is one line."""


@dataclass(frozen=True)
class AudioFile:
    """A readable file with sound in it: its path, length in samples at its own rate, and that rate in Hz."""

    path: Path
    n_samples: int
    sample_rate: int


def find_audio(folder: str | Path) -> list[Path]:
    """All WAV and FLAC files below `folder`, sorted by their path.

    Raises:
        DataError: if there is no such folder, or none of these files in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with the training audio (config field `data_path`)")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no {' or '.join(AUDIO_SUFFIXES)} file below this folder")
    return paths


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
        raise DataError("no audio files are given")
    files = []
    for path in tqdm(paths, desc="Checking audio", disable=None, leave=False):
        try:
            files.append(_inspect(path))
        except (DataError, sf.LibsndfileError) as error:
            logger.warning("Skipped %s: %s", path, error)
    n_skipped = len(paths) - len(files)
    if not files:
        raise DataError(f"none of {n_skipped} audio files can be used; the first one: {paths[0]}")
    if n_skipped:
        logger.warning("Skipped %d of %d audio files", n_skipped, len(paths))
    return files


def _inspect(path: Path) -> AudioFile:
    with sf.SoundFile(path) as file:
        if file.frames == 0:
            raise DataError("it is empty")
        if file.frames >= UNKNOWN_LENGTH:
            raise DataError("it does not tell its length; writing it anew helps")
        # Reading stops at the first sound, so that only silent files are read whole.
        if not any(np.abs(block).max() > SILENCE for block in file.blocks(blocksize=16384, dtype="float32")):
            raise DataError("it is silent")
        file.seek(file.frames - 1)  # fails where the end of a compressed file is missing
        if len(file.read()) == 0:
            raise DataError("its end is missing")
        return AudioFile(path, file.frames, file.samplerate)


def read_audio(path: str | Path, sample_rate: int, start: int = 0, n_samples: int = -1) -> np.ndarray:
    """Read a file, or `n_samples` of it from `start` (at the file's own rate), as mono float32 at `sample_rate` Hz.

    Raises:
        DataError: if it cannot be read there, or has NaN or infinite samples.
    """
    try:
        with sf.SoundFile(path) as file:
            file.seek(start)
            waveform = file.read(n_samples, dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except sf.LibsndfileError as error:
        raise DataError(f"{path}: cannot be read at sample {start} ({error.error_string})") from error
    if not np.isfinite(waveform).all():
        raise DataError(f"{path}: has NaN or infinite samples")
    return waveform if rate == sample_rate else librosa.resample(waveform, orig_sr=rate, target_sr=sample_rate)


class Segments(Dataset):
    """One random segment of each file, another one in every epoch.

    A file that cannot be read there is named in the log, and the next file takes its place.

    What is drawn depends on `seed`, the epoch and the file's index alone: not on the worker, nor on the order of items.

    Args:
        files: Audio files.
        sample_rate: Sample rate of the segments in Hz.
        n_samples: Length of a segment; shorter files are padded with zeros behind.
        seed: Seed of all draws.

    Shape:
        item {"waveform": (n_samples,)} in float32.
    """

    def __init__(self, files: list[AudioFile], sample_rate: int, n_samples: int, seed: int):
        self.files = files
        self.sample_rate = sample_rate
        self.n_samples = n_samples
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        for file in self.files[index:] + self.files[:index]:
            try:
                return {"waveform": torch.from_numpy(self._segment(file, rng))}
            except DataError as error:
                logger.warning("Another file instead of %s", error)
        raise DataError(f"none of {len(self.files)} audio files can be read any more")

    def _segment(self, file: AudioFile, rng: np.random.Generator) -> np.ndarray:
        margin = 0 if file.sample_rate == self.sample_rate else RESAMPLING_MARGIN
        n_read = -(-self.n_samples * file.sample_rate // self.sample_rate) + 2 * margin
        start = int(rng.integers(0, max(file.n_samples - n_read, 0) + 1))
        waveform = read_audio(file.path, self.sample_rate, start, n_read)
        offset = min(margin * self.sample_rate // file.sample_rate, max(len(waveform) - self.n_samples, 0))
        waveform = waveform[offset : offset + self.n_samples]
        return np.pad(waveform, (0, self.n_samples - len(waveform)))


class Utterances(Dataset):
    """Whole files, cut to a multiple of the hop; files shorter than `min_samples` are padded to it.

    Shape:
        item {"waveform": (n,)} in float32, n a multiple of `hop_length`.
    """

    def __init__(self, files: list[AudioFile], sample_rate: int, hop_length: int, min_samples: int):
        self.files = files
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.min_samples = min_samples

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        waveform = read_audio(self.files[index].path, self.sample_rate)
        waveform = waveform[: len(waveform) // self.hop_length * self.hop_length]
        waveform = np.pad(waveform, (0, max(self.min_samples - len(waveform), 0)))
        return {"waveform": torch.from_numpy(waveform)}
