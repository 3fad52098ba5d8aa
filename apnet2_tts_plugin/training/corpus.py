"""A corpus: which audio files there are, which of them can be used, and the mels or latents that go with them."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm
from trainer.io import get_user_data_dir

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac")
SILENCE = 1e-4  # peak below which a file teaches nothing
UNKNOWN_LENGTH = 2**40  # samples; FLAC files that were written through a pipe claim 2**63 - 1
SYSTEM_ERROR = 2  # of libsndfile: permissions, a network that is down; not a property of the file
INDEX_VERSION = f"1, libsndfile {sf.__libsndfile_version__}"  # another libsndfile may read what this one cannot


class DataError(ValueError):
    """Training data that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A readable file with sound in it.

    Args:
        path: The file.
        n_samples: Its length in samples at its own rate.
        sample_rate: That rate in Hz.
        features: A `.npy` file with a mel or latent to learn from instead of the mel that is analysed; None for that.
    """

    path: Path
    n_samples: int
    sample_rate: int
    features: Path | None = None


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

    All files are inspected only the first time: see `AudioIndex`.

    Raises:
        DataError: if none is left.
    """
    if not paths:
        raise DataError("no audio files are given")
    index = AudioIndex(os.path.commonpath([os.path.abspath(os.path.dirname(path)) for path in paths]))
    files = []
    for path in tqdm(paths, desc="Checking audio", disable=None, leave=False):
        try:
            files.append(index.inspect(path))
        except (DataError, sf.LibsndfileError, OSError) as error:
            logger.warning("Skipped %s: %s", path, error)
    index.save()
    n_skipped = len(paths) - len(files)
    if not files:
        raise DataError(f"none of {n_skipped} audio files can be used; the first one: {paths[0]}")
    if n_skipped:
        logger.warning("Skipped %d of %d audio files", n_skipped, len(paths))
    return files


class AudioIndex:
    """What is known of the audio files below a folder, so that each is inspected once and then only after a change.

    It is kept in `audio_index/<hash of the folder>.json` in the user data folder of `apnet2` (`TTS_HOME` is honoured)
    and may be deleted at any time. A file has changed when its size or its time of modification has.

    Args:
        folder: Absolute path of the folder.
    """

    def __init__(self, folder: str):
        self.folder = folder
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        self.path = get_user_data_dir("apnet2") / "audio_index" / f"{name}.json"
        self.entries = self._read()
        self.is_changed = False

    def _read(self) -> dict[str, list]:
        """Size, modification time in ns and findings of files, by their paths in the folder."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        match content:
            case {"version": version, "files": dict(entries)} if version == INDEX_VERSION:
                return entries
        return {}

    def inspect(self, path: Path) -> AudioFile:
        """Find out about a file, from the index if it has not changed.

        Raises:
            DataError: if it is of no use.
            LibsndfileError, OSError: if it cannot be opened.
        """
        name, stat = os.path.relpath(path, self.folder), os.stat(path)
        state = [stat.st_size, stat.st_mtime_ns]
        match self.entries.get(name):
            case [size, mtime, int(n_samples), int(sample_rate)] if [size, mtime] == state:
                return AudioFile(path, n_samples, sample_rate)
            case [size, mtime, str(reason)] if [size, mtime] == state:
                raise DataError(reason)
        self.is_changed = True
        try:
            file = _inspect(path)
        except DataError as error:
            self.entries[name] = [*state, str(error)]
            raise
        self.entries[name] = [*state, file.n_samples, file.sample_rate]
        return file

    def save(self) -> None:
        """Write the index if it has changed, without the files that are gone; the log says if it cannot be written."""
        if not self.is_changed:
            return
        from apnet2_tts_plugin.checkpoints import write_atomically  # slow to import, and loader processes do without

        entries = {name: entry for name, entry in self.entries.items() if os.path.exists(Path(self.folder, name))}
        text = json.dumps({"version": INDEX_VERSION, "folder": self.folder, "files": entries})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except OSError as error:
            logger.warning("All audio files will be inspected at the next start again: %s", error)


def _inspect(path: Path) -> AudioFile:
    try:
        with sf.SoundFile(path) as file:
            _check_sound(file)
            return AudioFile(path, file.frames, file.samplerate)
    except sf.LibsndfileError as error:
        if error.code == SYSTEM_ERROR:
            raise
        raise DataError(error.error_string) from error


def _check_sound(file: sf.SoundFile) -> None:
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


def open_features(path: Path) -> np.ndarray:
    """The array in a `.npy` file, mapped into memory and read where it is used.

    Raises:
        DataError: if there is none.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a .npy file ({' '.join(str(error).split())})") from error


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

    They are natural-log mels, as `spectra.LogMel` makes them, or latents, as `latents.encode` does. Those of
    `data_path/a/b.wav` are in `feature_path/a/b.npy`, or else in `feature_path/b.npy`.

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
    return feature_path / path.relative_to(data_path).with_suffix(".npy"), feature_path / f"{path.stem}.npy"


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
