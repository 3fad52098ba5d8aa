"""SNR, and differences of short-time spectra; no optional package is needed."""

import functools

import numpy as np
import torch
from torch import Tensor

from apnet2_tts_plugin.errors import MetricError
from apnet2_tts_plugin.metrics.inputs import check_lengths
from apnet2_tts_plugin.network.spectra import DB_PER_NEPER, STFT, LogMel, log_amplitude

FFT, HOP, MEL_BANDS = 1024, 256, 80

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # FFT, hop and window of Parallel WaveGAN
POWER_FLOOR = 1e-8


def snr_db(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Signal-to-noise ratio of the waveforms, as in the APNet2 paper: 10 log10(sum x^2 / sum (x - y)^2).

    Args:
        reference: Recording x, (N,).
        degraded: What a vocoder made of it, y, (N,).
        sample_rate: Not used.

    Returns:
        Decibels: infinite for equal waveforms, 0 for silence, about -3 for the right spectrum with unrelated phases.

    Raises:
        MetricError: if the lengths differ or the recording is silent.
    """
    check_lengths(reference, degraded)
    reference, degraded = reference.astype(np.float64), degraded.astype(np.float64)
    signal, noise = np.square(reference).sum(), np.square(reference - degraded).sum()
    if signal == 0:
        raise MetricError("SNR needs a recording that is not silent")
    return float(10 * np.log10(signal / noise)) if noise > 0 else float("inf")


def las_rmse_db(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Root mean square error of the log amplitude spectra, named LAS-RMSE in the APNet and APNet2 papers.

    sqrt(mean (20 log10 |X| - 20 log10 |Y|)^2) over all bins and frames, with 1e-5 added to the amplitudes. The paper
    does not say which analysis it used; this is its vocoder's: FFT and Hann window of 1024 samples, hop 256.

    Args:
        reference: Recording, (N,), N > 512.
        degraded: What a vocoder made of it, (N,).
        sample_rate: Not used.

    Returns:
        Decibels, 0 for equal waveforms.

    Raises:
        MetricError: if the lengths differ.
    """
    check_lengths(reference, degraded)
    amplitudes = log_amplitude(STFT(FFT, HOP, FFT)(_both(reference, degraded)))
    return DB_PER_NEPER * float((amplitudes[0] - amplitudes[1]).square().mean().sqrt())


def mel_error_db(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference in dB of the log-mel spectrograms from 0 Hz to half the sample rate.

    The mel is that of APNet2's mel loss (paper, section 2.3): 80 bands, FFT and window of 1024 samples, hop 256.

    Args:
        reference: Recording, (N,), N > 512.
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        Decibels of a band's magnitude, 0 for equal waveforms.

    Raises:
        MetricError: if the lengths differ.
    """
    check_lengths(reference, degraded)
    mels = _log_mel(sample_rate)(_both(reference, degraded))
    return DB_PER_NEPER * float((mels[0] - mels[1]).abs().mean())


def multi_resolution_stft(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Multi-resolution STFT distance of Parallel WaveGAN (Yamamoto et al., arXiv 1910.11480, equations 4 to 6).

    The mean over three resolutions of spectral convergence, ||X - Y|| / ||X|| (Frobenius norms of the magnitudes), and
    mean |ln X - ln Y|, with powers of at least 1e-8. Resolutions are in samples, whatever the sample rate.

    Args:
        reference: Recording, (N,), N > 1024.
        degraded: What a vocoder made of it, (N,).
        sample_rate: Not used.

    Returns:
        A number without unit, 0 for equal waveforms.

    Raises:
        MetricError: if the lengths differ.
    """
    check_lengths(reference, degraded)
    waveforms = _both(reference, degraded)
    distances = []
    for resolution in RESOLUTIONS:
        x, y = STFT(*resolution)(waveforms).abs().square().clamp(min=POWER_FLOOR).sqrt()
        distances.append((x - y).norm() / x.norm() + (x.log() - y.log()).abs().mean())
    return float(sum(distances)) / len(RESOLUTIONS)


def _both(reference: np.ndarray, degraded: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([reference, degraded]).astype(np.float32))


@functools.cache
def _log_mel(sample_rate: int) -> LogMel:
    return LogMel(sample_rate, FFT, HOP, FFT, MEL_BANDS, 0.0, None)
