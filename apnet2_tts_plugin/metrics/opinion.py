"""Opinion scores that networks predict from a waveform alone, with no reference: DNSMOS and PLCMOS of `speechmos`.

Both want 16 kHz within [-1, 1]. The package keeps its networks from one call to the next.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from apnet2_tts_plugin.metrics.inputs import SPEECH_RATE, at_speech_rate, optional_package


def dnsmos(waveform: np.ndarray, sample_rate: int) -> float:
    """DNSMOS, overall quality after ITU-T P.835 (Reddy et al., ICASSP 2022), of windows of 9 s, shorter ones repeated.

    Args:
        waveform: (N,), N > 0; clipped to [-1, 1].
        sample_rate: In Hz.

    Returns:
        A predicted mean opinion score from 1 (bad) to 5.

    Raises:
        MissingPackageError: if speechmos or onnxruntime is not installed.
    """
    return float(_package("dnsmos").run(_prepared(waveform, sample_rate), SPEECH_RATE)["ovrl_mos"])


def plcmos(waveform: np.ndarray, sample_rate: int) -> float:
    """PLCMOS version 2 (Diener et al., Interspeech 2023), which hears gaps and jumps; the mean over 15 drawn raters.

    Args:
        waveform: (N,), N > 0; clipped to [-1, 1].
        sample_rate: In Hz.

    Returns:
        A predicted mean opinion score from 1 (bad) to 5, the same at each call.

    Raises:
        MissingPackageError: if speechmos or onnxruntime is not installed.
    """
    package = _package("plcmos")
    with _same_raters():
        return float(package.run(_prepared(waveform, sample_rate), SPEECH_RATE)["plcmos"])


def _package(name: str):
    optional_package("onnxruntime")  # which speechmos needs but does not ask for
    return optional_package(f"speechmos.{name}")


def _prepared(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    return np.clip(at_speech_rate(waveform, sample_rate), -1, 1)


@contextmanager
def _same_raters() -> Iterator[None]:
    """speechmos draws raters from NumPy's global generator; within this they are always the same."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
