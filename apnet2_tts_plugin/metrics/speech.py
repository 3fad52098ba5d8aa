"""Speech metrics of the packages pystoi and pesq, which the extra `eval` installs."""

import importlib.util
import warnings

import numpy as np

from apnet2_tts_plugin.errors import MetricError
from apnet2_tts_plugin.metrics.inputs import SPEECH_RATE, at_speech_rate, check_lengths, optional_package


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
    package = optional_package("pystoi")
    check_lengths(reference, degraded)
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
    package = optional_package("pesq")
    check_lengths(reference, degraded)
    reference, degraded = (at_speech_rate(waveform, sample_rate) for waveform in (reference, degraded))
    try:
        return float(package.pesq(SPEECH_RATE, reference, degraded, "wb"))
    except package.PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        reason = reason.decode() if isinstance(reason, bytes) else reason
        raise MetricError(f"PESQ gives no score: {reason}") from error


SPEECH_METRICS = {"pesq": pesq_wb, "stoi": stoi}
PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}


def installed(names: list[str]) -> list[str]:
    """Those of the `SPEECH_METRICS` called `names` whose packages are there."""
    return [name for name in names if importlib.util.find_spec(PACKAGES[name])]


def require(name: str) -> None:
    """Raise MissingPackageError if `name` is one of the `SPEECH_METRICS` and its package is not there."""
    if name in PACKAGES:
        optional_package(PACKAGES[name])
