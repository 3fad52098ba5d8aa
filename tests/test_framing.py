"""Mels of HiFi-GAN's framing: what the command makes of them lies where the recording is, and is as long."""

from pathlib import Path

import command_line
import librosa
import numpy as np
import pytest
import soundfile
import tiny
import torch
import torch.nn.functional as F
from command_line import HOP, RATE, a_wav, an_npy, one_line

from apnet2_tts_plugin.pairing.framing import vocode_hifigan_frames
from apnet2_tts_plugin.weights.checkpoints import save_config, save_weights

workplace, apnet2 = command_line.workplace, command_line.apnet2  # fixtures
BUNDLED = Path(command_line.cli.__file__).parent / "bundled" / "apnet2"
SAMPLE = Path(__file__).parents[1] / "recipes" / "ljspeech" / "sample.flac"


def hifigan_mel(waveform: np.ndarray) -> np.ndarray:
    """The analysis of HiFi-GAN's `meldataset.py`: (80, len(waveform) // HOP)."""
    padded = F.pad(torch.from_numpy(waveform)[None], ((1024 - HOP) // 2,) * 2, mode="reflect")
    spectrum = torch.stft(padded, 1024, HOP, window=torch.hann_window(1024), center=False, return_complex=True)[0]
    magnitude = (spectrum.abs().square() + 1e-9).sqrt().numpy()
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    return np.log(np.maximum(filters @ magnitude, 1e-5))


def envelope(waveform: np.ndarray) -> np.ndarray:
    """Loudness within 20 milliseconds, (N,)."""
    return np.convolve(np.abs(waveform), np.hanning(1024), mode="same")


def lag(waveform: np.ndarray, reference: np.ndarray) -> int:
    """By how many samples the envelope of the one comes after that of the other."""
    length = min(len(waveform), len(reference))
    a, b = (np.fft.rfft(envelope(x[:length]) - envelope(x[:length]).mean(), 2 * length) for x in (waveform, reference))
    correlation = np.fft.irfft(a * b.conj())
    return int(np.argmax(np.roll(correlation, length))) - length


def test_command(apnet2):
    """Beside the copy synthesis of the recording that the mel is of."""
    recording = soundfile.read(SAMPLE, dtype="float32")[0][: 8 * RATE // HOP * HOP]
    an_npy(hifigan_mel(recording))
    assert apnet2("vocode", a_wav(recording), "copy.wav", "--model", BUNDLED)[0] == 0
    lags = {}
    for framing, samples in (("hifigan", len(recording)), ("centred", len(recording) - HOP)):
        assert apnet2("vocode", "in.npy", "out.wav", "--model", BUNDLED, "--framing", framing)[0] == 0
        waveform, _ = soundfile.read("out.wav")
        assert len(waveform) == samples
        lags[framing] = lag(waveform, soundfile.read("copy.wav")[0])
    assert abs(lags["hifigan"]) < 16 and abs(lags["centred"] + HOP // 2) < 32, lags


@pytest.mark.parametrize("hop_length", [256, 255])
def test_samples_are_those_of_the_frames(hop_length):
    """A vocoder whose sample n is n, where the mel's frames say where they are centred."""

    class Ramp(torch.nn.Module):
        config = tiny.config()

        def inference(self, mel):
            positions = np.arange((mel.shape[2] - 1) * hop_length) / hop_length
            return torch.from_numpy(np.interp(positions, np.arange(mel.shape[2]), mel[0, 0]))[None, None]

    Ramp.config.audio.hop_length = hop_length
    padding = (1024 - hop_length) // 2
    centres = torch.arange(9.0)[None, None] * hop_length - padding + 512
    waveform = vocode_hifigan_frames(Ramp(), centres)
    assert waveform.shape == (1, 1, 9 * hop_length)
    inside = slice(hop_length, 8 * hop_length)
    assert np.allclose(waveform[0, 0, inside], np.arange(9 * hop_length)[inside])


def test_latents_have_none(apnet2, tmp_path):
    latent = tiny.model(input_features="latent")
    save_config(latent.config, tmp_path / "vits")
    save_weights(latent.generator, tmp_path / "vits")
    an_npy(np.zeros((192, 9), np.float32))
    status, _, err = apnet2("vocode", "in.npy", "out.wav", "--model", tmp_path / "vits", "--framing", "hifigan")
    assert status == 2 and "is for mels" in one_line(err) and not Path("out.wav").exists()


def test_mels_of_an_acoustic_model_are_centred(apnet2):
    status, _, err = apnet2("vocode", an_npy(), "out.wav", "--tts", "config.json", "--framing", "hifigan")
    assert status == 2 and "leave it out" in one_line(err) and not Path("out.wav").exists()
