"""The generator's properties: short, padded, half-precision and non-float input."""

import pytest
import torch

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.generator import GlobalResponseNorm
from apnet2_tts_plugin.model import Apnet2

SMALL = {"channels": 24, "hidden_channels": 48, "blocks": 2}


def small_config(**settings) -> Apnet2Config:
    settings = {"amplitude": PredictorConfig(**SMALL), "phase": PredictorConfig(**SMALL)} | settings
    return Apnet2Config(mpd_channels=[4, 8], mrd_channels=4, **settings)


CONFIGS = {
    "apnet2": small_config(),
    "freev": small_config(
        amplitude_start="pseudo_inverse", amplitude=PredictorConfig(channels=513, hidden_channels=48, blocks=1)
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    model = Apnet2(CONFIGS[request.param]).eval()
    # GRN starts as the identity; a trained one pools over time
    for module in model.generator.modules():
        if isinstance(module, GlobalResponseNorm):
            torch.nn.init.normal_(module.gamma)
            torch.nn.init.normal_(module.beta)
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
def test_bad_mels_are_refused(model, mel, lengths, message):
    with pytest.raises(ValueError, match=message):
        model.inference(mel, lengths=lengths)


def test_float64_mels_are_accepted(model):
    mel = random_mel(1, 80, 20)
    torch.testing.assert_close(model.inference(mel.double()), model.inference(mel))


@pytest.mark.parametrize("mode", ["autocast", "weights"])
def test_bfloat16_is_close_to_float32(model, mode):
    mel = random_mel(1, 80, 60)
    expected = model.inference(mel)
    half = Apnet2(model.config).eval()
    half.load_state_dict(model.state_dict())
    if mode == "weights":
        audio = half.bfloat16().inference(mel)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            audio = half.inference(mel)
    assert audio.dtype == torch.float32
    noise = (audio - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 15


def test_gradients_reach_every_parameter(model):
    predicted = model(random_mel(2, 80, 33))
    (predicted.waveform.square().sum() + predicted.log_amplitude.sum()).backward()
    missing = [name for name, p in model.generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    model.zero_grad()
