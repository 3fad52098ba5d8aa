"""The model as a vocoder: short, padded, half-precision and odd input, and whole recordings."""

import numpy as np
import pytest
import tiny
import torch
from golden_weights import golden_waveform
from torch import nn

from apnet2_tts_plugin.config import PredictorConfig
from apnet2_tts_plugin.network.convnext import GlobalResponseNorm

TWO_BLOCKS = PredictorConfig(channels=16, hidden_channels=32, blocks=2)


@pytest.fixture(scope="module", params=["mel", "pseudo_inverse"])
def model(request):
    """Official and FreeV's; their GRN is as in a trained model, not the identity that it starts as."""
    model = tiny.model(pools=True, amplitude_start=request.param, phase=TWO_BLOCKS)
    for name, parameter in model.named_parameters():
        if name.endswith(("beta", "bias")):  # zero at first
            nn.init.normal_(parameter, std=0.3)
    return model


def random_mel(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) - 4


@pytest.mark.parametrize("n_frames", [2, 3, 33, 200])
def test_length(model, n_frames):
    audio = model.inference(random_mel(2, 80, n_frames))
    assert audio.shape == (2, 1, (n_frames - 1) * 256)
    assert audio.dtype == torch.float32 and torch.isfinite(audio).all()


def test_inference_equals_forward(model):
    mel = random_mel(1, 80, 40)
    expected = model(mel).waveform.detach()
    torch.testing.assert_close(model.inference(mel)[:, 0], expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    torch.testing.assert_close(model.inference(mel.double()), model.inference(mel))
    torch.testing.assert_close(model.inference(mel.numpy()), model.inference(mel))


@pytest.mark.parametrize("lengths", [[50, 50, 50], [50, 31, 2], [7, 50, 18]])
def test_padded_batch_equals_single_runs(model, lengths):
    mel = random_mel(3, 80, 50)
    for i, length in enumerate(lengths):
        mel[i, :, length:] = -torch.inf
    batch = model.inference(mel, lengths=torch.tensor(lengths))
    for i, length in enumerate(lengths):
        single = model.inference(mel[i : i + 1, :, :length])
        n_samples = (length - 1) * 256
        assert (batch[i, :, :n_samples] - single[0]).abs().max() < 1e-4 * single.abs().max()
        assert not batch[i, :, n_samples:].any()


@pytest.mark.parametrize("silent_phase", [False, True])
def test_padded_batch_of_an_untrained_model(silent_phase):
    """Its biases are 0, so that padded frames may have spectra, or pseudo spectra, of zeros alone."""
    model = tiny.model()
    if silent_phase:
        for conv in (model.generator.phase.real_conv, model.generator.phase.imag_conv):
            nn.init.zeros_(conv.weight)
    audio = model.inference(random_mel(3, 80, 50), lengths=torch.tensor([50, 31, 2]))
    assert audio.isfinite().all() and audio.any() != silent_phase
    assert not audio[1, :, 30 * 256 :].any() and not audio[2, :, 256:].any()


@pytest.mark.parametrize(
    ("mel", "lengths", "message"),
    [
        (torch.zeros(1, 80, 1), None, r"mel of 1 frames, expected at least 2: T frames give \(T - 1\) \* 256 samples"),
        (torch.zeros(1, 80, 0), None, "mel of 0 frames, expected at least 2"),
        (torch.zeros(1, 100, 9), None, r"mel of shape \(1, 100, 9\), expected \(batch, 80, frames\)"),
        (torch.zeros(80, 9), None, r"mel of shape \(80, 9\)"),
        (torch.zeros(1, 80, 9, dtype=torch.int64), None, "mel of type torch.int64, expected floating"),
        (torch.zeros(2, 80, 9), torch.tensor([9, 1]), "mel of 1 frames"),
        (torch.zeros(2, 80, 9), torch.tensor([9, 10]), r"lengths \[9, 10\], expected 2 numbers of 2 to 9"),
        (torch.zeros(2, 80, 9), torch.tensor([9]), r"lengths \[9\], expected 2 numbers of 2 to 9"),
    ],
)
def test_bad_mels_are_refused(mel, lengths, message):
    with pytest.raises(ValueError, match=message):
        tiny.model().inference(mel, lengths=lengths)


@pytest.mark.parametrize("mode", ["autocast", "weights"])
def test_bfloat16_is_close_to_float32(model, mode):
    mel = random_mel(1, 80, 60)
    expected = model.inference(mel)
    half = tiny.model(amplitude_start=model.config.amplitude_start, phase=TWO_BLOCKS)
    half.load_state_dict(model.state_dict())
    if mode == "weights":
        audio = half.bfloat16().inference(mel)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            audio = half.inference(mel)
    assert audio.dtype == torch.float32
    noise = (audio - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 15


def test_response_norm_has_room_in_half_precision():
    """300 squared is beyond float16."""
    norm = GlobalResponseNorm(4)
    nn.init.normal_(norm.gamma)
    x = 300 * torch.randn(1, 9, 4)
    with torch.no_grad():
        torch.testing.assert_close(norm.half()(x.half()).float(), norm.float()(x), rtol=1e-2, atol=1.0)


def test_gradients_reach_every_parameter(model):
    predicted = model(random_mel(2, 80, 33))
    (predicted.waveform.square().sum() + predicted.log_amplitude.sum()).backward()
    missing = [name for name, p in model.generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    model.zero_grad()


def test_copy_synthesis_vocodes_the_mel(model):
    recording = golden_waveform(5120, seed=1)
    expected = model.inference(model.log_mel(torch.from_numpy(recording)[None])).flatten()
    for waveform in (recording, torch.from_numpy(recording), recording.astype(np.float64)):
        copy = model.copy_synthesis(waveform, sample_rate=22050)
        assert copy.dtype == torch.float32
        torch.testing.assert_close(copy, expected)


@pytest.mark.parametrize("n_samples", [1, 255, 256, 513, 5000])
def test_copy_synthesis_keeps_the_length(model, n_samples):
    copy = model.copy_synthesis(torch.full((n_samples,), 0.1), sample_rate=22050)
    assert copy.shape == (n_samples,) and copy.isfinite().all()


def test_copy_synthesis_resamples():
    model, analysed = tiny.model(), []
    model.log_mel.register_forward_pre_hook(lambda module, inputs: analysed.append(inputs[0]))
    tone = 0.5 * torch.sin(2 * torch.pi * 220 / 44100 * torch.arange(44100))
    assert model.copy_synthesis(tone, sample_rate=44100).shape == (22050,)
    ((waveform,),) = analysed
    spectrum = torch.fft.rfft(waveform[:22050]).abs()  # in bins of 1 Hz
    assert spectrum.argmax() == 220 and waveform.abs().max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rate", [0, -22050, 16000.5, "22050", None])
def test_copy_synthesis_refuses_a_rate(model, rate):
    with pytest.raises(ValueError, match=f"sample_rate {rate!r}, expected a whole number of Hz"):
        model.copy_synthesis(torch.zeros(5000), sample_rate=rate)


@pytest.mark.parametrize(
    ("waveform", "settings", "message"),
    [
        (torch.zeros(1, 5000), {}, r"waveform of shape \(1, 5000\), expected \(samples,\), channels mixed down"),
        (torch.zeros(0), {}, r"waveform of shape \(0,\)"),
        (np.zeros(5000, dtype=np.int16), {}, "type torch.int16, expected floating"),
        (torch.zeros(5000), {"input_features": "latent"}, "the model vocodes the latents of a VITS, expected one"),
    ],
)
def test_copy_synthesis_refuses(waveform, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.model(**settings).copy_synthesis(waveform, sample_rate=22050)
