"""Mel-cepstral distortion, from the spectral envelopes of WORLD."""

import numpy as np

from apnet2_tts_plugin.metrics.inputs import check_lengths, optional_package

FRAME_MS = 5.0
COEFFICIENTS = 25  # the first, the loudness, included


def mcd_db(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Mel-cepstral distortion (Kubichek, 1993) without the loudness, averaged over all frames of 5 ms.

    10 sqrt(2) / ln 10 sqrt(sum_{m=1}^{24} (c_m - c'_m)^2), with ln |H| = c_0 + sum_m c_m cos(m w) on a mel axis. The
    envelope H is that of WORLD's CheapTrick on the pitch of Harvest, its cepstrum that of pyworld's
    `code_spectral_envelope` with 25 coefficients. Those expand ln |H|^2 in cosines of mean square 1 and are so sqrt(2)
    times c_m: what is left is 10 / ln 10 sqrt(sum ...), the root mean square difference in dB of the smoothed
    envelopes. The APNet2 paper names the metric, but not how its cepstra were made.

    Args:
        reference: Recording, (N,).
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        Decibels, 0 for equal waveforms and for those that differ by a gain.

    Raises:
        MetricError: if the lengths differ.
        MissingPackageError: if pyworld is not installed.
    """
    check_lengths(reference, degraded)
    ours, theirs = (mel_cepstrum(waveform, sample_rate) for waveform in (reference, degraded))
    return 10 / np.log(10) * float(np.sqrt(np.square(ours - theirs)[:, 1:].sum(axis=1)).mean())


def mel_cepstrum(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """WORLD's coded spectral envelope of a waveform (N,), float64 of shape (T, 25)."""
    pyworld = optional_package("pyworld")
    samples = waveform.astype(np.float64)
    f0, times = pyworld.harvest(samples, sample_rate, frame_period=FRAME_MS)
    envelope = pyworld.cheaptrick(samples, f0, times, sample_rate)
    return pyworld.code_spectral_envelope(envelope, sample_rate, COEFFICIENTS)
