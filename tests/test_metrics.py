"""Properties of the metrics of copy synthesis, and agreement with the packages they come from."""

import sys

import librosa
import numpy as np
import pesq
import pystoi
import pytest
from golden_weights import golden_waveform

from apnet2_tts_plugin import metrics
from apnet2_tts_plugin.errors import MetricError, MissingPackageError

RATE = 22050


@pytest.fixture(scope="module")
def speech():
    """1.5 s of a speech-like signal."""
    return golden_waveform(3 * RATE // 2, seed=1)


def with_noise(waveform, level):
    """The waveform with white noise of the given RMS, the same noise at every level."""
    noise = np.random.default_rng(0).standard_normal(len(waveform)).astype(np.float32)
    return waveform + level * noise


@pytest.mark.parametrize(
    ("metric", "best", "better"), [(metrics.stoi, 1.0, 1), (metrics.pesq_wb, 4.64, 1), (metrics.mel_error_db, 0.0, -1)]
)
def test_equal_waveforms_are_best_and_more_noise_is_worse(speech, metric, best, better):
    values = [metric(speech, with_noise(speech, level), RATE) for level in (0.0, 0.003, 0.03, 0.3)]
    assert values[0] == pytest.approx(best, abs=0.005)
    assert sorted(values, reverse=better == 1) == values and len(set(values)) == 4


def test_stoi_is_that_of_pystoi(speech):
    noisy = with_noise(speech, 0.1)
    assert metrics.stoi(speech, noisy, RATE) == pystoi.stoi(speech, noisy, RATE)


def test_pesq_is_that_of_the_package_at_16_khz():
    speech = golden_waveform(24000, seed=2)
    noisy = with_noise(speech, 0.02)
    assert metrics.pesq_wb(speech, noisy, 16000) == pesq.pesq(16000, speech, noisy, "wb")
    upsampled = [librosa.resample(waveform, orig_sr=16000, target_sr=RATE) for waveform in (speech, noisy)]
    assert metrics.pesq_wb(*upsampled, RATE) == pytest.approx(metrics.pesq_wb(speech, noisy, 16000), abs=0.1)


def test_mel_error_of_a_gain_is_its_logarithm(speech):
    loud = with_noise(speech, 0.05)  # no band near the floor of the logarithm
    assert metrics.mel_error_db(loud, 2 * loud, RATE) == pytest.approx(20 * np.log10(2), abs=0.01)


def test_mel_error_sees_all_bands_below_half_the_rate(speech):
    above_8_khz = 0.1 * np.sin(2 * np.pi * 10000 / RATE * np.arange(len(speech)), dtype=np.float32)
    assert metrics.mel_error_db(speech, speech + above_8_khz, RATE) > 0.1


@pytest.mark.parametrize("metric", [metrics.stoi, metrics.pesq_wb, metrics.mel_error_db])
def test_other_lengths_are_refused(speech, metric):
    with pytest.raises(MetricError, match="one length"):
        metric(speech, speech[:-1], RATE)


@pytest.mark.parametrize(("metric", "package"), [(metrics.stoi, "pystoi"), (metrics.pesq_wb, "pesq")])
def test_too_little_speech_is_refused_and_a_missing_package_named(speech, metric, package, monkeypatch):
    with pytest.raises(MetricError):
        metric(speech[:2000], speech[:2000], RATE)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        metric(speech, speech, RATE)
    assert str(caught.value) == f"{package} is not installed: pip install apnet2-tts-plugin[eval]"
