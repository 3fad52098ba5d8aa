"""What the frames leave in a waveform's envelope: a line at the frame rate, heard as a buzz."""

import numpy as np

from apnet2_tts_plugin.errors import MetricError

FRAME_RATE = 22050 / 256  # Hz, of APNet2's default settings
BANDS = ((0, 1000), (1000, 2000), (2000, 4000), (4000, 8000))  # Hz
SMOOTHING = 0.1  # seconds over which loudness is levelled out
SILENCE = 1e-5  # level below which there is none to level out
LINE, NEIGHBOURS = 1.5, (3.0, 20.0)  # Hz from the frame rate


def frame_line_db(waveform: np.ndarray, sample_rate: int) -> float:
    """How far the envelope's spectrum stands out at APNet2's frame rate, 86 Hz, in the mean of four bands.

    Sound that gathers at the centres of the frames makes such a line; speech has none of its own unless a voice stays
    at that pitch. The envelope of a band is the magnitude of its analytic signal, divided by its mean over 0.1 s; its
    power spectrum is averaged over segments of 1 s (Hann window, half overlapping). The line is the largest power
    within 1.5 Hz of the frame rate, over the median of what is 3 to 20 Hz away. The definition is this project's.

    Args:
        waveform: (N,). In less than a second the line is blurred, and lower.
        sample_rate: In Hz, at least 16,000.

    Returns:
        Decibels: about 0 to 2 for noise and recordings.

    Raises:
        MetricError: if it is silent.
    """
    spectrum = np.fft.fft(waveform.astype(np.float64))
    frequencies = np.fft.fftfreq(len(waveform), 1 / sample_rate)
    lines = []
    for low, high in BANDS:
        envelope = np.abs(np.fft.ifft(spectrum * ((frequencies >= low) & (frequencies < high))))
        lines.append(_line_db(envelope / (_mean_over(envelope, round(SMOOTHING * sample_rate)) + SILENCE), sample_rate))
    return float(np.mean(lines))


def _mean_over(samples: np.ndarray, length: int) -> np.ndarray:
    """The mean of the `length` samples around each, silence beyond the ends."""
    total = np.cumsum(np.pad(samples, (length // 2 + 1, length - length // 2 - 1)))
    return (total[length:] - total[:-length]) / length


def _line_db(envelope: np.ndarray, sample_rate: int) -> float:
    length = min(len(envelope), sample_rate)
    segments = np.lib.stride_tricks.sliding_window_view(envelope, length)[:: sample_rate // 2]
    segments = (segments - segments.mean(axis=1, keepdims=True)) * np.hanning(length)
    power = np.square(np.abs(np.fft.rfft(segments, sample_rate))).sum(axis=0)
    distance = np.abs(np.fft.rfftfreq(sample_rate, 1 / sample_rate) - FRAME_RATE)
    around = np.median(power[(distance >= NEIGHBOURS[0]) & (distance <= NEIGHBOURS[1])])
    if around == 0:
        raise MetricError("the line at the frame rate needs sound up to 8 kHz")
    return float(10 * np.log10(power[distance <= LINE].max() / around))
