"""Recordings: which files there are, their samples, and writing them."""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr

from apnet2_tts_plugin.errors import DataError, one_line
from apnet2_tts_plugin.files import write_atomically

FORMATS = {  # what is written, libsndfile's format and coding, by suffix
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".aif": ("AIFF", "PCM_16"),
    ".aiff": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
}
RAW = ".raw"  # the samples alone: 16 bits, little-endian
READ_BY_FFMPEG = (".m4a", ".mp4", ".aac", ".wma", ".webm", ".mka", ".amr", ".ac3")
SUFFIXES = (*FORMATS, ".aifc", ".snd", ".rf64", ".sph", *READ_BY_FFMPEG)
UNKNOWN_LENGTH = 2**40  # samples; FLAC files that were written through a pipe claim 2**63 - 1
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
BLOCK = 65536  # samples written at once: libvorbis overflows the stack with many more
CANCELLED = 0.01  # level of a mix, relative to its channels, from which on they are taken to cancel each other out
LOUDEST = 10.0  # peak above which samples are no sound in [-1, 1], which may be overdriven, but integers


class StandardInput(io.BytesIO):
    """A file that came through standard input, or another pipe, which is `name`."""

    def __init__(self, content: bytes, name: str = "standard input"):
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


Source = Path | StandardInput


def find_audio(folder: str | Path) -> list[Path]:
    """All recordings below `folder`, known by their suffixes, sorted by their path; hidden files are left out.

    Raises:
        DataError: if there is no such folder, or no recording in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with the training audio (config field `data_path`)")
    paths = sorted(path for path in folder.rglob("*") if has_suffix(path, SUFFIXES) and not path.is_dir())
    if not paths:
        raise DataError(f"{folder}: no recording ({', '.join(FORMATS)}, ...) below this folder")
    return paths


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether `path` ends in one of these, in upper or lower case, and is not hidden as `._name.wav` is."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def open_audio(source: str | Path | BinaryIO) -> sf.SoundFile:
    """Open a file to read from, whatever bytes its name has."""
    return sf.SoundFile(source if hasattr(source, "read") else os.fsencode(source))


def read_audio(path: str | Path, sample_rate: int, start: int = 0, n_samples: int = -1) -> np.ndarray:
    """Read a file, or `n_samples` of it from `start` (at the file's own rate), as mono float32 at `sample_rate` Hz.

    Raises:
        DataError: if it cannot be read there, has NaN or infinite samples, or its channels cancel each other out.
    """
    try:
        with open_audio(path) as file:
            file.seek(start)
            samples, rate = file.read(n_samples, dtype="float32", always_2d=True), file.samplerate
    except sf.LibsndfileError as error:
        raise DataError(f"{path}: cannot be read at sample {start} ({error.error_string})") from error
    waveform = _mono(path, samples)
    return waveform if rate == sample_rate else soxr.resample(waveform, rate, sample_rate)


def at_rate(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """A waveform (N,) at another sample rate: (N',), N' being N * new_rate / rate, rounded up.

    Of torchaudio's filters, two rates without a common factor, such as 22051 and 22050 Hz, need 8 GB.
    """
    if rate == new_rate:
        return waveform
    padded = np.pad(waveform, (0, rate // new_rate + 1))  # soxr rounds down too, a single sample to none
    return soxr.resample(padded, rate, new_rate)[: -(-len(waveform) * new_rate // rate)]


class Resampler:
    """`at_rate` of a waveform that comes in pieces: the same samples.

    Args:
        rate: Its sample rate in Hz.
        new_rate: The other one.
    """

    def __init__(self, rate: int, new_rate: int):
        self.rate, self.new_rate = rate, new_rate
        self.stream = soxr.ResampleStream(rate, new_rate, 1) if rate != new_rate else None
        self.n_given = self.n_made = 0

    def push(self, waveform: np.ndarray, last: bool = False) -> np.ndarray:
        """The samples (N',) that are complete with the next ones, (N,) in float32; with `last` all that are left."""
        if self.stream is None:
            return waveform
        self.n_given += len(waveform)
        if last:
            waveform = np.pad(waveform, (0, self.rate // self.new_rate + 1))
        made = self.stream.resample_chunk(waveform, last=last)
        if last:
            made = made[: -(-self.n_given * self.new_rate // self.rate) - self.n_made]
        self.n_made += len(made)
        return made


def read_recording(source: str | Path | StandardInput) -> tuple[np.ndarray, int]:
    """A whole recording as (N,) in float32, channels mixed down, and its sample rate in Hz.

    Its content counts, not its suffix: libsndfile reads WAV, FLAC, MP3, Ogg, Opus, AIFF and others, and what it does
    not know, such as M4A, FFmpeg reads where it is installed.

    Raises:
        DataError: if it cannot be read, is empty, has NaN, is in integer scale, or its channels cancel each other out.
    """
    try:
        file = open_audio(source)
    except sf.LibsndfileError as error:
        samples, rate = _read_with_ffmpeg(source, error.error_string.rstrip("."))
    else:
        with file:
            if file.frames >= UNKNOWN_LENGTH:
                raise DataError(f"{source}: does not tell its length; writing it anew helps")
            try:
                samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            except sf.LibsndfileError as error:
                raise DataError(f"{source}: is damaged ({error.error_string})") from error
    if not len(samples):
        raise DataError(f"{source}: has no samples")
    waveform = _mono(source, samples)
    check_peak(source, waveform)
    return waveform, rate


def check_peak(source: Source, waveform: np.ndarray) -> None:
    """Refuse samples (N,) that are not within [-1, 1], but integers.

    Raises:
        DataError: if they are.
    """
    peak = np.abs(waveform).max(initial=0)
    if peak > LOUDEST:
        raise DataError(f"{source}: its samples reach {peak:.4g}, expected -1 to 1; divide those of 16 bit by 32768")


def _read_with_ffmpeg(source: str | Path | StandardInput, refusal: str) -> tuple[np.ndarray, int]:
    """Samples (N, channels) and sample rate of a file that libsndfile refused."""
    try:
        content = source.getvalue() if isinstance(source, StandardInput) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from error
    try:
        from torchcodec.decoders import AudioDecoder  # which loads FFmpeg now or when it is used

        decoded = AudioDecoder(content).get_all_samples()
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        is_missing = isinstance(error, ImportError) or "libtorchcodec" in str(error)
        hint = "; FFmpeg, which reads more formats, is not installed" if is_missing else ""
        raise DataError(f"{source}: not a recording that can be read ({refusal}{hint})") from error
    return decoded.data.T.numpy(), int(decoded.sample_rate)


def _mono(source: str | Path | BinaryIO, samples: np.ndarray) -> np.ndarray:
    """The mean of all channels, (N, channels) to (N,)."""
    return Mixer(source).push(samples)


class Mixer:
    """The mean of all channels of a recording that comes whole or in pieces.

    Args:
        source: What errors name.
    """

    def __init__(self, source: str | Path | BinaryIO):
        self.source = source
        self.energy = np.zeros(2)  # of the mix, and of a channel on average

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The mean of the next samples, (N, channels) to (N,).

        Raises:
            DataError: if they are not finite, or the mix of all up to now is silence next to its channels.
        """
        if not np.isfinite(samples).all():
            raise DataError(f"{self.source}: has NaN or infinite samples")
        mix = samples.mean(axis=1)
        self.energy += np.linalg.norm(mix) ** 2, np.linalg.norm(samples) ** 2 / samples.shape[1]
        if samples.shape[1] > 1 and self.energy[0] < CANCELLED**2 * self.energy[1]:
            reason = "its channels cancel each other out when they are mixed, one is inverted"
            raise DataError(f"{self.source}: {reason}; use one")
        return mix


def encode(target: BinaryIO, waveform: np.ndarray, sample_rate: int, suffix: str) -> None:
    """Write (N,) within [-1, 1] in the format of `suffix`, of `FORMATS` or `RAW`, in 16 bits; Opus at a rate it has.

    Raises:
        soundfile.LibsndfileError: if the format cannot have the sample rate.
    """
    if suffix == RAW:
        target.write(as_int16(waveform).tobytes())
        return
    file_format, coding = FORMATS[suffix]
    if coding == "OPUS" and sample_rate not in OPUS_RATES:
        waveform, sample_rate = soxr.resample(waveform, sample_rate, OPUS_RATES[-1]), OPUS_RATES[-1]
    samples = as_int16(waveform)
    # Not to `target` itself: soundfile loses a Ctrl-C, and any other error, that comes while it calls its methods.
    with open(os.memfd_create("audio"), "w+b") as memory:
        with sf.SoundFile(memory.fileno(), "w", sample_rate, 1, coding, format=file_format, closefd=False) as file:
            for start in range(0, len(samples), BLOCK):
                file.write(samples[start : start + BLOCK])
        memory.seek(0)
        target.write(memory.read())


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int, coding: str = "PCM_16") -> None:
    """Write (N,) to a WAV file, whole or not at all; missing folders are made.

    Args:
        path: The file.
        waveform: The samples, within [-1, 1] unless `coding` is "FLOAT".
        sample_rate: Their rate in Hz.
        coding: What libsndfile calls it.

    Raises:
        OSError: if it cannot be written; the message is one line that names it.
    """
    try:
        write_atomically(path, lambda file: sf.write(file, waveform, sample_rate, format="WAV", subtype=coding))
    except (OSError, sf.LibsndfileError) as error:
        raise OSError(f"{path}: cannot be written ({one_line(error)})") from error


def as_int16(waveform: np.ndarray) -> np.ndarray:
    """Samples in 16 bit; those beyond [-1, 1] are clipped."""
    return np.rint(np.clip(waveform, -1, 1) * 32767).astype("<i2")
