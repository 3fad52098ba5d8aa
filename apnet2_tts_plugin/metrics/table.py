"""All metrics by name: what a report calls them, their unit, which way is better, and the package they need."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apnet2_tts_plugin.errors import MissingPackageError
from apnet2_tts_plugin.metrics import cepstral, envelope, opinion, pitch, spectral, speech
from apnet2_tts_plugin.metrics.inputs import optional_package


@dataclass(frozen=True)
class Metric:
    """A metric as a report shows it.

    Attributes:
        name: In CSV and JSON, with the unit.
        title: In tables, with the unit.
        compute: From reference (N,), degraded (N,) and sample rate to a number.
        better: 1 if more is better, -1 if less is.
        digits: Behind the point.
        packages: What has to be installed.
        source: Where its definition is from, in a few words.
    """

    name: str
    title: str
    compute: Callable[[np.ndarray, np.ndarray, int], float]
    better: int
    digits: int
    packages: tuple[str, ...] = ()
    source: str = ""


def _dnsmos(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    return opinion.dnsmos(degraded, sample_rate)


def _plcmos(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    return opinion.plcmos(degraded, sample_rate)


def _frame_line_db(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    return envelope.frame_line_db(degraded, sample_rate)


LIBROSA, WORLD = ("librosa.filters",), ("pyworld",)
MOS = (*LIBROSA, "onnxruntime", "speechmos")
METRICS = (
    Metric("pesq_wb", "PESQ-WB", speech.pesq_wb, 1, 2, ("pesq",), "ITU-T P.862.2, at 16 kHz"),
    Metric("stoi", "STOI", speech.stoi, 1, 3, ("pystoi",), "Taal et al. 2011, at 10 kHz"),
    Metric("dnsmos", "DNSMOS overall", _dnsmos, 1, 2, MOS, "Reddy et al. 2022, no reference"),
    Metric("plcmos", "PLCMOS", _plcmos, 1, 2, MOS, "Diener et al. 2023, no reference"),
    Metric("snr_db", "SNR, dB", spectral.snr_db, 1, 2, (), "of the waveforms; arXiv 2311.11545"),
    Metric("las_rmse_db", "LAS-RMSE, dB", spectral.las_rmse_db, -1, 2, (), "log amplitudes; arXiv 2311.11545"),
    Metric("mcd_db", "MCD, dB", cepstral.mcd_db, -1, 2, WORLD, "Kubichek 1993, on WORLD's envelopes"),
    Metric("f0_rmse_cents", "F0-RMSE, cents", pitch.f0_rmse_cents, -1, 1, LIBROSA, "pYIN; voiced in both"),
    Metric("vuv_error_percent", "V/UV error, %", pitch.voicing_error_percent, -1, 2, LIBROSA, "pYIN"),
    Metric("periodicity_rmse", "Periodicity RMSE", pitch.periodicity_rmse, -1, 3, LIBROSA, "cross-correlation"),
    Metric(
        "multi_resolution_stft", "Multi-resolution STFT", spectral.multi_resolution_stft, -1, 3, (), "arXiv 1910.11480"
    ),
    Metric("mel_error_db", "Mel error, dB", spectral.mel_error_db, -1, 2, (), "mean absolute, all bands"),
    Metric("frame_line_db", "Line at 86 Hz, dB", _frame_line_db, -1, 1, (), "of the envelope, no reference"),
)


def available() -> tuple[tuple[Metric, ...], list[str]]:
    """The metrics whose packages are there, and for each package that is not, a line that says what is left out."""
    missing = {}
    for name in sorted({name for metric in METRICS for name in metric.packages}):
        try:
            optional_package(name)
        except MissingPackageError as error:
            titles = [metric.title.partition(",")[0] for metric in METRICS if name in metric.packages]
            missing[name] = f"{error} (left out: {', '.join(titles)})"
    found = tuple(metric for metric in METRICS if not missing.keys() & set(metric.packages))
    return found, list(missing.values())
