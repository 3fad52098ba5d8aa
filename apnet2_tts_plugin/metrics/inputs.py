"""What all metrics ask first: waveforms of one length, and the package they come from."""

import importlib
from types import ModuleType

import librosa
import numpy as np

from apnet2_tts_plugin.errors import MetricError, MissingPackageError

SPEECH_RATE = 16000  # of PESQ, DNSMOS and PLCMOS, in Hz


def check_lengths(reference: np.ndarray, degraded: np.ndarray) -> None:
    """Raise MetricError unless both are (N,) with one N."""
    if reference.ndim != 1 or reference.shape != degraded.shape:
        msg = f"reference of shape {reference.shape} and degraded of {degraded.shape}, expected one length (N,)"
        raise MetricError(msg)


def at_speech_rate(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """A waveform (N,) resampled to 16 kHz."""
    return librosa.resample(waveform, orig_sr=sample_rate, target_sr=SPEECH_RATE, res_type="soxr_hq")


def optional_package(name: str) -> ModuleType:
    """A module of an optional package.

    Raises:
        MissingPackageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(f"{package} is not installed: pip install apnet2-tts-plugin[eval]") from error
