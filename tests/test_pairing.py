"""Conversion of acoustic models' output, against the mel of the same recording computed with our analysis."""

from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin import pairing
from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.pairing import Bands, PairingError
from apnet2_tts_plugin.plan import LINEAR, MEL, Verdict

AUDIO = Apnet2AudioConfig()
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


def mel_by_hand(waveform: np.ndarray, sample_rate: int = 22050) -> np.ndarray:
    """Our natural-log mel (80, T), computed with librosa alone."""
    magnitude = np.abs(librosa.stft(waveform, n_fft=1024, hop_length=256, win_length=1024, pad_mode="reflect"))
    basis = librosa.filters.mel(sr=sample_rate, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    return np.log(np.maximum(basis @ magnitude, 1e-5))


def paired(settings: dict, model: str = "glow_tts") -> pairing.Pairing:
    """A model with these audio settings and the vocoder."""
    audio = BaseAudioConfig(**settings)
    return pairing.pair_configs(SimpleNamespace(model=model, audio=audio), AudioProcessor(audio), VOCODER)


def waveform_model(**audio) -> pairing.Pairing:
    """A model that makes waveforms and the vocoder."""
    return pairing.pair_configs(SimpleNamespace(model="xtts", audio=audio), None, VOCODER)


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
    mel = pair.ap.melspectrogram(speechlike)
    converted = pair.vocoder_input(mel.T)
    assert pair.plan.verdict in (Verdict.SAME, Verdict.EXACT)
    assert converted.dtype == torch.float32 and converted.shape == (1, 80, mel.shape[1])
    assert np.abs(converted[0].numpy() - mel_by_hand(speechlike)).max() < 1e-4, pair.plan


def test_statistics_are_undone_exactly(speechlike, tmp_path):
    """Mean and variance of each band, in a file as coqui's `compute_statistics` writes it."""
    plain = BaseAudioConfig(mel_fmax=8000.0)
    generator = np.random.default_rng(0)
    moments = {
        f"{kind}_{name}": generator.uniform(1, 2, size)
        for kind, size in (("mel", 80), ("linear", 513))
        for name in ("mean", "std")
    }
    skipped = ("stats_path", "griffin_lim_iters", "do_trim_silence", "ref_level_db", "power")
    known = {key: value for key, value in vars(AudioProcessor(plain)).items() if key in plain and key not in skipped}
    np.save(tmp_path / "stats.npy", {**moments, "audio_config": known}, allow_pickle=True)
    pair = paired({"mel_fmax": 8000.0, "stats_path": str(tmp_path / "stats.npy")})
    converted = pair.vocoder_input(pair.ap.melspectrogram(speechlike).T)[0].numpy()
    assert [item.name for item in pair.plan.with_verdict(Verdict.EXACT)] == ["log_func", "spec_gain", "stats_path"]
    assert np.abs(converted - mel_by_hand(speechlike)).max() < 1e-4


def test_clipped_scale_keeps_what_was_not_clipped(speechlike):
    pair = paired({"mel_fmax": 8000.0})
    converted = pair.vocoder_input(pair.ap.melspectrogram(speechlike).T)[0].numpy()
    floor = -80 * np.log(10) / 20  # -100 + 20 dB
    assert np.abs(converted - np.maximum(mel_by_hand(speechlike), floor)).max() < 1e-4
    assert any("below -80 dB or above 20 dB" in item.remark for item in pair.plan.items)


@pytest.mark.parametrize("has_log", [True, False])
def test_linear_spectrogram_is_filtered_exactly(has_log, speechlike):
    """Tacotron ends in a linear spectrogram."""
    pair = paired({"do_amp_to_db_linear": has_log, "signal_norm": has_log, "clip_norm": False}, "tacotron")
    converted = pair.vocoder_input(pair.ap.spectrogram(speechlike).T)[0].numpy()
    assert pair.plan.output == LINEAR and pair.plan.verdict == Verdict.EXACT
    assert np.abs(converted - mel_by_hand(speechlike)).max() < 2e-4


def test_full_band_mel_comes_closer(speechlike):
    """coqui's default bands go up to half the sample rate, ours to 8 kHz."""
    pair = paired(PLAIN)
    mel = pair.ap.melspectrogram(speechlike)
    expected = mel_by_hand(speechlike)
    as_it_is = np.abs(mel - expected).mean()
    converted = np.abs(pair.vocoder_input(mel.T)[0].numpy() - expected).mean()
    assert converted < as_it_is / 3


@pytest.mark.parametrize("model", ["glow_tts", "tacotron"])
def test_preemphasis_is_divided_out(model, speechlike):
    pair = paired({**PLAIN, "do_amp_to_db_linear": True, "mel_fmax": 8000.0, "preemphasis": 0.97}, model)
    analyse = pair.ap.melspectrogram if model == "glow_tts" else pair.ap.spectrogram
    loud = mel_by_hand(speechlike) > np.log(0.01)
    difference = (pair.vocoder_input(analyse(speechlike).T)[0].numpy() - mel_by_hand(speechlike))[loud]
    left = paired({**PLAIN, "mel_fmax": 8000.0}).vocoder_input(pair.ap.melspectrogram(speechlike).T)[0].numpy()
    assert np.abs(difference).mean() < 0.1 < 1 < np.abs(left - mel_by_hand(speechlike))[loud].mean()


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
    converted = pair.vocoder_input(pair.ap.melspectrogram(waveform).T)[0].numpy()
    expected = mel_by_hand(speechlike)
    assert abs(converted.shape[1] - expected.shape[1]) <= 1
    frames = min(converted.shape[1], expected.shape[1])
    loud = expected[:, :frames] > np.log(0.01)  # harmonics, and in the bands that both sides have
    loud[:2] = loud[-2:] = False
    difference = (converted[:, :frames] - expected[:, :frames])[loud]
    assert abs(np.median(difference)) < 0.1
    assert np.abs(difference).mean() < 0.3


def test_equal_bands_are_not_touched():
    log_mel = np.random.default_rng(0).normal(size=(80, 7))
    assert np.array_equal(Bands(AudioProcessor(Apnet2AudioConfig()), AUDIO, MEL)(log_mel), log_mel)


def test_frequency_step():
    assert np.array_equal(pairing.frequency_step(22050, 1024, 22050, 1024), np.eye(513))
    step = pairing.frequency_step(16000, 1024, 22050, 1024)
    ramp = np.arange(513) * 16000 / 1024  # a spectrum whose value is its frequency
    frequency = np.arange(513) * 22050 / 1024
    assert np.allclose(step @ ramp, np.where(frequency <= 8000, frequency, 0))


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0, 1.37, 2.0])
def test_frame_rate(ratio):
    ramp = np.arange(21.0)[None]
    changed = pairing.change_frame_rate(ramp, ratio)
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
    mel = torch.zeros(5, 80)
    mel[2, 3] = value
    with pytest.raises(PairingError, match="NaN or infinite"):
        paired({}).vocoder_input(mel)
