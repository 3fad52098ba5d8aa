"""The terms of the training losses, one function each, and their weighted sum.

APNet2 paper (arXiv 2311.11545), section 2.3, and APNet (arXiv 2305.07952), section III-C. Spectra are (B, n_bins, T),
waveforms (B, N); every term is a scalar in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.config import LOSS_RESOLUTIONS, Apnet2Config
from apnet2_tts_plugin.network.discriminators import DiscriminatorOutput
from apnet2_tts_plugin.network.generator import Prediction
from apnet2_tts_plugin.network.pitch import bin_labels
from apnet2_tts_plugin.network.spectra import STFT, LogMel, log_amplitude, phase

COMPRESSION = 0.3  # exponent of the amplitudes that weigh phases, as in losses of speech enhancement


def amplitude(target: Tensor, predicted: Tensor) -> Tensor:
    """Mean squared difference of two natural log-amplitude spectra."""
    return (target - predicted).square().mean()


def anti_wrap(x: Tensor) -> Tensor:
    """|x - 2 pi round(x / 2 pi)|, the distance of an angle from 0 on the circle, in 0 to pi."""
    return (x - 2 * torch.pi * (x / (2 * torch.pi)).round()).abs()


def instantaneous_phase(error: Tensor) -> Tensor:
    """Mean anti-wrapped phase difference `error` (B, n_bins, T) of two phase spectra."""
    return anti_wrap(error).mean()


def group_delay(error: Tensor) -> Tensor:
    """Mean anti-wrapped difference of the phase differences along frequency, from 0 below the first bin."""
    return anti_wrap(error.diff(dim=1, prepend=torch.zeros_like(error[:, :1]))).mean()


def phase_time_difference(error: Tensor) -> Tensor:
    """Mean anti-wrapped difference of the phase differences along time, from 0 before the first frame."""
    return anti_wrap(error.diff(dim=2, prepend=torch.zeros_like(error[:, :, :1]))).mean()


def phasor(target: Tensor, predicted: Tensor) -> Tensor:
    """Squared distance of complex numbers from the unit ones that have the phase of the complex spectrum `target`.

    Least squares: where the phase cannot be told, the number it is the angle of shrinks to 0, and asks for nothing; the
    losses of angles ask for as much there as anywhere. The mean over frames and bins is weighted by |target|^0.3, for
    loud bins are heard and silent ones have no phase.
    """
    weight = target.abs().pow(COMPRESSION)
    difference = predicted - target.sgn()
    return (weight * (difference.real.square() + difference.imag.square())).sum() / weight.sum().clamp(min=1e-5)


def stft_consistency(predicted: Tensor, of_waveform: Tensor) -> Tensor:
    """Mean squared distance of the predicted complex spectrum from the one its own waveform has."""
    difference = predicted - of_waveform
    return (difference.real.square() + difference.imag.square()).mean()


def absolute(target: Tensor, predicted: Tensor) -> Tensor:
    """Mean absolute difference."""
    return F.l1_loss(predicted, target)


def multi_resolution_stft(stfts: list[STFT], target: Tensor, predicted: Tensor) -> Tensor:
    """Difference of the amplitudes of two waveforms, averaged over several resolutions (arXiv 1910.11480, section 2.2).

    For each, the spectral convergence | |S| - |S'| | / | |S| | (Frobenius norms over the batch) plus the mean absolute
    difference of the log-amplitudes. It asks for amplitudes that survive the inverse STFT, and so for phases that
    agree; APNet2's own terms shrink the amplitude where they cannot tell the phase.
    """
    terms = []
    for stft in stfts:
        target_spectrum, predicted_spectrum = stft(target), stft(predicted)
        terms.append(spectral_convergence(target_spectrum.abs(), predicted_spectrum.abs()))
        terms.append(absolute(log_amplitude(target_spectrum), log_amplitude(predicted_spectrum)))
    return torch.stack(terms).sum() / len(stfts)


def spectral_convergence(target: Tensor, predicted: Tensor) -> Tensor:
    """Frobenius norm of the difference of two amplitude spectra over that of `target`, at least 1 against silence."""
    return torch.linalg.vector_norm(target - predicted) / torch.linalg.vector_norm(target).clamp(min=1.0)


def pitch(labels: Tensor, logits: Tensor, voiced: Tensor) -> Tensor:
    """Cross-entropy of the predicted bins (B, F, T) of the frequency, averaged over voiced frames (B, T)."""
    cross_entropy = -(labels * logits.log_softmax(1)).sum(1)
    return (cross_entropy * voiced).sum() / voiced.sum().clamp(min=1.0)


def voicing(voiced: Tensor, logits: Tensor) -> Tensor:
    """Binary cross-entropy of the voicing (B, T)."""
    return F.binary_cross_entropy_with_logits(logits, voiced)


def hinge_discriminator(real: list[DiscriminatorOutput], generated: list[DiscriminatorOutput]) -> Tensor:
    """Hinge loss of a discriminator, summed over its parts: scores above 1 for real, below -1 for generated ones."""
    return sum((1 - r.scores.float()).relu().mean() for r in real) + sum(
        (1 + g.scores.float()).relu().mean() for g in generated
    )


def hinge_generator(generated: list[DiscriminatorOutput]) -> Tensor:
    """Hinge loss of the generator against one discriminator, summed over its parts."""
    return sum((1 - g.scores.float()).relu().mean() for g in generated)


def feature_matching(real: list[DiscriminatorOutput], generated: list[DiscriminatorOutput]) -> Tensor:
    """Mean absolute differences of all feature maps, summed over maps and parts."""
    return sum(
        absolute(r.float(), g.float())
        for real_output, generated_output in zip(real, generated, strict=True)
        for r, g in zip(real_output.feature_maps, generated_output.feature_maps, strict=True)
    )


class SpectralCriterion(nn.Module):
    """All terms of the generator's loss that need no discriminator.

    Args:
        config: The audio settings and weights. A weight of 0 leaves `multi_resolution_stft` and `phasor` out, and in
            training mode also those of the phase, or those of spectrum and waveform, if none of them has one.

    Attributes:
        stft: The analysis of the generator's frames.
        log_mel: The mel of the mel loss, up to half the sample rate.
        latent_mel: The mel that is predicted from a latent.

    Shape:
        Complex spectrum of the target (B, n_bins, T) by `stft`, target (B, N), the generator's prediction for it, and
        the target's pitch in Hz (B, T), 0 where nothing is voiced, or None, to the terms by name.
    """

    def __init__(self, config: Apnet2Config):
        super().__init__()
        self.log_mel = LogMel.from_audio_config(config.audio, full_band=True)
        self.latent_mel = LogMel.from_audio_config(config.audio)
        self.stft = self.log_mel.stft
        self.weights = config.loss_weights
        resolutions = LOSS_RESOLUTIONS if self.weights["multi_resolution_stft"] else ()
        self.f0_min = config.f0_min
        self.stfts = nn.ModuleList(STFT(*resolution) for resolution in resolutions)

    def forward(
        self, spectrum: Tensor, waveform: Tensor, predicted: Prediction, f0: Tensor | None = None
    ) -> dict[str, Tensor]:
        terms = {"amplitude": amplitude(log_amplitude(spectrum), predicted.log_amplitude)}
        if self._asks_for("instantaneous_phase", "group_delay", "phase_time_difference"):
            phase_error = phase(spectrum) - predicted.phase
            terms |= {
                "instantaneous_phase": instantaneous_phase(phase_error),
                "group_delay": group_delay(phase_error),
                "phase_time_difference": phase_time_difference(phase_error),
            }
        if self._asks_for("stft_consistency", "real", "imaginary", "mel"):
            of_waveform = self.stft(predicted.waveform)
            terms |= {
                "stft_consistency": stft_consistency(predicted.spectrum, of_waveform),
                "real": absolute(spectrum.real, predicted.spectrum.real),
                "imaginary": absolute(spectrum.imag, predicted.spectrum.imag),
                "mel": absolute(self.log_mel.from_spectrum(spectrum), self.log_mel.from_spectrum(of_waveform)),
            }
        if self.stfts:
            terms["multi_resolution_stft"] = multi_resolution_stft(self.stfts, waveform, predicted.waveform)
        if self.weights["phasor"]:
            terms["phasor"] = phasor(spectrum, predicted.phasor)
        if predicted.mel is not None:
            terms["latent_mel"] = absolute(self.latent_mel.from_spectrum(spectrum), predicted.mel.float())
        if f0 is not None:
            voiced = (f0 > 0).float()
            labels = bin_labels(f0, self.f0_min, predicted.pitch_logits.shape[1])
            terms["pitch"] = pitch(labels, predicted.pitch_logits, voiced)
            terms["voicing"] = voicing(voiced, predicted.voicing_logits)
        return terms

    def _asks_for(self, *names: str) -> bool:
        """Whether any of these terms has a weight; an evaluation shows them all."""
        return not self.training or any(self.weights[name] for name in names)


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum of `terms`, each times its weight of the same name; those of weight 0 cost no backward pass."""
    return sum(weights[name] * term for name, term in terms.items() if weights[name])
