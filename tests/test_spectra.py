"""The transforms against librosa, torch and float64."""

import librosa
import numpy as np
import pytest
import torch
from golden_weights import golden_waveform

from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.network.spectra import ISTFT, STFT, LogMel, log_amplitude, mel_basis, phase

SIZES = [(1024, 256, 1024), (1024, 256, 800), (512, 200, 400), (2048, 300, 1200)]


@pytest.fixture(scope="module")
def waveform():
    return torch.from_numpy(np.stack([golden_waveform(9000, 1), golden_waveform(9000, 2)]))


@pytest.fixture(scope="module")
def log_mel():
    return LogMel(22050, 1024, 256, 1024, 80, 0.0, 8000.0)


def librosa_stft(waveform, n_fft, hop_length, win_length):
    """In float64, of the first waveform."""
    sizes = {"n_fft": n_fft, "hop_length": hop_length, "win_length": win_length}
    return librosa.stft(waveform[0].double().numpy(), **sizes, pad_mode="reflect")


@pytest.mark.parametrize("sizes", SIZES)
def test_stft_agrees_with_librosa(waveform, sizes):
    theirs = librosa_stft(waveform, *sizes)
    ours = STFT(*sizes)(waveform[:1])[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("sizes", SIZES)
def test_istft_agrees_with_torch_on_any_spectrum(sizes):
    n_fft, hop_length, win_length = sizes
    torch.manual_seed(0)
    spectrum = torch.randn(2, n_fft // 2 + 1, 12, dtype=torch.complex64)
    theirs = torch.istft(spectrum, n_fft, hop_length, win_length, torch.hann_window(win_length))
    ours = ISTFT(*sizes)(spectrum)
    assert ours.shape == theirs.shape == (2, 11 * hop_length)
    # At the very ends of short windows the sum of squared windows is tiny and both amplify rounding.
    torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


def test_masked_istft_equals_single_ones():
    torch.manual_seed(0)
    spectrum = torch.randn(2, 513, 20, dtype=torch.complex64)
    mask = torch.ones(2, 20, 1)
    mask[1, 7:] = 0
    istft = ISTFT(1024, 256, 1024)
    batch = istft(spectrum, mask)
    torch.testing.assert_close(batch[:1], istft(spectrum[:1]))
    torch.testing.assert_close(batch[1:, : 6 * 256], istft(spectrum[1:, :, :7]))
    assert not batch[1, 6 * 256 + 512 :].any()  # where no frame is left


def test_log_mel_agrees_with_librosa_in_float64(log_mel, waveform):
    magnitude = np.abs(librosa_stft(waveform, 1024, 256, 1024))
    basis = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000, dtype=np.float64)
    theirs = np.log(np.maximum(basis @ np.sqrt(magnitude**2 + 1e-9), 1e-5))
    np.testing.assert_allclose(log_mel(waveform[:1])[0].numpy(), theirs, atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [(22050, 1024, 80, 0.0, 8000.0), (22050, 1024, 80, 0.0, None), (11025, 512, 40, 50, None), (8000, 256, 20, 0, 900)],
)
def test_mel_filters_are_librosas(sizes):
    rate, n_fft, n_mels, fmin, fmax = sizes
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    ours = mel_basis(*sizes)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-7 * theirs.max(), rtol=0)


def test_silence_stays_finite(log_mel):
    silence = torch.zeros(1, 4096, requires_grad=True)
    log_mel(silence).sum().backward()
    assert torch.isfinite(silence.grad).all()
    spectrum = log_mel.stft(silence.detach())
    assert torch.isfinite(log_amplitude(spectrum)).all() and torch.isfinite(phase(spectrum)).all()


def test_everything_stays_in_float32_under_autocast(log_mel, waveform):
    expected = log_mel(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel = log_mel(waveform)
    assert mel.dtype == torch.float32
    torch.testing.assert_close(mel, expected)


def test_buffers_keep_float32_and_stay_out_of_checkpoints():
    log_mel = LogMel(22050, 1024, 256, 1024, 80, 0.0, 8000.0)
    before = {name: buffer.clone() for name, buffer in log_mel.named_buffers()}
    log_mel.bfloat16()
    for name, buffer in log_mel.named_buffers():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, before[name])
    assert not log_mel.state_dict()
    assert all(buffer.device.type == "meta" for buffer in log_mel.to("meta").buffers())


def test_log_mel_takes_arrays(log_mel, waveform):
    expected = log_mel(waveform)
    assert torch.equal(log_mel(waveform.numpy()), expected)
    assert torch.equal(log_mel(waveform.numpy().astype(np.float64)), expected)
    reverse = waveform.numpy()[:, ::-1]  # which torch takes only as a copy
    assert torch.equal(log_mel(reverse), log_mel(reverse.copy()))


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (
            torch.zeros(1, 9000, dtype=torch.int16),
            "type torch.int16, expected floating .*; divide 16-bit samples by 32768",
        ),
        (np.zeros((1, 9000), np.int16), "type torch.int16, expected floating .*; divide 16-bit samples by 32768"),
        (np.zeros((1, 9000), np.int32), "type torch.int32, expected floating"),
        (torch.zeros(1, 1, 9000), r"shape \(1, 1, 9000\), expected \(batch, samples\)"),
        (torch.zeros(1, 512), "expected .* with 513 samples or more"),
    ],
)
def test_log_mel_refuses(log_mel, waveform, message):
    with pytest.raises(DataError, match=message):
        log_mel(waveform)
