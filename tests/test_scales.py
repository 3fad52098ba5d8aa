"""Mels of other scales are told from natural-log ones, whatever was recorded."""

import numpy as np
import pytest
import torch
from command_line import SAMPLE
from golden_weights import golden_waveform

from apnet2_tts_plugin import audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.network.scales import check_scale
from apnet2_tts_plugin.network.spectra import LogMel

DB = 20 / np.log(10)


@pytest.fixture(scope="module")
def log_mel():
    return LogMel.from_audio_config(Apnet2Config().audio)


@pytest.fixture(scope="module")
def speech(log_mel):
    return log_mel(audio.read_recording(SAMPLE)[0])


def normalised(mel):
    """As coqui-tts does by default."""
    return ((DB * mel - 20 + 100) / 100 * 8 - 4).clamp(-4, 4)


def standardised(mel):
    return (mel - mel.mean(1, keepdim=True)) / mel.std(1, keepdim=True)


OTHERS = {
    "log10": (lambda mel: mel / np.log(10), "log10"),
    "dB": (lambda mel: DB * mel, "in dB; divide by 8.686"),
    "dB below the peak": (lambda mel: (DB * (mel - mel.max())).clamp(min=-80), "in dB"),
    "normalised": (normalised, "normalised"),
    "normalised from 0 to 1": (lambda mel: (normalised(mel) + 4) / 8, "normalised"),
    "normalised from -1 to 1": (lambda mel: normalised(mel) / 4, "normalised"),
    "standardised": (standardised, "normalised"),
    "magnitude": (torch.exp, "no logarithm"),
    "integers": (lambda mel: mel + np.log(32768), "integer scale"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_scales_are_named(case, speech):
    convert, likely = OTHERS[case]
    for mel in (speech, speech[:, :100], speech[:, 300:400]):
        with pytest.raises(DataError, match=rf"expected a natural-log mel, .*{likely}"):
            check_scale(convert(mel))


@pytest.mark.parametrize("gain", [0.001, 0.1, 1.0, 4.0])
def test_natural_logs_pass_at_any_level(gain, log_mel, speech):
    check_scale(speech + np.log(gain))
    check_scale(log_mel(gain * torch.from_numpy(golden_waveform(22050, seed=0))))
    check_scale(torch.zeros(80, 9) + np.log(1e-5))


@pytest.mark.parametrize("n_samples", [512, 22050])
@pytest.mark.parametrize("level", [0.001, 0.03, 0.1, 0.3, 0.577])
def test_natural_logs_of_noise_pass(level, n_samples, log_mel):
    """Noise has no quiet parts; at 0.577 it fills the whole scale."""
    noise = np.random.default_rng(0).uniform(-1, 1, max(n_samples, 513)) * level / 0.577
    check_scale(log_mel(noise.astype(np.float32)))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3, 1.0, 3.0])
def test_natural_logs_of_noisy_speech_pass(ratio, log_mel):
    waveform = audio.read_recording(SAMPLE)[0]
    noise = ratio * waveform.std() * np.random.default_rng(0).standard_normal(len(waveform))
    check_scale(log_mel((waveform + noise).astype(np.float32)))
    check_scale(log_mel((waveform + noise).astype(np.float32) * 0.3))


def test_each_frame_of_speech_passes(speech):
    for i in range(0, speech.shape[1] - 2, 2):
        check_scale(speech[:, i : i + 2])
