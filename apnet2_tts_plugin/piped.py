"""Standard input that is vocoded while it arrives: a recording, or mels one after another."""

import logging
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from apnet2_tts_plugin import audio_stream, batch, vocode
from apnet2_tts_plugin.audio import Resampler, StandardInput, as_int16
from apnet2_tts_plugin.audio_stream import Coding
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.scales import check_scale
from apnet2_tts_plugin.network.spectra import LogMelStream

logger = logging.getLogger(__name__)

SOURCE = StandardInput(b"")  # what errors name
LEAST = 8  # frames of a recording that are waited for, 93 ms at 22.05 kHz: fewer take as long to vocode
MOST = 256  # frames of a mel that are vocoded before their sound is given on
FIRST = 12  # bytes that tell what is there
ENOUGH = 100  # frames of a mel that tell its scale
NPY = b"\x93NUMPY"


class RecordingStream:
    """A recording while it arrives.

    Args:
        stream: What is read from, behind a header.
        coding: What the header says; None for 16-bit samples of one channel at the model's rate.
        resample: Convert another sample rate instead of refusing it.
    """

    def __init__(self, stream: BinaryIO, coding: Coding | None, resample: bool = True):
        self.stream, self.coding, self.resample = stream, coding, resample
        self.n_samples: int | None = None  # at the model's rate, as soon as it is known

    def features(self, model: Apnet2) -> Iterator[Tensor]:
        """Its mel, (1, n_mels, T) each.

        Raises:
            DataError: if it cannot be read, or the model vocodes no mels.
        """
        vocode.check_vocodes_recordings(SOURCE, model)
        audio = model.config.audio
        coding = self.coding or Coding(audio.sample_rate)
        vocode.check_rate(SOURCE, coding.sample_rate, audio.sample_rate, self.resample)
        resampler = Resampler(coding.sample_rate, audio.sample_rate)
        analysis = LogMelStream(model.log_mel, audio)
        least = LEAST * audio.hop_length * coding.sample_rate // audio.sample_rate
        for waveform in audio_stream.samples(self.stream, coding, least):
            yield analysis.push(torch.from_numpy(resampler.push(waveform)).to(model.device))
        rest = resampler.push(np.zeros(0, np.float32), last=True)
        mel = analysis.push(torch.from_numpy(rest).to(model.device), last=True)
        self.n_samples = analysis.n_samples
        yield mel


class MelStream:
    """One mel, or latent, in the arrays of `.npy` files that follow one another.

    Args:
        stream: What is read from.
        start: What has been read already.
    """

    n_samples = None  # all that the frames give

    def __init__(self, stream: BinaryIO, start: bytes):
        self.stream = _Joined(start, stream)

    def features(self, model: Apnet2) -> Iterator[Tensor]:
        """Its frames, (1, n_inputs, T) each.

        Raises:
            DataError: if an array cannot be read, or is not what the model vocodes.
        """
        n_frames, of_unknown_scale = 0, []
        while start := self.stream.read(len(NPY)):
            frames = vocode.checked_features(SOURCE, self._read_array(start), model.config.n_inputs)
            n_frames += frames.shape[2]
            if of_unknown_scale is not None and model.config.input_features == "mel":
                of_unknown_scale.append(frames)
                if n_frames >= ENOUGH:
                    _check_scale(of_unknown_scale)
                    of_unknown_scale = None
            yield from frames.to(model.device).split(MOST, dim=2)
        if n_frames < 2:
            raise DataError(f"{SOURCE}: has {n_frames} frames, expected at least 2")
        if of_unknown_scale:
            _check_scale(of_unknown_scale)

    def _read_array(self, start: bytes) -> Tensor:
        try:
            return torch.from_numpy(np.lib.format.read_array(_Joined(start, self.stream), allow_pickle=False))
        except Exception as error:  # damaged files make it raise almost anything
            raise DataError(f"{SOURCE}: not a readable .npy file, or it holds more than numbers") from error


def _check_scale(frames: list[Tensor]) -> None:
    try:
        check_scale(torch.cat(frames, dim=2))
    except DataError as error:
        raise DataError(f"{SOURCE}: {error}") from error


class _Joined:
    """A stream some of which has been read already."""

    def __init__(self, start: bytes, rest):
        self.start, self.rest = start, rest

    def read(self, size: int) -> bytes:
        given, self.start = self.start[:size], self.start[size:]
        return given + self.rest.read(size - len(given))


def open_input(
    stream: BinaryIO, raw: bool = False, resample: bool = True
) -> RecordingStream | MelStream | StandardInput:
    """What arrives: a WAV file, or `.npy` files; anything else is read to its end.

    Args:
        stream: What is read from.
        raw: It is 16-bit samples, little-endian, of one channel at the model's rate, without a header.
        resample: Convert a recording of another sample rate instead of refusing it.
    """
    if raw:
        return RecordingStream(stream, None)
    start = stream.read(FIRST)
    if start.startswith(NPY):
        return MelStream(stream, start)
    header, coding = audio_stream.read_header(stream, start)
    return RecordingStream(stream, coding, resample) if coding else StandardInput(header + stream.read())


def vocode_stream(model: Apnet2, given: RecordingStream | MelStream, out: BinaryIO, raw: bool = False) -> batch.Done:
    """Write what the model makes of standard input while it arrives; what exceeds full scale is clipped.

    Args:
        model: A model from `loader.load_model`.
        given: From `open_input`.
        out: What is written to: WAV of unknown length, mono, in 16 bits.
        raw: Leave out the header.

    Raises:
        DataError: if it cannot be read, or is not what the model takes.
        OutputError: if it cannot be written.
        BrokenPipeError: if nobody reads any more.
    """
    start, n_written, peak, rate = time.perf_counter(), 0, 0.0, model.config.audio.sample_rate
    header = b"" if raw else audio_stream.wav_header(rate)
    for piece in model.stream(given.features(model)):
        waveform = piece.flatten().cpu().numpy()
        if given.n_samples is not None:
            waveform = waveform[: given.n_samples - n_written]
        if not np.isfinite(waveform).all():
            raise DataError(f"{SOURCE}: the model's output has NaN or infinite samples")
        with batch.writing(None):
            out.write(header + as_int16(waveform).tobytes())
            out.flush()
        header, n_written = b"", n_written + len(waveform)
        peak = max(peak, np.abs(waveform).max(initial=0))
    if peak > 1:
        logger.warning(
            "%s: clipped, as its peak was %.2f of full scale; only a whole file can be scaled down", SOURCE, peak
        )
    return batch.Done(1, 0, n_written / rate, time.perf_counter() - start)
