"""Conversion of acoustic models' output, against the mel of the same recording computed with our analysis."""

import logging
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin import pairing
from apnet2_tts_plugin.config import Apnet2AudioConfig

AUDIO = Apnet2AudioConfig()


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
        ref_level_db=int(pick([0, 20])),
        do_amp_to_db_mel=has_log,
    )


@pytest.mark.parametrize("seed", range(24))
def test_scale_is_undone_exactly(seed, speechlike):
    settings = random_settings(seed)
    ap = AudioProcessor(BaseAudioConfig(mel_fmax=8000.0, **settings))
    mel = ap.melspectrogram(speechlike)
    converted = pairing.convert_mel(mel.T, ap, AUDIO)
    assert converted.dtype == torch.float32 and converted.shape == (1, 80, mel.shape[1])
    assert np.abs(converted[0].numpy() - mel_by_hand(speechlike)).max() < 1e-4, settings


def test_clipped_scale_keeps_what_was_not_clipped(speechlike):
    ap = AudioProcessor(BaseAudioConfig(mel_fmax=8000.0))
    converted = pairing.convert_mel(ap.melspectrogram(speechlike).T, ap, AUDIO)[0].numpy()
    floor = -80 * np.log(10) / 20  # -100 + 20 dB
    assert np.abs(converted - np.maximum(mel_by_hand(speechlike), floor)).max() < 1e-4


def test_full_band_mel_comes_closer(speechlike):
    """coqui's default bands go up to half the sample rate, ours to 8 kHz."""
    ap = AudioProcessor(BaseAudioConfig(log_func="np.log", spec_gain=1, signal_norm=False))
    mel = ap.melspectrogram(speechlike)
    expected = mel_by_hand(speechlike)
    as_it_is = np.abs(mel - expected).mean()
    converted = np.abs(pairing.convert_mel(mel.T, ap, AUDIO)[0].numpy() - expected).mean()
    assert converted < as_it_is / 3


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
    settings = dict(mel_fmin=50.0, mel_fmax=7600.0, log_func="np.log", spec_gain=1, signal_norm=False)
    ap = AudioProcessor(BaseAudioConfig(**analysis, **settings))
    converted = pairing.convert_mel(ap.melspectrogram(waveform).T, ap, AUDIO)[0].numpy()
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
    ap = AudioProcessor(Apnet2AudioConfig())
    assert np.array_equal(pairing.change_bands(log_mel, ap, AUDIO), log_mel)


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
    model = SimpleNamespace(config=SimpleNamespace(audio=BaseAudioConfig()))
    mel = pairing.vocoder_input(waveform, model, AUDIO)
    padded = np.pad(speechlike[:samples], (0, max(0, 513 - samples)))
    assert mel.shape == (1, 80, len(padded) // 256 + 1)
    assert np.abs(mel[0].numpy() - mel_by_hand(padded)).max() < 5e-3  # ours has 1e-9 under the root


def test_waveform_at_another_rate(speechlike):
    doubled = librosa.resample(speechlike, orig_sr=22050, target_sr=44100)
    model = SimpleNamespace(config=SimpleNamespace(audio={"sample_rate": 22050, "output_sample_rate": 44100}))
    mel = pairing.vocoder_input(torch.from_numpy(doubled)[None], model, AUDIO)[0].numpy()
    loud = mel_by_hand(speechlike) > np.log(0.01)
    assert mel.shape == loud.shape
    assert np.abs(mel - mel_by_hand(speechlike))[loud].mean() < 0.02


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames(frames):
    model = SimpleNamespace(ap=AudioProcessor(BaseAudioConfig()))
    mel = pairing.vocoder_input(torch.zeros(frames, 80), model, AUDIO)
    assert mel.shape == (1, 80, max(frames, 2))


@pytest.mark.parametrize("shape", [(0, 80), (1, 0), (5, 513), (2, 1000), (1, 5, 80)])
def test_refused(shape):
    model = SimpleNamespace(ap=AudioProcessor(BaseAudioConfig()), config=SimpleNamespace(audio=BaseAudioConfig()))
    with pytest.raises(pairing.PairingError, match=r"shape \("):
        pairing.vocoder_input(torch.zeros(shape), model, AUDIO)


def test_preemphasis_is_mentioned_once(caplog, speechlike):
    ap = AudioProcessor(BaseAudioConfig(preemphasis=0.97, mel_fmax=8000.0))
    pairing._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "apnet2_tts_plugin"):
        for _ in range(2):
            pairing.convert_mel(ap.melspectrogram(speechlike).T, ap, AUDIO)
    assert sum("preemphasis of 0.97" in message for message in caplog.messages) == 1
