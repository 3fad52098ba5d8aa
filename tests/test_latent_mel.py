"""A mel that is predicted from a latent, before a vocoder of mels."""

import pytest
import tiny
import torch
from small_run import stub_trainer

from apnet2_tts_plugin.config import LOSS_WEIGHTS, Apnet2Config, PredictorConfig
from apnet2_tts_plugin.errors import CheckpointError
from apnet2_tts_plugin.loader import read_config
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights.restore import restore
from apnet2_tts_plugin.weights.store import BUNDLED

CHANNELS = 12


def config(**changes) -> Apnet2Config:
    small = PredictorConfig(16, 32, 1, response_norm="none")
    settings = dict(
        input_features="latent",
        latent_channels=CHANNELS,
        amplitude=PredictorConfig(513, 16, 1, response_norm="none"),
        amplitude_start="pseudo_inverse",
        phase=small,
        mel=PredictorConfig(16, 32, 1, input_kernel_size=3, response_norm="none"),
    )
    return tiny.config(**settings | changes)


@pytest.fixture(params=["none", "latent"])
def model(request) -> Apnet2:
    torch.manual_seed(2)
    return Apnet2(config(phase_start=request.param)).eval()


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(2, CHANNELS, 40, generator=torch.Generator().manual_seed(4))


def test_what_comes_behind_vocodes_the_mel(latent):
    torch.manual_seed(2)
    model = Apnet2(config()).eval()
    of_mels = Apnet2(config(input_features="mel", latent_channels=192, mel=PredictorConfig())).eval()
    state = {name: tensor for name, tensor in model.generator.state_dict().items() if not name.startswith("mel.")}
    of_mels.generator.load_state_dict(state)
    predicted = model.generator(latent)
    assert predicted.mel.shape == (2, 80, 40)
    torch.testing.assert_close(of_mels.inference(predicted.mel.detach()), model.inference(latent))


def test_training_and_use_are_the_same(model, latent):
    torch.testing.assert_close(model.generator(latent).waveform[:, None], model.inference(latent), atol=1e-6, rtol=1e-4)


def test_the_phase_may_come_from_the_latent_itself(latent):
    model = Apnet2(config(phase_start="latent")).eval()
    predicted = model.generator(latent)
    expected = torch.complex(*model.generator.phase(latent))
    torch.testing.assert_close(predicted.phasor, expected)
    torch.testing.assert_close(predicted.phase, expected.angle())
    torch.testing.assert_close(predicted.log_amplitude, model.generator.amplitude(predicted.mel))


def test_a_padded_latent_sounds_as_alone(model, latent):
    waveform = model.inference(latent, torch.tensor([25, 40]))
    alone = model.inference(latent[:1, :, :25])
    torch.testing.assert_close(waveform[:1, :, : alone.shape[2]], alone)
    assert not waveform[0, :, alone.shape[2] :].any()


def test_its_phase_is_learned():
    """Of noise, from the spectrum itself: no other term has a weight."""
    torch.manual_seed(0)
    weights = dict.fromkeys(LOSS_WEIGHTS, 0.0) | {"phasor": 1.0}
    model = Apnet2(
        config(
            phase_start="latent",
            latent_channels=2 * 513,
            loss_weights=weights,
            steps_to_start_discriminator=100,
            lr_gen=1e-2,
        )
    )
    trainer = stub_trainer(model)
    waveform = 0.1 * torch.randn(2, 8192)
    spectrum = model.log_mel.stft(waveform)
    batch = {"waveform": waveform, "features": torch.cat([spectrum.real, spectrum.imag], dim=1)}
    losses = [model.optimize(batch, trainer)[1]["loss_phasor"] for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_pieces_equal_the_whole(model, latent, size):
    pieces = torch.cat(list(model.stream(latent.split(size, dim=2))), dim=2)
    torch.testing.assert_close(pieces, model.inference(latent), atol=1e-6, rtol=0)


def test_the_mel_is_learned():
    torch.manual_seed(0)
    model = Apnet2(config(steps_to_start_discriminator=100, lr_gen=1e-2))
    trainer = stub_trainer(model)
    waveform = 0.1 * torch.randn(2, 8192)
    batch = {"waveform": waveform, "features": model.log_mel(waveform)[:, :CHANNELS]}
    losses = [model.optimize(batch, trainer)[1]["loss_latent_mel"] for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_it_starts_from_a_vocoder_of_mels():
    mel = PredictorConfig(16, 32, 1, response_norm="none")
    model = Apnet2(Apnet2Config.preset("tiny", input_features="latent", latent_channels=CHANNELS, mel=mel))
    model.add_discriminators()
    own = {name: tensor.clone() for name, tensor in model.generator.mel.state_dict().items()}
    said = restore(model, str(BUNDLED / "apnet2-tiny"))
    assert said == "generator of model.safetensors; the predictor of the mel and the discriminators start anew"
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.generator.mel.state_dict().items())
    with pytest.raises(CheckpointError, match="do not fit"):
        restore(model, str(BUNDLED / "apnet2"))


def test_it_starts_from_the_amplitude_of_a_vocoder_of_mels():
    amplitude = read_config(BUNDLED / "apnet2-tiny" / "config.json").amplitude
    model = Apnet2(config(phase_start="latent", amplitude=amplitude))
    model.add_discriminators()
    before = {name: tensor.clone() for name, tensor in model.generator.state_dict().items()}
    said = restore(model, str(BUNDLED / "apnet2-tiny"))
    assert said == "generator of model.safetensors; the predictors of mel and phase and the discriminators start anew"
    after = model.generator.state_dict()
    assert {name for name in after if torch.equal(after[name], before[name])} == {
        name for name in after if not name.startswith("amplitude.")
    }
