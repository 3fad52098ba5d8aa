"""What all metrics ask first: waveforms of one length, and the package they come from."""

import importlib
from types import ModuleType

import numpy as np
import soxr

from apnet2_tts_plugin.errors import MetricError, MissingPackageError, one_line

SPEECH_RATE = 16000  # of PESQ, DNSMOS and PLCMOS, in Hz


def check_lengths(reference: np.ndarray, degraded: np.ndarray) -> None:
    """Raise MetricError unless both are (N,) with one N."""
    if reference.ndim != 1 or reference.shape != degraded.shape:
        msg = f"reference of shape {reference.shape} and degraded of {degraded.shape}, expected one length (N,)"
        raise MetricError(msg)


def at_speech_rate(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """A waveform (N,) resampled to 16 kHz."""
    return soxr.resample(waveform, sample_rate, SPEECH_RATE)


def optional_package(name: str) -> ModuleType:
    """A module of an optional package.

    Raises:
        MissingPackageError: if it is not installed, or has no place for the code it compiles (librosa, by numba).
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{package} is not installed: pip install 'apnet2-tts-plugin[eval]'") from error
    except RuntimeError as error:
        reason = f"{package} cannot be imported ({one_line(error)})"
        raise MissingPackageError(f"{reason}; set HOME to a folder that can be written to") from error
