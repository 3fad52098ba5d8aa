"""Recordings on a pipe: samples while they arrive, and a header for those that leave."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile as sf

from apnet2_tts_plugin.audio import Mixer, StandardInput, check_peak
from apnet2_tts_plugin.errors import DataError

WIDTHS = {  # bytes of a sample, by libsndfile's name of the coding
    "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1,
}  # fmt: skip
UNKNOWN_SIZE = 0xFFFFFFFF  # what FFmpeg writes to pipes, too
LARGEST_SIZE = 0x7FFF0000  # others write about 2**31, as SoX and arecord do, or 0
LARGEST_CHUNK = 2**20  # before the samples
BLOCK = 65536  # bytes read at once, the size of a pipe


@dataclass(frozen=True)
class Coding:
    """How samples follow each other.

    Attributes:
        sample_rate: In Hz.
        n_channels: Number of channels, whose samples take turns.
        subtype: One of `WIDTHS`.
        n_bytes: How many bytes there are; None if they go on to the end.
    """

    sample_rate: int
    n_channels: int = 1
    subtype: str = "PCM_16"
    n_bytes: int | None = None


def read_header(stream: BinaryIO, start: bytes) -> tuple[bytes, Coding | None]:
    """Read the header of a WAV file, up to its first sample.

    Args:
        stream: What is read from.
        start: The first 12 bytes, which have been read already.

    Returns:
        All bytes up to now, and what they say; None if it is no such file, or of another coding.
    """
    header = start
    while start[:4] == b"RIFF" and start[8:] == b"WAVE":
        chunk = stream.read(8)
        header += chunk
        if len(chunk) < 8:
            break
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            return header, _coding(header, size)
        if size > LARGEST_CHUNK:
            break
        header += stream.read(size + size % 2)
    return header, None


def _coding(header: bytes, n_bytes: int) -> Coding | None:
    try:
        with sf.SoundFile(io.BytesIO(header)) as file:
            rate, n_channels, subtype = file.samplerate, file.channels, file.subtype
    except sf.LibsndfileError:
        return None
    known = n_bytes if 0 < n_bytes < LARGEST_SIZE else None
    return Coding(rate, n_channels, subtype, known) if subtype in WIDTHS else None


def samples(stream: BinaryIO, coding: Coding, least: int) -> Iterator[np.ndarray]:
    """The samples, (N,) each in float32, channels mixed down, as soon as they are there; then the stream is at its end.

    Args:
        stream: What is read from, behind the header.
        coding: What the header says.
        least: N, but for the last piece, is at least that.

    Raises:
        DataError: if there are none, or they are not finite, in integer scale, or the channels cancel each other out.
    """
    source = StandardInput(b"")
    mixer, width = Mixer(source), WIDTHS[coding.subtype] * coding.n_channels
    content, n_read = b"", 0
    while arrived := stream.read1(BLOCK):
        wanted = len(arrived) if coding.n_bytes is None else min(len(arrived), coding.n_bytes - n_read)
        content, n_read = content + arrived[:wanted], n_read + wanted  # what follows the samples is let through
        if len(content) >= least * width:
            n_whole = len(content) // width * width
            yield _decode(source, mixer, content[:n_whole], coding)
            content = content[n_whole:]
    if n_read < width:
        raise DataError(f"{source}: has no samples")
    if len(content) >= width:
        yield _decode(source, mixer, content[: len(content) // width * width], coding)


def _decode(source: StandardInput, mixer: Mixer, content: bytes, coding: Coding) -> np.ndarray:
    raw = dict(format="RAW", subtype=coding.subtype, endian="LITTLE")
    rate, n_channels = coding.sample_rate, coding.n_channels
    decoded, _ = sf.read(
        io.BytesIO(content), -1, dtype="float32", always_2d=True, samplerate=rate, channels=n_channels, **raw
    )
    waveform = mixer.push(decoded)
    check_peak(source, waveform)
    return waveform


def wav_header(sample_rate: int) -> bytes:
    """The header of a WAV file of unknown length, mono, in 16 bits."""
    form = 1, 1, sample_rate, 2 * sample_rate, 2, 16  # PCM, channels, rate, bytes per second, of all channels, bits
    return struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", UNKNOWN_SIZE, b"WAVEfmt ", 16, *form, b"data", UNKNOWN_SIZE)
