"""Spectrograms as PNG, without axes: of a waveform, and of the difference between two."""

import base64
import io

import numpy as np
import torch

from apnet2_tts_plugin.network.spectra import DB_PER_NEPER, LogMel, hertz_to_mel

FFT, HOP, BANDS = 1024, 256, 128
RANGE_DB = 80.0  # from the loudest point of the recording down
DIFFERENCE_DB = 20.0  # either way
TICKS_HZ = (500, 1000, 2000, 4000, 8000, 16000)


class Spectrograms:
    """Draws log-mel spectrograms from 0 Hz to half the sample rate, all of one scale.

    Args:
        sample_rate: Of the waveforms, in Hz.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.log_mel = LogMel(sample_rate, FFT, HOP, FFT, BANDS, 0.0, None)

    def decibels(self, waveform: np.ndarray) -> np.ndarray:
        """The mel of a waveform (N,) in dB, (128, T)."""
        return DB_PER_NEPER * self.log_mel(torch.from_numpy(waveform.astype(np.float32))[None])[0].numpy()

    def ticks(self) -> list[tuple[str, float]]:
        """Frequencies to name at the edge of a picture, and how far up each lies, from 0 to 1."""
        shown = [hertz for hertz in TICKS_HZ if hertz < self.sample_rate / 2.2]
        heights = hertz_to_mel(np.array(shown)) / hertz_to_mel(self.sample_rate / 2)
        return [(f"{hertz / 1000:g} kHz", float(height)) for hertz, height in zip(shown, heights, strict=True)]


def spectrogram(decibels: np.ndarray, loudest: float) -> str:
    """A picture of a mel (bands, T) in dB, black 80 dB below `loudest`, as base64 of a PNG."""
    return _png(decibels, loudest - RANGE_DB, loudest, "magma")


def difference(decibels: np.ndarray, reference: np.ndarray, loudest: float) -> str:
    """A picture of a mel minus that of the recording, both (bands, T) in dB: red where it is louder, blue where softer.

    What lies more than 80 dB below `loudest` counts as lying there, so that inaudible differences stay white.
    """
    floor = loudest - RANGE_DB
    return _png(np.maximum(decibels, floor) - np.maximum(reference, floor), -DIFFERENCE_DB, DIFFERENCE_DB, "RdBu_r")


def _png(values: np.ndarray, low: float, high: float, colors: str) -> str:
    from matplotlib import colormaps  # half a second that the rest can do without
    from PIL import Image

    levels = np.clip(np.rint((values - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    image = Image.fromarray(levels[::-1])  # the low frequencies at the bottom
    image.putpalette(colormaps[colors](np.arange(256), bytes=True)[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
