"""Conversion of acoustic models' output, against the mel of the same recording computed with our analysis."""

from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.pairing import convert
from apnet2_tts_plugin.pairing.convert import Pairing, pair_configs
from apnet2_tts_plugin.pairing.plan import LINEAR, Verdict

VOCODER = Apnet2Config()
PLAIN = dict(log_func="np.log", spec_gain=1, signal_norm=False)


@pytest.fixture
def speechlike() -> np.ndarray:
    """One second at 22.05 kHz: a gliding tone with harmonics, a little noise, a pause."""
    generator = np.random.default_rng(0)
    time = np.arange(22050) / 22050
    phase = 2 * np.pi * np.cumsum(120 + 60 * time) / 22050
    sound = sum(np.sin(k * phase) / k for k in range(1, 40)) * (time < 0.8)
    return (0.1 * sound + 0.001 * generator.normal(size=22050)).astype(np.float32)


def mel_by_hand(waveform: np.ndarray) -> np.ndarray:
    """Our natural-log mel (80, T), computed with librosa alone."""
    magnitude = np.abs(librosa.stft(waveform, n_fft=1024, hop_length=256, win_length=1024, pad_mode="reflect"))
    basis = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    return np.log(np.maximum(basis @ magnitude, 1e-5))


def paired(settings: dict, model: str = "glow_tts") -> Pairing:
    """A model with these audio settings and the vocoder."""
    audio = BaseAudioConfig(**settings)
    return pair_configs(SimpleNamespace(model=model, audio=audio), AudioProcessor(audio), VOCODER)


def converted(pair: Pairing, waveform: np.ndarray) -> np.ndarray:
    """Our mel (80, T) of the model's own analysis of a waveform."""
    analyse = pair.ap.spectrogram if pair.plan.output == LINEAR else pair.ap.melspectrogram
    return pair.vocoder_input(analyse(waveform).T)[0].numpy()


def waveform_model(**audio) -> Pairing:
    """A model that makes waveforms and the vocoder."""
    return pair_configs(SimpleNamespace(model="xtts", audio=audio), None, VOCODER)


def random_settings(seed: int) -> dict:
    """Scalings of a mel as coqui allows them, with a range wide enough that nothing is clipped."""
    generator = np.random.default_rng(seed)
    pick = generator.choice
    has_log = bool(pick([True, True, False]))
    return dict(
        log_func=str(pick(["np.log", "np.log10"])),
        spec_gain=int(pick([1, 10, 20])),
        signal_norm=has_log and bool(pick([True, False])),
        symmetric_norm=bool(pick([True, False])),
        clip_norm=bool(pick([True, False])),
        max_norm=float(pick([1.0, 4.0])),
        min_level_db=-400,
        ref_level_db=int(pick([60, 80])),
        do_amp_to_db_mel=has_log,
    )


@pytest.mark.parametrize("seed", range(24))
def test_scale_is_undone_exactly(seed, speechlike):
    pair = paired({"mel_fmax": 8000.0, **random_settings(seed)})
    mel, expected = converted(pair, speechlike), mel_by_hand(speechlike)
    assert pair.plan.verdict in (Verdict.SAME, Verdict.EXACT)
    assert mel.dtype == np.float32 and mel.shape == expected.shape
    assert np.abs(mel - expected).max() < 1e-4, pair.plan


def test_statistics_are_undone_exactly(speechlike, tmp_path):
    """Mean and variance of each band, in a file as coqui's `compute_statistics` writes it."""
    generator = np.random.default_rng(0)
    sizes = {"mel_mean": 80, "mel_std": 80, "linear_mean": 513, "linear_std": 513}
    moments = {name: generator.uniform(1, 2, size) for name, size in sizes.items()}
    np.save(tmp_path / "stats.npy", {**moments, "audio_config": {"num_mels": 80}})
    pair = paired({"mel_fmax": 8000.0, "stats_path": str(tmp_path / "stats.npy")})
    assert [item.name for item in pair.plan.with_verdict(Verdict.EXACT)] == ["log_func", "spec_gain", "stats_path"]
    assert np.abs(converted(pair, speechlike) - mel_by_hand(speechlike)).max() < 1e-4


def test_clipped_scale_keeps_what_was_not_clipped(speechlike):
    pair = paired({"mel_fmax": 8000.0})
    floor = -80 * np.log(10) / 20  # -100 + 20 dB
    assert np.abs(converted(pair, speechlike) - np.maximum(mel_by_hand(speechlike), floor)).max() < 1e-4
    assert any("below -80 dB or above 20 dB" in item.remark for item in pair.plan.items)


@pytest.mark.parametrize("has_log", [True, False])
def test_linear_spectrogram_is_filtered_exactly(has_log, speechlike):
    """Tacotron ends in a linear spectrogram."""
    pair = paired({"do_amp_to_db_linear": has_log, "signal_norm": has_log, "clip_norm": False}, "tacotron")
    assert pair.plan.output == LINEAR and pair.plan.verdict == Verdict.EXACT
    assert np.abs(converted(pair, speechlike) - mel_by_hand(speechlike)).max() < 2e-4


def test_full_band_mel_comes_closer(speechlike):
    """coqui's default bands go up to half the sample rate, ours to 8 kHz."""
    pair, expected = paired(PLAIN), mel_by_hand(speechlike)
    as_it_is = np.abs(pair.ap.melspectrogram(speechlike) - expected).mean()
    assert np.abs(converted(pair, speechlike) - expected).mean() < as_it_is / 3


@pytest.mark.parametrize("model", ["glow_tts", "tacotron"])
def test_preemphasis_is_divided_out(model, speechlike):
    plain, expected = {**PLAIN, "mel_fmax": 8000.0}, mel_by_hand(speechlike)
    pair = paired({**plain, "preemphasis": 0.97}, model)
    left = paired(plain).vocoder_input(pair.ap.melspectrogram(speechlike).T)[0].numpy()
    errors = [np.abs(mel - expected)[expected > np.log(0.01)].mean() for mel in (converted(pair, speechlike), left)]
    assert errors[0] < 0.1 and errors[1] > 1


@pytest.mark.parametrize(
    "analysis",
    [
        dict(sample_rate=22050, fft_size=2048, win_length=2048, hop_length=256),
        dict(sample_rate=22050, fft_size=1024, win_length=800, hop_length=200),
        dict(sample_rate=44100, fft_size=2048, win_length=2048, hop_length=512),
        dict(sample_rate=16000, fft_size=1024, win_length=1024, hop_length=256),
    ],
)
def test_another_analysis(analysis, speechlike):
    """Bands, FFT size, window, sample rate and hop differ: level and timing must still agree."""
    waveform = librosa.resample(speechlike, orig_sr=22050, target_sr=analysis["sample_rate"])
    pair = paired({**analysis, "mel_fmin": 50.0, "mel_fmax": 7600.0, **PLAIN})
    mel, expected = converted(pair, waveform), mel_by_hand(speechlike)
    assert abs(mel.shape[1] - expected.shape[1]) <= 1
    frames = min(mel.shape[1], expected.shape[1])
    loud = expected[:, :frames] > np.log(0.01)  # harmonics, and in the bands that both sides have
    loud[:2] = loud[-2:] = False
    difference = (mel[:, :frames] - expected[:, :frames])[loud]
    assert abs(np.median(difference)) < 0.1
    assert np.abs(difference).mean() < 0.3


def test_equal_bands_are_not_touched():
    log_mel = np.random.default_rng(0).normal(size=(80, 7))
    assert np.array_equal(convert.BandProjection(AudioProcessor(VOCODER.audio), VOCODER.audio)(log_mel), log_mel)


def test_frequency_interpolation():
    assert np.array_equal(convert.frequency_interpolation(22050, 1024, 22050, 1024), np.eye(513))
    step = convert.frequency_interpolation(16000, 1024, 22050, 1024)
    ramp = np.arange(513) * 16000 / 1024  # a spectrum whose value is its frequency
    frequency = np.arange(513) * 22050 / 1024
    assert np.allclose(step @ ramp, np.where(frequency <= 8000, frequency, 0))


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0, 1.37, 2.0])
def test_frame_rate(ratio):
    ramp = np.arange(21.0)[None]
    changed = convert.change_frame_rate(ramp, ratio)
    assert changed.shape[1] == round(20 * ratio) + 1
    assert np.allclose(changed[0], np.minimum(np.arange(changed.shape[1]) / ratio, 20))


@pytest.mark.filterwarnings("ignore:n_fft=1024 is too large")
@pytest.mark.parametrize("samples", [1, 256, 1024, 22050])
def test_waveform_is_analysed(samples, speechlike):
    waveform = torch.from_numpy(speechlike[:samples])
    mel = waveform_model(sample_rate=22050).vocoder_input(waveform)
    padded = np.pad(speechlike[:samples], (0, max(0, 513 - samples)))
    assert mel.shape == (1, 80, len(padded) // 256 + 1)
    assert np.abs(mel[0].numpy() - mel_by_hand(padded)).max() < 5e-3  # ours has 1e-9 under the root


def test_waveform_at_another_rate(speechlike):
    doubled = librosa.resample(speechlike, orig_sr=22050, target_sr=44100)
    mel = waveform_model(sample_rate=22050, output_sample_rate=44100).vocoder_input(doubled[None])[0].numpy()
    loud = mel_by_hand(speechlike) > np.log(0.01)
    assert mel.shape == loud.shape
    assert np.abs(mel - mel_by_hand(speechlike))[loud].mean() < 0.02


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames(frames):
    assert paired({}).vocoder_input(torch.zeros(frames, 80)).shape == (1, 80, max(frames, 2))


@pytest.mark.parametrize("shape", [(0, 80), (1, 0), (5, 513), (2, 1000), (1, 5, 80), (80,), (1, 79), (1, 22050)])
def test_refused_shapes(shape):
    with pytest.raises(PairingError, match=r"shape \("):
        paired({}).vocoder_input(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refused_values(value):
    """Of the acoustic model, and of the vocoder: neither becomes sound."""
    mel = torch.zeros(5, 80)
    mel[2, 3] = value
    with pytest.raises(PairingError, match="glow_tts gave NaN or infinite values"):
        paired({}).vocoder_input(mel)
    vocoder = torch.nn.Linear(1, 1)  # anything with parameters
    vocoder.inference = lambda mel: torch.full((1, 1, 1024), value)
    with pytest.raises(PairingError, match="the vocoder gave NaN or infinite samples"):
        paired({}).vocode(torch.zeros(5, 80), vocoder)
