"""Properties of the loss terms and the discriminators that the golden values do not show."""

import math

import pytest
import tiny
import torch
from torch import nn

from apnet2_tts_plugin.config import LOSS_WEIGHTS
from apnet2_tts_plugin.network import discriminators
from apnet2_tts_plugin.network.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.network.generator import Prediction
from apnet2_tts_plugin.network.spectra import log_amplitude, phase
from apnet2_tts_plugin.training import losses


@pytest.fixture
def waveform():
    return torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture(params=["mpd", "mrd"])
def discriminator(request):
    return multi_period([2, 3], [4, 8]) if request.param == "mpd" else multi_resolution([[256, 64, 256]], 4)


def test_anti_wrap_is_the_distance_on_the_circle():
    angle = torch.linspace(-20, 20, 999, dtype=torch.float64)
    expected = torch.atan2(angle.sin(), angle.cos()).abs()
    torch.testing.assert_close(losses.anti_wrap(angle), expected, atol=1e-9, rtol=0)


def test_phase_terms_do_not_see_whole_turns():
    error = torch.randn(2, 9, 7)
    turns = 2 * math.pi * torch.randint(-3, 4, error.shape)
    for term in (losses.instantaneous_phase, losses.group_delay, losses.phase_time_difference):
        torch.testing.assert_close(term(error), term(error + turns), atol=1e-5, rtol=0)


def test_phase_differences_are_along_their_axes():
    along_time = torch.linspace(0, 1, 50).expand(1, 9, 50)
    along_frequency = torch.linspace(0, 1, 9)[:, None].expand(1, 9, 50)
    # a slope along one axis has small steps along it; along the other axis only the first difference, from 0, counts
    assert losses.phase_time_difference(along_time) == pytest.approx(1 / 50, abs=1e-6)
    assert losses.group_delay(along_time) == pytest.approx(0.5 / 9, abs=1e-6)
    assert losses.group_delay(along_frequency) == pytest.approx(1 / 9, abs=1e-6)
    assert losses.phase_time_difference(along_frequency) == pytest.approx(0.5 / 50, abs=1e-6)


@pytest.mark.parametrize(("weight", "n_terms"), [(0.0, 8), (1.0, 9)])
def test_a_perfect_prediction_costs_nothing(waveform, weight, n_terms):
    criterion = losses.SpectralCriterion(tiny.config(loss_weights=LOSS_WEIGHTS | {"multi_resolution_stft": weight}))
    spectrum = criterion.stft(waveform)
    perfect = Prediction(log_amplitude(spectrum), phase(spectrum), spectrum, waveform)
    terms = criterion(spectrum, waveform, perfect)
    assert len(terms) == n_terms and not any(terms.values())


def test_a_phasor_that_cannot_be_told_is_best_small():
    """Right is free, wrong by half a turn costs 4, and not to say costs 1, whatever the amplitude of the target."""
    target = torch.polar(torch.full((2, 9, 7), 3.0), torch.rand(2, 9, 7) * 6)
    right = target / 3
    for predicted, cost in ((right, 0.0), (-right, 4.0), (0 * right, 1.0), (0.5 * right, 0.25)):
        assert losses.phasor(target, predicted) == pytest.approx(cost, abs=1e-5)
    target[:, 0] *= 2**10
    predicted = torch.cat([0 * right[:, :1], right[:, 1:]], dim=1)
    assert losses.phasor(target, predicted) == pytest.approx(8 / (8 + 8), abs=1e-5)  # 2^(10 * 0.3) = 8, of 9 bins one
    assert losses.phasor(0 * target, right) == 0


def test_what_has_no_weight_is_left_to_evaluations(waveform):
    weights = dict.fromkeys(LOSS_WEIGHTS, 0.0) | {"amplitude": 1.0, "phasor": 1.0}
    criterion = losses.SpectralCriterion(tiny.config(loss_weights=weights))
    spectrum = criterion.stft(waveform)
    prediction = Prediction(log_amplitude(spectrum), phase(spectrum), spectrum, waveform, phasor=spectrum.sgn())
    assert criterion(spectrum, waveform, prediction).keys() == {"amplitude", "phasor"}
    assert len(criterion.eval()(spectrum, waveform, prediction)) == 9


def test_terms_without_weight_have_no_part():
    assert losses.weighted_sum({"a": torch.tensor(2.0), "b": torch.tensor(math.nan)}, {"a": 3.0, "b": 0.0}) == 6


def test_hinge_and_feature_matching(discriminator, waveform):
    real, generated = discriminator(waveform), discriminator(waveform.flip(1))
    assert losses.feature_matching(real, real) == 0
    assert losses.feature_matching(real, generated) > 0
    sure = [output._replace(scores=torch.full_like(output.scores, 2.0)) for output in real]
    fooled = [output._replace(scores=torch.full_like(output.scores, -2.0)) for output in real]
    assert losses.hinge_discriminator(sure, fooled) == 0
    assert losses.hinge_discriminator(fooled, sure) == 6 * len(real)
    assert losses.hinge_generator(sure) == 0
    assert losses.hinge_generator(fooled) == 3 * len(real)


def test_a_pair_is_judged_as_both_alone(discriminator, waveform):
    generated = waveform.flip(1)
    apart = (discriminator(waveform), discriminator(generated))
    torch.testing.assert_close(discriminator.pair(waveform, generated), apart)


@pytest.mark.parametrize(("kernel_size", "stride"), [(5, 3), (5, 1), (3, 1)])
@pytest.mark.parametrize("length", [1, 2, 9, 10, 11])
def test_all_convolutions_over_time_are_the_same(length, kernel_size, stride):
    conv = nn.Conv2d(3, 4, (kernel_size, 1), (stride, 1), padding=(kernel_size // 2, 0)).double()
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    plain = conv(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, conv.weight, conv.bias), direction)
    for convolve in (discriminators.matmul_conv1d, discriminators.library_conv1d):
        actual = convolve(conv, x)
        torch.testing.assert_close(actual, plain)
        torch.testing.assert_close(torch.autograd.grad(actual, (x, conv.weight, conv.bias), direction), expected)


def test_the_multi_period_discriminator_is_the_same_by_either_convolution(waveform, monkeypatch):
    discriminator = multi_period([2, 3], [4, 8])
    results = []
    for _ in range(2):
        outputs = discriminator(waveform)
        losses.hinge_generator(outputs).backward()
        results.append((outputs, [parameter.grad for parameter in discriminator.parameters()]))
        discriminator.zero_grad()
        monkeypatch.setattr(discriminators, "matmul_conv1d", discriminators.library_conv1d)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_discriminators_follow_autocast(discriminator, waveform):
    expected = discriminator(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = discriminator(waveform)
    losses.hinge_discriminator(outputs, outputs).backward()
    for output, exact in zip(outputs, expected, strict=True):
        assert all(feature_map.dtype == torch.bfloat16 for feature_map in output.feature_maps)
        torch.testing.assert_close(output.scores.float(), exact.scores, atol=0.02, rtol=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in discriminator.parameters())


def test_weighted_sum_needs_a_weight_for_every_term():
    terms = {"mel": torch.tensor(2.0), "real": torch.tensor(3.0)}
    assert losses.weighted_sum(terms, {"mel": 10.0, "real": 1.0, "unused": 5.0}) == 23
    with pytest.raises(KeyError):
        losses.weighted_sum(terms, {"mel": 10.0})
