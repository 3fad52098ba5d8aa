"""Training data: random segments of audio files, drawn anew for every file and epoch, and whole files to evaluate.

With mels or latents to learn from beside the audio (`corpus.with_features`), a segment is a piece of both: frame i is
centred at sample i * hop_length, so that T frames belong to (T - 1) * hop_length samples. Latents too are called "mel"
in the items.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from apnet2_tts_plugin.corpus import AudioFile, DataError, open_features
from apnet2_tts_plugin.spectra import MEL_FLOOR

logger = logging.getLogger(__name__)

PADDING = {"mel": float(np.log(MEL_FLOOR)), "latent": 0.0}  # what stands for silence, by the kind of features
RESAMPLING_MARGIN = 64  # samples read on either side of a segment that is resampled, for the filter's edges


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
    return waveform if rate == sample_rate else soxr.resample(waveform, rate, sample_rate)


def _n_common_frames(file: AudioFile, features: np.ndarray, hop_length: int) -> int:
    """Number of frames that both the features and the audio have."""
    return min(features.shape[1], file.n_samples // hop_length + 1)


def _aligned(
    file: AudioFile, features: np.ndarray, start: int, stop: int, hop_length: int, n_samples: int, padding: float
) -> dict[str, Tensor]:
    """Frames `start` to `stop`, at least one, and their audio, padded to `n_samples` and its frames."""
    waveform = read_audio(file.path, file.sample_rate, start * hop_length, (stop - 1 - start) * hop_length)
    frames = np.array(features[:, start:stop], dtype=np.float32)
    if not np.isfinite(frames).all():
        raise DataError(f"{file.features}: has NaN or infinite values")
    n_missing = n_samples // hop_length + 1 - frames.shape[1]
    frames = np.pad(frames, ((0, 0), (0, n_missing)), constant_values=padding)
    return {"waveform": _pad(waveform, n_samples), "mel": torch.from_numpy(frames)}


def _pad(waveform: np.ndarray, n_samples: int) -> Tensor:
    """`waveform`, with zeros behind if it is shorter than `n_samples`."""
    return torch.from_numpy(np.pad(waveform, (0, max(n_samples - len(waveform), 0))))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of an epoch, as lists of (epoch, index), for one of several processes; use it as `batch_sampler`.

    The order of the items depends on `seed` and the epoch alone. Batch k of all processes together is batch k of a
    single process with `world_size` times the batch size. Where the items cannot be dealt out evenly, the order is
    filled up from its beginning, so that all processes get equally many.

    Args:
        n_items: Number of items.
        batch_size: Items of a batch in one process; the last batch may be smaller.
        seed: Seed of the order.
        rank: Which of the processes this is, from 0.
        world_size: Number of processes.

    Attributes:
        epoch: The epoch that the next iteration is of.
        start: Number of batches of that epoch that are done already; the next iteration leaves them out.
    """

    def __init__(self, n_items: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.n_items = n_items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Number of batches in a whole epoch, whatever `start` is."""
        return -(-self._n_own_items() // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_items)
        filled = np.resize(order, self._n_own_items() * self.world_size)
        items = [(self.epoch, index) for index in filled[self.rank :: self.world_size].tolist()]
        starts = range(self.start * self.batch_size, len(items), self.batch_size)
        return iter([items[first : first + self.batch_size] for first in starts])

    def _n_own_items(self) -> int:
        return -(-self.n_items // self.world_size)


class Segments(Dataset):
    """One random segment of each file, another one in every epoch.

    A file that cannot be read there is named in the log, and the next file takes its place.

    What is drawn depends on `seed`, the epoch and the file's index alone: not on the worker, nor on the order of items.

    Args:
        files: Audio files, all of them with features or none.
        sample_rate: Sample rate of the segments in Hz.
        hop_length: Step between the frames of features in samples.
        n_samples: Length of a segment, a multiple of the hop. Shorter files are padded behind: audio with zeros,
            features with `padding`.
        seed: Seed of all draws.
        padding: What short features are padded with.

    Shape:
        (epoch, index) to item {"waveform": (n_samples,) in float32, "path": str of the file it is from}, for files with
        features also "mel": (n_channels, n_samples // hop_length + 1) in float32.
    """

    def __init__(
        self,
        files: list[AudioFile],
        sample_rate: int,
        hop_length: int,
        n_samples: int,
        seed: int,
        padding: float = PADDING["mel"],
    ):
        self.files = files
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.n_samples = n_samples
        self.seed = seed
        self.padding = padding

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor | str]:
        epoch, index = item
        rng = np.random.default_rng([self.seed, epoch, index])
        for i in range(len(self.files)):
            file = self.files[(index + i) % len(self.files)]
            try:
                segment = self._analysed(file, rng) if file.features is None else self._with_features(file, rng)
                return {**segment, "path": str(file.path)}
            except DataError as error:
                logger.warning("Another file instead of %s", error)
        raise DataError(f"none of {len(self.files)} audio files can be read any more")

    def _analysed(self, file: AudioFile, rng: np.random.Generator) -> dict[str, Tensor]:
        margin = 0 if file.sample_rate == self.sample_rate else RESAMPLING_MARGIN
        n_read = -(-self.n_samples * file.sample_rate // self.sample_rate) + 2 * margin
        start = int(rng.integers(0, max(file.n_samples - n_read, 0) + 1))
        waveform = read_audio(file.path, self.sample_rate, start, n_read)
        offset = min(margin * self.sample_rate // file.sample_rate, max(len(waveform) - self.n_samples, 0))
        return {"waveform": _pad(waveform[offset : offset + self.n_samples], self.n_samples)}

    def _with_features(self, file: AudioFile, rng: np.random.Generator) -> dict[str, Tensor]:
        features = open_features(file.features)
        n_common = _n_common_frames(file, features, self.hop_length)
        n_frames = self.n_samples // self.hop_length + 1
        start = int(rng.integers(0, max(n_common - n_frames, 0) + 1))
        stop = min(start + n_frames, n_common)
        return _aligned(file, features, start, stop, self.hop_length, self.n_samples, self.padding)


class Utterances(Dataset):
    """Whole files, cut to a multiple of the hop; files shorter than `min_samples` are padded as `Segments` are.

    Args:
        files: Audio files, all of them with features or none.
        sample_rate: Sample rate in Hz.
        hop_length: Hop in samples.
        min_samples: Least length in samples, a multiple of the hop.
        padding: What short features are padded with.

    Shape:
        index to item {"waveform": (n,) in float32, n a multiple of `hop_length`, "path": str}, for files with features
        also "mel": (n_channels, n // hop_length + 1) in float32; there both end where the shorter of the two does.
    """

    def __init__(
        self,
        files: list[AudioFile],
        sample_rate: int,
        hop_length: int,
        min_samples: int,
        padding: float = PADDING["mel"],
    ):
        self.files = files
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.min_samples = min_samples
        self.padding = padding

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        file = self.files[index]
        utterance = self._analysed(file) if file.features is None else self._with_features(file)
        return {**utterance, "path": str(file.path)}

    def _analysed(self, file: AudioFile) -> dict[str, Tensor]:
        waveform = read_audio(file.path, self.sample_rate)
        waveform = waveform[: len(waveform) // self.hop_length * self.hop_length]
        return {"waveform": _pad(waveform, self.min_samples)}

    def _with_features(self, file: AudioFile) -> dict[str, Tensor]:
        features = open_features(file.features)
        n_frames = _n_common_frames(file, features, self.hop_length)
        n_samples = max((n_frames - 1) * self.hop_length, self.min_samples)
        return _aligned(file, features, 0, n_frames, self.hop_length, n_samples, self.padding)
