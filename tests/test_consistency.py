"""Iterations behind the networks: fast Griffin-Lim against librosa's STFT, and the mel that comes out."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile as sf
import torch

from apnet2_tts_plugin.network.consistency import FastGriffinLim, MelConsistency
from apnet2_tts_plugin.network.spectra import ISTFT, STFT, LogMel, mel_basis

FFT, HOP, RATE = 1024, 256, 22050
SPEECH = Path(__file__).parent.parent / "recipes" / "ljspeech" / "sample.flac"


def test_fast_griffin_lim_on_librosas_transforms():
    rng = np.random.default_rng(0)
    waveform = 0.1 * rng.normal(size=40 * HOP).astype(np.float32)
    spectrum = STFT(FFT, HOP, FFT)(torch.from_numpy(waveform)[None])
    start = torch.polar(spectrum.abs(), torch.from_numpy(rng.uniform(0, 2 * np.pi, spectrum.shape)).float())
    istft = ISTFT(FFT, HOP, FFT)
    ours = istft(FastGriffinLim(istft, HOP, 3)(start, start.abs()))[0].numpy()
    angles, previous, momentum = np.exp(1j * np.angle(start[0])), 0.0, 0.99 / 1.99
    magnitude = spectrum.abs()[0].numpy()
    settings = dict(n_fft=FFT, hop_length=HOP)
    for _ in range(3):
        rebuilt = librosa.stft(librosa.istft(magnitude * angles, **settings), pad_mode="reflect", **settings)
        angles = rebuilt - momentum * previous
        angles, previous = angles / (np.abs(angles) + 1e-16), rebuilt
    np.testing.assert_allclose(ours, librosa.istft(magnitude * angles, **settings), atol=1e-3 * np.abs(ours).max())


def recording():
    """A spectrum (1, n_bins, T), of whole hops, and its mel."""
    waveform = torch.from_numpy(sf.read(SPEECH, dtype="float32")[0])[None]
    log_mel = LogMel(RATE, FFT, HOP, FFT, 80, 0.0, 8000.0)
    spectrum = log_mel.stft(waveform[:, : waveform.shape[1] // HOP * HOP])
    return spectrum, log_mel.from_spectrum(spectrum)


@pytest.fixture(scope="module")
def speech():
    """A recording's spectrum with phases that are wrong, its amplitude, and its mel."""
    spectrum, mel = recording()
    wrong = torch.randn(spectrum.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).sgn()
    return spectrum.abs() * wrong, spectrum.abs(), mel


def mel_consistency(iterations, fmax=8000.0):
    return MelConsistency(ISTFT(FFT, HOP, FFT), HOP, iterations, mel_basis(RATE, FFT, 80, 0.0, fmax))


def mel_error(waveform, mel):
    """Mean absolute error of the natural-log mel of (1, N), without the frames at the edges."""
    log_mel = LogMel(RATE, FFT, HOP, FFT, 80, 0.0, 8000.0)
    return (log_mel(waveform) - mel)[:, :, 2:-2].abs().mean().item()


def test_the_mel_comes_out(speech):
    spectrum, amplitude, mel = speech
    istft = ISTFT(FFT, HOP, FFT)
    errors = [mel_error(istft(mel_consistency(n)(spectrum, amplitude, mel)), mel) for n in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[1] < errors[0] / 2 and errors[3] < 0.3 * errors[0]


def test_a_waveform_with_that_mel_stays():
    spectrum, mel = recording()
    after = mel_consistency(2)(spectrum, spectrum.abs(), mel)
    torch.testing.assert_close(after, spectrum, atol=1e-4 * spectrum.abs().max().item(), rtol=0)


def test_gains_are_those_of_the_bands():
    """Below 8 kHz a factor of the mel is a factor of the bins; above, the amplitude decides."""
    consistency = mel_consistency(1)
    size = torch.rand(1, FFT // 2 + 1, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    mel = (consistency.basis @ size).log() + np.log(2)
    gain = consistency.gain(size, 3 * size, mel)
    top = int(np.ceil(8000 * FFT / RATE))
    torch.testing.assert_close(gain[:, 1:top], torch.full((1, top - 1, 4), 2.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(gain[:, top:], torch.full((1, FFT // 2 + 1 - top, 4), 3.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fmax", [8000.0, None])
def test_silence_and_noise_where_there_is_none(fmax):
    """No division by nothing, and no more than 26 dB at once."""
    consistency, floor = mel_consistency(2, fmax), torch.full((1, 80, 9), np.log(1e-5).astype(np.float32))
    shape = 1, FFT // 2 + 1, 9
    silence = torch.zeros(shape, dtype=torch.complex64)
    assert consistency(silence, silence.abs(), floor + 8).abs().max() < 1e-4
    hiss = 1e-7 * torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    hiss.requires_grad_()
    after = consistency(hiss, hiss.detach().abs(), floor + 8)
    after.abs().sum().backward()
    assert hiss.grad.isfinite().all() and 0 < hiss.grad.abs().max() < 1e6
    for level, gain in ((8, np.exp(3)), (-8, np.exp(-3))):
        size = torch.ones(shape) if level < 0 else torch.full(shape, 1e-6)
        given = (consistency.basis @ size).clamp(min=1e-5).log() + level
        expected = torch.full((int(consistency.covered.sum()), 9), gain, dtype=torch.float32)
        torch.testing.assert_close(consistency.gain(size, size, given)[0, consistency.covered], expected)


def test_without_iterations_nothing_changes(speech):
    spectrum, amplitude, mel = speech
    assert FastGriffinLim(ISTFT(FFT, HOP, FFT), HOP, 0)(spectrum, amplitude) is spectrum
    assert mel_consistency(0)(spectrum, amplitude, mel) is spectrum
