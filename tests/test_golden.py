"""The model against the official implementations: features, forward pass, losses, gradients, one training step."""

import golden
import numpy as np
import pytest
import torch
from small_run import stub_trainer

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network import spectra
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.training import losses
from apnet2_tts_plugin.training.step import DISCRIMINATOR_OPTIMIZER, GENERATOR_OPTIMIZER
from apnet2_tts_plugin.weights.official import rename_official


@pytest.fixture(scope="module")
def expected():
    return golden.arrays("official_step")


@pytest.fixture(scope="module")
def model():
    model = Apnet2(Apnet2Config())
    golden.load_official(model)
    return model


@pytest.fixture(scope="module")
def waveform():
    return golden.waveforms(7, 8)


def close(actual: torch.Tensor, expected: np.ndarray, atol: float = 0.0, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, atol=atol, rtol=rtol)


def close_in_log_amplitude(actual: torch.Tensor, expected: np.ndarray, share: float = 0.999) -> None:
    error = np.abs(actual.detach().numpy() - expected)
    # The logarithm magnifies float32 rounding where there is next to nothing: the golden values themselves are up to
    # 2e-4 away from float64 there. Such bins are few, and equal before the logarithm.
    assert np.quantile(error, share) < 1e-4
    amplitude = np.exp(expected)
    assert np.abs(np.exp(actual.detach().numpy()) - amplitude).max() < 1e-5 * amplitude.max()


def close_in_phase(actual: torch.Tensor, expected: np.ndarray) -> None:
    error = losses.anti_wrap(actual.detach() - torch.from_numpy(expected))
    # At a modulus near zero an angle says nothing; the official code's own float32 rounding shows there.
    assert error.quantile(0.999) < 1e-3


def peak_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(actual.numpy() - expected).max() / np.abs(expected).max())


def test_features(model, waveform, expected):
    close(model.log_mel(waveform), expected["mel"], atol=1e-4)
    close(model.criterion.log_mel(waveform), expected["mel_full_band"], atol=1e-4)
    close_in_log_amplitude(spectra.log_amplitude(model.log_mel.stft(waveform)), expected["log_amplitude"])


def test_forward_pass(model, expected):
    predicted = model(torch.from_numpy(expected["mel"]))
    close(predicted.log_amplitude, expected["log_amplitude_g"], atol=1e-4)
    close_in_phase(predicted.phase, expected["phase_g"])
    peak = np.abs(expected["real_g"]).max()
    close(predicted.spectrum.real, expected["real_g"], atol=1e-4 * peak)
    close(predicted.spectrum.imag, expected["imag_g"], atol=1e-4 * peak)
    assert peak_error(predicted.waveform.detach()[:, None], expected["audio_g"]) < 1e-4


def test_inference_of_a_padded_batch(model, expected):
    mel = torch.from_numpy(expected["mel"]).clone()
    mel[1, :, 28:] = 123.0  # whatever the padding holds
    audio = model.inference(mel, lengths=torch.tensor([33, 28]))
    assert peak_error(audio[:1], expected["audio_g"][:1]) < 1e-4
    assert peak_error(audio[1:, :, : 27 * 256], expected["audio_single"]) < 1e-4
    assert not audio[1, :, 27 * 256 :].any()


@pytest.mark.parametrize("name", ["mpd", "mrd"])
def test_discriminator_scores(model, waveform, expected, name):
    generated = torch.from_numpy(expected["audio_g"][:, 0])
    for kind, audio in (("real", waveform), ("fake", generated)):
        scores = torch.cat([output.scores.flatten() for output in getattr(model, name)(audio)])
        largest = np.abs(expected[f"{name}_scores_{kind}"]).max()
        close(scores, expected[f"{name}_scores_{kind}"], atol=1e-4 * largest)


def test_one_training_step(waveform, expected):
    """Losses, gradient norms and parameters after one step in the official order."""
    model = Apnet2(Apnet2Config())
    golden.load_official(model)
    _, logged = model.optimize({"waveform": waveform}, stub_trainer(model))

    names = [name for name in logged if name.startswith("loss_")]
    assert len(names) == 16
    for name in names:
        assert logged[name] == pytest.approx(golden.loss(expected, name), rel=1e-4), name
    for ours, official in (("gen", "generator"), ("mpd", "mpd"), ("mrd", "mrd")):
        assert logged[f"grad_norm_{ours}"] == pytest.approx(expected[f"scalar/grad_norm_{official}"], rel=1e-3), ours

    for name in ("generator", "mpd", "mrd"):
        prefix = f"after_step/{name}/"
        official = {key.removeprefix(prefix): array for key, array in expected.items() if key.startswith(prefix)}
        # The generator's golden arrays leave out its large tensors, so one name decides whether it is FreeV's.
        state = getattr(model, name).state_dict()
        wrong = total = 0
        for key, array in rename_official(name, official, freev=False).items():
            wrong += int((np.abs(state[key].numpy() - array) > 1e-5).sum())
            total += array.size
        assert total > 0 and wrong <= 0.005 * total, name


def test_freev_forward_pass():
    expected = golden.arrays("freev_forward")
    config = Apnet2Config(amplitude_start="pseudo_inverse", amplitude=PredictorConfig(channels=513, blocks=1))
    generator = Generator(config)
    generator.load_state_dict(rename_official("generator", golden.freev_state()))
    mel = spectra.LogMel.from_audio_config(config.audio)(golden.waveforms(11, 12))
    close(mel, expected["mel"], atol=1e-4)
    predicted = generator(torch.from_numpy(expected["mel"]))
    # FreeV's amplitude starts from a pseudo-inverse that is zero nearly anywhere between the bands
    close_in_log_amplitude(predicted.log_amplitude, expected["log_amplitude_g"], share=0.99)
    close_in_phase(predicted.phase, expected["phase_g"])
    assert peak_error(predicted.waveform.detach()[:, None], expected["audio_g"]) < 1e-4


def test_optimizers_are_in_the_documented_order(model):
    sizes = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in model.get_optimizer()]
    assert sizes[GENERATOR_OPTIMIZER] == 31_425_539
    assert sizes[DISCRIMINATOR_OPTIMIZER] == sum(p.numel() for net in (model.mpd, model.mrd) for p in net.parameters())
