"""Metrics of copy synthesis: how near a vocoder's waveform comes to the recording whose mel it was given.

All take a reference and a degraded waveform, (N,) float arrays of one length and sample rate, and return one number.
STOI and PESQ come from the packages pystoi and pesq, which the extra `eval` installs.
"""

import importlib.util
import warnings
from types import ModuleType

import librosa
import numpy as np
import torch

from apnet2_tts_plugin.errors import MetricError, MissingPackageError
from apnet2_tts_plugin.network.spectra import DB_PER_NEPER, LogMel

PESQ_RATE = 16000
MEL_FFT, MEL_HOP, MEL_BANDS = 1024, 256, 80


def stoi(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al., IEEE TASLP 2011), computed at 10 kHz.

    Args:
        reference: Recording, (N,), with at least 0.4 s of speech in it.
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        A correlation: 1 for equal waveforms, near 0 for unrelated ones. The loudness of `degraded` has no influence.

    Raises:
        MetricError: if the lengths differ or there is too little speech.
        MissingPackageError: if pystoi is not installed.
    """
    package = _package("pystoi")
    _check_lengths(reference, degraded)
    with warnings.catch_warnings():
        # pystoi only warns, and returns 1e-5, when it finds too few frames that are not silent.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(package.stoi(reference, degraded, sample_rate))
        except RuntimeWarning as warning:
            raise MetricError("STOI needs at least 0.4 s of speech") from warning


def pesq_wb(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), computed at 16 kHz.

    Args:
        reference: Recording, (N,), with at least 0.25 s of speech in it.
        degraded: What a vocoder made of it, (N,).
        sample_rate: Sample rate of both in Hz.

    Returns:
        A predicted opinion score from 1.04 (bad) to 4.64 (equal waveforms).

    Raises:
        MetricError: if the lengths differ, or PESQ finds no speech or too short a waveform.
        MissingPackageError: if pesq is not installed.
    """
    package = _package("pesq")
    _check_lengths(reference, degraded)
    reference, degraded = (_resampled(waveform, sample_rate) for waveform in (reference, degraded))
    try:
        return float(package.pesq(PESQ_RATE, reference, degraded, "wb"))
    except package.PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        reason = reason.decode() if isinstance(reason, bytes) else reason
        raise MetricError(f"PESQ gives no score: {reason}") from error


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
    _check_lengths(reference, degraded)
    log_mel = LogMel(sample_rate, MEL_FFT, MEL_HOP, MEL_FFT, MEL_BANDS, 0.0, None)
    mels = log_mel(torch.from_numpy(np.stack([reference, degraded])))
    return DB_PER_NEPER * float((mels[0] - mels[1]).abs().mean())


SPEECH_METRICS = {"pesq": pesq_wb, "stoi": stoi}
PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}


def installed(names: list[str]) -> list[str]:
    """Those of the `SPEECH_METRICS` called `names` whose packages are there."""
    return [name for name in names if importlib.util.find_spec(PACKAGES[name])]


def require(name: str) -> None:
    """Raise MissingPackageError if `name` is one of the `SPEECH_METRICS` and its package is not there."""
    if name in PACKAGES:
        _package(PACKAGES[name])


def _resampled(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    return librosa.resample(waveform, orig_sr=sample_rate, target_sr=PESQ_RATE, res_type="soxr_hq")


def _check_lengths(reference: np.ndarray, degraded: np.ndarray) -> None:
    if reference.ndim != 1 or reference.shape != degraded.shape:
        msg = f"reference of shape {reference.shape} and degraded of {degraded.shape}, expected one length (N,)"
        raise MetricError(msg)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{name} is not installed: pip install apnet2-tts-plugin[eval]") from error
