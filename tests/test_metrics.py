"""Metrics of copy synthesis: known answers, agreement with the packages they come from, and with other computations."""

import sys

import librosa
import numpy as np
import pesq
import pystoi
import pytest
import pyworld
import scipy.fft
import scipy.signal
from golden_weights import golden_waveform
from speechmos import dnsmos, plcmos

from apnet2_tts_plugin.errors import MetricError, MissingPackageError
from apnet2_tts_plugin.metrics import cepstral, envelope, opinion, pitch, spectral, speech, table

RATE = 22050
BY_NAME = {metric.name: metric for metric in table.METRICS}
EQUAL = {"pesq_wb": 4.64, "stoi": 1.0, "snr_db": np.inf}  # the others are 0, but for those without a reference
WITHOUT_REFERENCE = ("dnsmos", "plcmos", "frame_line_db")
WITH_REFERENCE = [name for name in BY_NAME if name not in WITHOUT_REFERENCE]


@pytest.fixture(scope="module")
def voice():
    """1.5 s of a speech-like signal."""
    return golden_waveform(3 * RATE // 2, seed=1)


def with_noise(waveform, level):
    """The waveform with white noise of the given RMS, the same noise at every level."""
    noise = np.random.default_rng(0).standard_normal(len(waveform)).astype(np.float32)
    return waveform + level * noise


def harmonics(f0, seconds=1.0):
    """A buzz of 20 harmonics; `f0` in Hz is a number or an array with one for each sample."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(f0, round(seconds * RATE))) / RATE
    return 0.1 * sum(np.sin(k * phase) / k for k in range(1, 21))


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_equal_waveforms_are_best_and_noise_is_worse(voice, name):
    metric = BY_NAME[name]
    values = [metric.compute(voice, with_noise(voice, level), RATE) for level in (0.0, 0.01, 0.1)]
    assert values[0] == pytest.approx(EQUAL.get(name, 0.0), abs=0.005)
    assert metric.better * values[0] > metric.better * values[1]
    assert metric.better * values[0] > metric.better * values[2]


@pytest.mark.parametrize("metric", [speech.stoi, speech.pesq_wb, spectral.mel_error_db, spectral.snr_db])
def test_more_noise_is_worse(voice, metric):
    values = [metric(voice, with_noise(voice, level), RATE) for level in (0.003, 0.03, 0.3)]
    assert values in (sorted(values), sorted(values, reverse=True)) and len(set(values)) == 3


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_other_lengths_are_refused(voice, name):
    with pytest.raises(MetricError, match="one length"):
        BY_NAME[name].compute(voice, voice[:-1], RATE)


def test_a_gain_of_6_db(voice):
    loud = with_noise(voice, 0.05)  # no bin near the floor of the logarithm
    gain = 10 ** (6 / 20)
    assert spectral.snr_db(loud, gain * loud, RATE) == pytest.approx(-20 * np.log10(gain - 1), abs=1e-3)
    assert spectral.las_rmse_db(loud, gain * loud, RATE) == pytest.approx(6, abs=0.01)
    assert spectral.mel_error_db(loud, gain * loud, RATE) == pytest.approx(6, abs=0.01)
    # spectral convergence is 1 - gain, and the logarithms differ by that of the gain
    assert spectral.multi_resolution_stft(loud, gain * loud, RATE) == pytest.approx(gain - 1 + np.log(gain), abs=0.01)
    assert cepstral.mcd_db(loud, gain * loud, RATE) == pytest.approx(0, abs=0.05)


def test_snr_of_silence_and_of_noise_as_loud(voice):
    assert spectral.snr_db(voice, np.zeros_like(voice), RATE) == 0
    assert spectral.snr_db(voice, voice[::-1], RATE) == pytest.approx(-3, abs=1)
    with pytest.raises(MetricError, match="silent"):
        spectral.snr_db(np.zeros_like(voice), voice, RATE)


def test_mel_error_sees_all_bands_below_half_the_rate(voice):
    above_8_khz = 0.1 * np.sin(2 * np.pi * 10000 / RATE * np.arange(len(voice)), dtype=np.float32)
    assert spectral.mel_error_db(voice, voice + above_8_khz, RATE) > 0.1


def test_las_rmse_is_that_of_librosa(voice):
    noisy = with_noise(voice, 0.05)
    ours, theirs = (20 * np.log10(np.abs(librosa.stft(w, n_fft=1024, hop_length=256, pad_mode="reflect")) + 1e-5)
                    for w in (voice, noisy))  # fmt: skip
    assert spectral.las_rmse_db(voice, noisy, RATE) == pytest.approx(np.sqrt(np.mean((ours - theirs) ** 2)), rel=1e-4)


def test_multi_resolution_stft_is_that_of_scipy(voice):
    noisy = with_noise(voice, 0.05)
    total = 0.0
    for fft, hop, width in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        window = np.pad(scipy.signal.get_window("hann", width), ((fft - width) // 2, fft - width - (fft - width) // 2))
        x, y = (np.maximum(magnitudes(waveform, window, hop), 1e-4) for waveform in (voice, noisy))
        total += np.linalg.norm(x - y) / np.linalg.norm(x) + np.abs(np.log(x / y)).mean()
    assert spectral.multi_resolution_stft(voice, noisy, RATE) == pytest.approx(total / 3, rel=1e-4)


def magnitudes(waveform, window, hop):
    """|STFT| of centred frames with reflected edges, frame by frame: (bins, T)."""
    padded = np.pad(waveform.astype(np.float64), len(window) // 2, mode="reflect")
    frames = [padded[start : start + len(window)] * window for start in range(0, len(waveform) + 1, hop)]
    return np.abs(scipy.fft.rfft(frames)).T


def test_a_tone_shifted_by_50_cents():
    f0 = 150 + 30 * np.sin(np.linspace(0, 6, RATE))
    low, high = harmonics(f0), harmonics(f0 * 2 ** (50 / 1200))
    assert pitch.f0_rmse_cents(low, high, RATE) == pytest.approx(50, abs=3)
    assert pitch.voicing_error_percent(low, high, RATE) < 2


def test_f0_is_that_of_the_signal():
    f0 = 150 + 30 * np.sin(np.linspace(0, 6, RATE))
    found = pitch.track(harmonics(f0), RATE)
    inside = slice(10, 90)
    true = f0[(np.arange(len(found)) * 0.01 * RATE).astype(int).clip(max=RATE - 1)]
    assert np.abs(1200 * np.log2(found[inside] / true[inside])).max() < 20


@pytest.mark.parametrize(("voiced", "percent"), [(0.5, 100), (0.25, 50), (1.0, 0)])
def test_swapped_voicing(voiced, percent):
    """A voice in the first part of one waveform, silence elsewhere, and the other the other way round."""
    buzz, silence = harmonics(150.0, 2.0), np.zeros(2 * RATE)
    n = round(2 * RATE * voiced)
    first = np.concatenate([buzz[:n], silence[n:]])
    last = np.concatenate([silence[n:], buzz[:n]])
    assert pitch.voicing_error_percent(first, last, RATE) == pytest.approx(percent, abs=4)
    if voiced < 1:
        with pytest.raises(MetricError, match="voiced in both"):
            pitch.f0_rmse_cents(buzz, silence, RATE)


def test_periodicity_of_a_tone_and_of_noise_in_it():
    """Noise of as much power as the tone halves the correlation."""
    tone = harmonics(150.0)
    noisy = tone + tone.std() * np.random.default_rng(0).standard_normal(len(tone))
    f0 = pitch.track(tone, RATE)
    assert pitch.periodicity(tone, f0, RATE).min() > 0.98
    assert pitch.periodicity(noisy, f0, RATE).mean() == pytest.approx(0.5, abs=0.05)
    assert pitch.periodicity_rmse(tone, noisy, RATE) == pytest.approx(0.5, abs=0.07)
    with pytest.raises(MetricError, match="voiced frames"):
        pitch.periodicity_rmse(np.zeros(RATE), tone, RATE)


def test_mcd_is_the_rms_of_the_envelopes_in_db():
    """A smooth filter, cos(3 w) on the mel axis, changes the envelopes by its own decibels and no more."""
    noise = np.random.default_rng(0).standard_normal(2 * RATE)
    spectrum = np.fft.rfft(noise)
    mel = np.log1p(np.linspace(0, RATE / 2, len(spectrum)) / 700)
    decibels = 4 * np.cos(3 * np.pi * mel / mel[-1])
    filtered = np.fft.irfft(spectrum * 10 ** (decibels / 20), len(noise))
    assert cepstral.mcd_db(noise, filtered, RATE) == pytest.approx(4 / np.sqrt(2), rel=0.1)


def test_mel_cepstrum_is_pyworlds(voice):
    samples = voice.astype(np.float64)
    f0, times = pyworld.harvest(samples, RATE)
    expected = pyworld.code_spectral_envelope(pyworld.cheaptrick(samples, f0, times, RATE), RATE, 25)
    assert np.array_equal(cepstral.mel_cepstrum(voice, RATE), expected)


def test_stoi_is_that_of_pystoi(voice):
    noisy = with_noise(voice, 0.1)
    assert speech.stoi(voice, noisy, RATE) == pystoi.stoi(voice, noisy, RATE)


def test_pesq_is_that_of_the_package_at_16_khz():
    clean = golden_waveform(24000, seed=2)
    noisy = with_noise(clean, 0.02)
    assert speech.pesq_wb(clean, noisy, 16000) == pesq.pesq(16000, clean, noisy, "wb")
    upsampled = [librosa.resample(waveform, orig_sr=16000, target_sr=RATE) for waveform in (clean, noisy)]
    assert speech.pesq_wb(*upsampled, RATE) == pytest.approx(speech.pesq_wb(clean, noisy, 16000), abs=0.1)


def test_plcmos_is_that_of_speechmos_with_raters_that_stay():
    clean = golden_waveform(8000, seed=2, sample_rate=16000)
    scores = [opinion.plcmos(clean, 16000) for _ in range(2)]
    assert scores[0] == scores[1] == pytest.approx(plcmos.run(clean, 16000)["plcmos"], abs=0.3)
    assert 1 <= opinion.plcmos(3 * clean, 16000) <= 5  # clipped, which the package refuses to do


@pytest.mark.slow
def test_dnsmos_is_that_of_speechmos():
    clean = golden_waveform(8000, seed=2, sample_rate=16000)
    assert opinion.dnsmos(clean, 16000) == dnsmos.run(clean, 16000)["ovrl_mos"]
    assert 1 <= opinion.dnsmos(3 * clean, 16000) <= 5


def beating(rate, depth, sample_rate=RATE, seconds=6):
    """White noise whose level rises and falls by the share `depth`, `rate` times a second."""
    time = np.arange(seconds * sample_rate) / sample_rate
    noise = 0.1 * np.random.default_rng(1).standard_normal(len(time))
    return noise * (1 + depth * np.cos(2 * np.pi * rate * time))


@pytest.mark.parametrize("sample_rate", [16000, RATE, 48000])
def test_a_line_at_the_frame_rate(sample_rate):
    """An amplitude twice as large, once it stands out of the noise, is 6 dB more; a line elsewhere is none."""
    lines = [envelope.frame_line_db(beating(RATE / 256, depth, sample_rate), sample_rate) for depth in (0.1, 0.2, 0.4)]
    assert np.diff(lines) == pytest.approx([6, 6], abs=0.7)
    for rate, depth in ((RATE / 256, 0), (80, 0.4), (92, 0.4)):
        assert envelope.frame_line_db(beating(rate, depth, sample_rate), sample_rate) < 2


def test_a_line_does_not_depend_on_the_loudness():
    waveform = beating(RATE / 256, 0.2)
    swelling = waveform * np.geomspace(0.01, 1, len(waveform))
    assert envelope.frame_line_db(swelling, RATE) == pytest.approx(envelope.frame_line_db(waveform, RATE), abs=0.5)


def test_a_line_in_less_than_a_second_is_blurred():
    short = [envelope.frame_line_db(beating(RATE / 256, depth)[: RATE // 2], RATE) for depth in (0, 0.8)]
    assert short[0] < 4 and short[0] + 6 < short[1] < envelope.frame_line_db(beating(RATE / 256, 0.8), RATE)


def test_silence_has_no_line():
    with pytest.raises(MetricError, match="sound up to 8 kHz"):
        envelope.frame_line_db(np.zeros(2 * RATE), RATE)


@pytest.mark.parametrize(("metric", "package"), [(speech.stoi, "pystoi"), (speech.pesq_wb, "pesq")])
def test_too_little_speech_is_refused_and_a_missing_package_named(voice, metric, package, monkeypatch):
    with pytest.raises(MetricError):
        metric(voice[:2000], voice[:2000], RATE)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        metric(voice, voice, RATE)
    assert str(caught.value) == f"{package} is not installed: pip install 'apnet2-tts-plugin[eval]'"


@pytest.mark.parametrize(
    ("module", "titles"),
    [("pyworld", "MCD"), ("librosa.filters", "DNSMOS overall, PLCMOS, F0-RMSE, V/UV error, Periodicity RMSE")],
)
def test_metrics_without_their_packages_are_left_out(module, titles, monkeypatch):
    assert table.available() == (table.METRICS, [])
    monkeypatch.setitem(sys.modules, module, None)
    found, missing = table.available()
    left_out = [metric.title.partition(",")[0] for metric in table.METRICS if metric not in found]
    assert ", ".join(left_out) == titles
    package = module.partition(".")[0]
    assert missing == [f"{package} is not installed: pip install 'apnet2-tts-plugin[eval]' (left out: {titles})"]
