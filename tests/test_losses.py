"""Properties of the loss terms that the golden values do not show."""

import math

import pytest
import torch
import torch.nn.functional as F

from apnet2_tts_plugin import losses
from apnet2_tts_plugin.discriminators import RowConvolution, multi_period, multi_resolution
from apnet2_tts_plugin.generator import Prediction
from apnet2_tts_plugin.spectra import STFT, LogMel, log_amplitude, phase


@pytest.fixture
def waveform():
    return torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 0.1


def test_anti_wrap_is_the_distance_on_the_circle():
    angle = torch.linspace(-20, 20, 999, dtype=torch.float64)
    expected = torch.atan2(angle.sin(), angle.cos()).abs()
    torch.testing.assert_close(losses.anti_wrap(angle), expected, atol=1e-9, rtol=0)
    assert losses.anti_wrap(angle).max() <= math.pi


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


def test_a_perfect_prediction_costs_nothing(waveform):
    log_mel = LogMel(22050, 1024, 256, 1024, 80, 0.0, None)
    spectrum = log_mel.stft(waveform)
    perfect = Prediction(log_amplitude(spectrum), phase(spectrum), spectrum, waveform)
    terms = losses.spectral_terms(spectrum, waveform, perfect, log_mel.stft, log_mel, [STFT(512, 128, 512)])
    assert len(terms) == 9
    for name, term in terms.items():
        assert term.item() == 0, name


@pytest.mark.parametrize("discriminator", [multi_period([2, 3], [4, 8]), multi_resolution([[256, 64, 256]], 4)])
def test_hinge_and_feature_matching(discriminator, waveform):
    real, generated = discriminator(waveform), discriminator(waveform.flip(1))
    assert losses.feature_matching(real, real) == 0
    assert losses.feature_matching(real, generated) > 0
    sure = [judgement._replace(scores=torch.full_like(judgement.scores, 2.0)) for judgement in real]
    fooled = [judgement._replace(scores=torch.full_like(judgement.scores, -2.0)) for judgement in real]
    assert losses.hinge_discriminator(sure, fooled) == 0
    assert losses.hinge_discriminator(fooled, sure) == 6 * len(real)
    assert losses.hinge_generator(sure) == 0
    assert losses.hinge_generator(fooled) == 3 * len(real)


@pytest.mark.parametrize("discriminator", [multi_period([2, 3], [4, 8]), multi_resolution([[256, 64, 256]], 4)])
def test_a_pair_is_judged_as_both_alone(discriminator, waveform):
    generated = waveform.flip(1)
    apart = [discriminator(waveform), discriminator(generated)]
    for alone, together in zip(apart, discriminator.pair(waveform, generated), strict=True):
        for part, part_together in zip(alone, together, strict=True):
            torch.testing.assert_close(part_together.scores, part.scores)
            for feature, feature_together in zip(part.features, part_together.features, strict=True):
                torch.testing.assert_close(feature_together, feature)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 9, 10, 11])
def test_row_convolution_is_a_convolution(length, stride, kernel_size):
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, length, 3), (4, kernel_size * 3), (4,))
    )
    kernel = weight.unflatten(1, (kernel_size, 3)).transpose(1, 2)
    expected = F.conv1d(x.transpose(1, 2), kernel, bias, stride, kernel_size // 2).transpose(1, 2).flatten(0, 1)
    actual = RowConvolution.apply(x, weight, bias, stride)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, (x, weight, bias), direction) for y in (actual, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("discriminator", [multi_period([2, 3], [4, 8]), multi_resolution([[256, 64, 256]], 4)])
def test_discriminators_follow_autocast(discriminator, waveform):
    expected = discriminator(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        judgements = discriminator(waveform)
    losses.hinge_discriminator(judgements, judgements).backward()
    for judgement, exact in zip(judgements, expected, strict=True):
        assert all(feature.dtype == torch.bfloat16 for feature in judgement.features)
        torch.testing.assert_close(judgement.scores.float(), exact.scores, atol=0.02, rtol=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in discriminator.parameters())


def test_weighted_sum_needs_a_weight_for_every_term():
    terms = {"mel": torch.tensor(2.0), "real": torch.tensor(3.0)}
    assert losses.weighted_sum(terms, {"mel": 10.0, "real": 1.0, "unused": 5.0}) == 23
    with pytest.raises(KeyError):
        losses.weighted_sum(terms, {"mel": 10.0})
