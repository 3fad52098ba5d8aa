"""Training data: random segments of audio files, drawn anew for every file and epoch, and whole files to evaluate.

With mels or latents to learn from beside the audio (`training.features`), a segment is a piece of both: frame i is
centred at sample i * hop_length, so that T frames belong to (T - 1) * hop_length samples.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from apnet2_tts_plugin.audio import find_audio, read_audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.network.spectra import MEL_FLOOR
from apnet2_tts_plugin.training import distributed
from apnet2_tts_plugin.training.corpus import AudioFile, split, usable
from apnet2_tts_plugin.training.features import open_features, with_features
from apnet2_tts_plugin.training.pitch import pitch_at, with_pitch, write_pitch
from apnet2_tts_plugin.training.signals import leave_signals_to_parent

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder

PADDING = {"mel": float(np.log(MEL_FLOOR)), "latent": 0.0}  # what stands for silence, by the kind of features
RESAMPLING_MARGIN = 64  # samples read on either side of a segment that is resampled, for the filter's edges


def find_files(
    config: Apnet2Config, is_eval: bool, samples: list[Path] | None = None, limit: int | None = None
) -> list[AudioFile]:
    """The usable files to train on, or those held out.

    Args:
        config: With `data_path` the files are those below it, split by name.
        is_eval: Whether to give the held-out ones.
        samples: Paths that are taken without `data_path`.
        limit: Look at so many files only.

    Raises:
        DataError: if there are none, or no features where `config` wants them.
    """
    kind, audio = config.input_features, config.audio
    if kind == "latent" and not config.feature_path:
        raise DataError(
            "feature_path: none, expected the folder of latents, as input_features is 'latent'; "
            "recipes/ljspeech/apnet2_vits makes them with a VITS"
        )
    if config.feature_path and not config.data_path:
        raise DataError(f"data_path: none, expected the folder of the audio that the {kind}s in feature_path belong to")
    if config.data_path:
        samples = split(find_audio(config.data_path), config.eval_split_size)[is_eval]
    files = usable((samples or [])[:limit])
    if config.feature_path:
        sizes = (config.n_inputs, audio.sample_rate, audio.hop_length)
        files = with_features(files, config.data_path, config.feature_path, *sizes, kind=kind)
    return _with_pitch(config, files, is_eval) if config.phase_start == "pitch" else files


def _with_pitch(config: Apnet2Config, files: list[AudioFile], is_eval: bool) -> list[AudioFile]:
    """The files with their pitch, found now where it is not known; to train on, each process finds it for its share."""
    if not config.data_path:
        raise DataError("data_path: none, expected the folder of the audio, to find its pitch (phase_start 'pitch')")
    share = files if is_eval else files[distributed.rank() :: distributed.world_size()]
    write_pitch(config, share, config.num_loader_workers)
    if not is_eval:  # rank 0 alone evaluates
        distributed.wait_for_all()
    return with_pitch(config, files)


def training_loader(config: Apnet2Config, files: list[AudioFile], grad_accum_steps: int = 1) -> DataLoader:
    """Batches of random segments, this process's share of them, in another order in each epoch."""
    audio = config.audio
    padding = PADDING[config.input_features]
    segments = Segments(
        files, audio.sample_rate, audio.hop_length, config.seq_len, config.training_seed, padding=padding
    )
    batches = EpochBatches(
        len(segments) * config.segments_per_file,
        config.batch_size * grad_accum_steps,
        config.training_seed,
        distributed.rank(),
        distributed.world_size(),
    )
    return DataLoader(
        segments,
        batch_sampler=batches,
        num_workers=config.num_loader_workers,
        persistent_workers=config.num_loader_workers > 0,
        pin_memory=torch.cuda.is_available(),
        **_loader_settings(),
    )


def evaluation_loader(config: Apnet2Config, files: list[AudioFile]) -> DataLoader:
    """Whole files one by one; each is read once here, and one that cannot be read is named and left out.

    Raises:
        DataError: if none is left.
    """
    lengths = (config.audio.sample_rate, config.audio.hop_length, config.seq_len)
    utterances = Utterances(files, *lengths, padding=PADDING[config.input_features])
    utterances.files = [file for i, file in enumerate(files) if "waveform" in utterances[i]]
    if not utterances.files:
        raise DataError(f"none of {len(files)} held-out files can be read; the first one: {files[0].path}")
    return DataLoader(utterances, num_workers=config.num_eval_loader_workers, **_loader_settings())


def _loader_settings() -> dict:
    return {
        "generator": torch.Generator(),  # or the loader draws from the global one whenever it starts or resumes
        "worker_init_fn": leave_signals_to_parent,
    }


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
    """A random segment of a file for each item, another one in every epoch; item i is of file i modulo their number.

    A file that cannot be read there is named in the log, and the next file takes its place.

    What is drawn depends on `seed`, the epoch and the item's index alone: not on the worker, nor on the order of items.

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
        features also "features": (n_channels, n_samples // hop_length + 1) in float32.
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
                start, segment = self._analysed(file, rng) if file.features is None else self._with_features(file, rng)
                return _item(file, segment, start / file.sample_rate, self.sample_rate, self.hop_length)
            except DataError as error:
                logger.warning("Another file instead of %s", error)
        raise DataError(f"none of {len(self.files)} audio files can be read any more")

    def _analysed(self, file: AudioFile, rng: np.random.Generator) -> tuple[int, dict[str, Tensor]]:
        """Where in the file the segment begins, and the segment."""
        margin = 0 if file.sample_rate == self.sample_rate else RESAMPLING_MARGIN
        n_read = -(-self.n_samples * file.sample_rate // self.sample_rate) + 2 * margin
        start = int(rng.integers(0, max(file.n_samples - n_read, 0) + 1))
        waveform = read_audio(file.path, self.sample_rate, start, n_read)
        offset = min(margin * self.sample_rate // file.sample_rate, max(len(waveform) - self.n_samples, 0))
        return start + margin, {"waveform": _pad(waveform[offset : offset + self.n_samples], self.n_samples)}

    def _with_features(self, file: AudioFile, rng: np.random.Generator) -> tuple[int, dict[str, Tensor]]:
        features = open_features(file.features)
        n_common = _n_common_frames(file, features, self.hop_length)
        n_frames = self.n_samples // self.hop_length + 1
        start = int(rng.integers(0, max(n_common - n_frames, 0) + 1))
        stop = min(start + n_frames, n_common)
        segment = _aligned(file, features, start, stop, self.hop_length, self.n_samples, self.padding)
        return start * self.hop_length, segment


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
        also "features": (n_channels, n // hop_length + 1) in float32; there both end where the shorter of the two
        does. Of a file that cannot be read, which is named in the log, "path" alone.
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
        try:
            utterance = self._analysed(file) if file.features is None else self._with_features(file)
        except DataError as error:
            logger.warning("Left out of the evaluation: %s", error)
            return {"path": str(file.path)}
        return _item(file, utterance, 0.0, self.sample_rate, self.hop_length)

    def _analysed(self, file: AudioFile) -> dict[str, Tensor]:
        waveform = read_audio(file.path, self.sample_rate)
        waveform = waveform[: len(waveform) // self.hop_length * self.hop_length]
        return {"waveform": _pad(waveform, self.min_samples)}

    def _with_features(self, file: AudioFile) -> dict[str, Tensor]:
        features = open_features(file.features)
        n_frames = _n_common_frames(file, features, self.hop_length)
        n_samples = max((n_frames - 1) * self.hop_length, self.min_samples)
        return _aligned(file, features, 0, n_frames, self.hop_length, n_samples, self.padding)


def _item(
    file: AudioFile, piece: dict[str, Tensor], start: float, sample_rate: int, hop_length: int
) -> dict[str, Tensor | str]:
    """A piece of a file from `start` seconds on, with its path and, if it is known, the pitch of its frames."""
    item = {**piece, "path": str(file.path)}
    if file.f0 is not None:
        frames = np.arange(len(piece["waveform"]) // hop_length + 1)
        item["f0"] = torch.from_numpy(pitch_at(file.f0, start + frames * (hop_length / sample_rate)))
    return item


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
    return {"waveform": _pad(waveform, n_samples), "features": torch.from_numpy(frames)}


def _pad(waveform: np.ndarray, n_samples: int) -> Tensor:
    """`waveform`, with zeros behind if it is shorter than `n_samples`."""
    return torch.from_numpy(np.pad(waveform, (0, max(n_samples - len(waveform), 0))))
