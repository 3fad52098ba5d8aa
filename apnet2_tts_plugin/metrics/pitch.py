"""F0, voicing and periodicity, on the pitch track of pYIN (Mauch and Dixon, ICASSP 2014) every 10 ms."""

import functools

import librosa
import numpy as np

from apnet2_tts_plugin.errors import MetricError
from apnet2_tts_plugin.metrics.inputs import SPEECH_RATE, at_speech_rate, check_lengths

FRAME_SECONDS = 0.01
F0_MIN, F0_MAX = 50.0, 800.0  # Hz
WINDOW_SECONDS = 0.025  # of the cross-correlation


def f0_rmse_cents(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Root mean square error of F0 over the frames that are voiced in both, as in the APNet2 paper.

    sqrt(mean (1200 log2(F0' / F0))^2). The paper does not name its pitch tracker; this is pYIN, from 50 to 800 Hz. It
    follows the most probable path, and so hardly ever jumps by an octave: with noise 40 dB below the speech of 16
    recordings the figure is 3 cents. By WORLD's Harvest it was 123 for six of them, all of it jumps.

    Args:
        reference: Recording, (N,).
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        Cents, hundredths of a semitone; 0 for equal waveforms.

    Raises:
        MetricError: if the lengths differ or no frame is voiced in both.
    """
    check_lengths(reference, degraded)
    ours, theirs = (track(waveform, sample_rate) for waveform in (reference, degraded))
    voiced = (ours > 0) & (theirs > 0)
    if not voiced.any():
        raise MetricError("F0-RMSE needs frames that are voiced in both waveforms")
    return float(np.sqrt(np.square(1200 * np.log2(theirs[voiced] / ours[voiced])).mean()))


def voicing_error_percent(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Share of frames that are voiced in one waveform only, as in the APNet2 paper (V/UV error).

    Args:
        reference: Recording, (N,).
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        Percent of all frames, from 0 for equal waveforms to 100.

    Raises:
        MetricError: if the lengths differ.
    """
    check_lengths(reference, degraded)
    ours, theirs = (track(waveform, sample_rate) for waveform in (reference, degraded))
    return 100 * float(((ours > 0) != (theirs > 0)).mean())


def periodicity_rmse(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Root mean square error of the periodicity, over the frames that are voiced in the recording.

    CARGAN (Morrison et al., arXiv 2110.10139, section 4) takes the periodicity from the neural pitch tracker CREPE.
    Here, without one, it is `periodicity`: both waveforms against themselves one period of the recording later. So the
    figures are not those of papers that use CREPE.

    Args:
        reference: Recording, (N,).
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        A number without unit, 0 for equal waveforms, at most 2.

    Raises:
        MetricError: if the lengths differ or no frame of the recording is voiced.
    """
    check_lengths(reference, degraded)
    f0 = track(reference, sample_rate)
    ours, theirs = (periodicity(waveform, f0, sample_rate) for waveform in (reference, degraded))
    if not len(ours):
        raise MetricError("periodicity needs a recording with voiced frames")
    return float(np.sqrt(np.square(ours - theirs).mean()))


def periodicity(waveform: np.ndarray, f0: np.ndarray, sample_rate: int) -> np.ndarray:
    """Normalised cross-correlation of 25 ms of a waveform with those one period later, around each voiced frame.

    Args:
        waveform: (N,).
        f0: Hz every 10 ms, (T,), 0 where there is no voice.
        sample_rate: In Hz; the period is rounded to whole samples.

    Returns:
        From -1 to 1, 0 in silence, (V,) for the V voiced frames whose windows lie within the waveform.
    """
    width = round(WINDOW_SECONDS * sample_rate)
    values = []
    for frame in np.flatnonzero(f0):
        period = round(sample_rate / f0[frame])
        start = round(frame * FRAME_SECONDS * sample_rate) - (width + period) // 2
        if start < 0 or start + period + width > len(waveform):
            continue
        now = waveform[start : start + width].astype(np.float64)
        later = waveform[start + period : start + period + width].astype(np.float64)
        energy = np.sqrt(np.square(now).sum() * np.square(later).sum())
        values.append(now @ later / energy if energy > 0 else 0.0)
    return np.array(values)


def track(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """F0 of a waveform (N,) in Hz every 10 ms, (T,), 0 where there is no voice."""
    return _pyin(at_speech_rate(waveform, sample_rate).astype(np.float32).tobytes())


@functools.lru_cache(maxsize=2)  # several metrics ask for that of the recording and that of one vocoder
def _pyin(samples: bytes) -> np.ndarray:
    hop_length = round(FRAME_SECONDS * SPEECH_RATE)
    f0, voiced, _ = librosa.pyin(
        np.frombuffer(samples, np.float32),
        fmin=F0_MIN, fmax=F0_MAX, sr=SPEECH_RATE, frame_length=1024, hop_length=hop_length,
    )  # fmt: skip
    return np.where(voiced, f0, 0.0)
