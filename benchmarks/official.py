"""The official APNet2 code, transcribed plainly: generator, discriminators, losses and one training step.

This is what ours is compared with, so nothing here is made faster: every module, product and transform is done when and
as often as there. Tensors are (B, 1, N) waveforms, (B, 80, T) mels and (B, 513, T) spectra.
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.bench.plain import OfficialGenerator, Spectra
from apnet2_tts_plugin.network.spectra import mel_basis

SAMPLE_RATE, N_FFT, HOP, WINDOW, N_MELS = 22050, 1024, 256, 1024, 80


class Sizes(NamedTuple):
    """Sizes of the networks; the defaults are the official ones."""

    channels: int = 512
    hidden_channels: int = 1536
    blocks: int = 8
    mpd_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    mrd_channels: int = 64


def old_weight_norm(conv: nn.Conv2d) -> nn.Conv2d:
    """The weight norm of the official code, which computes the weight anew at every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has a newer one
        return nn.utils.weight_norm(conv)


class JudgingConvs(nn.Module):
    """What both kinds of discriminator end in: convolutions with leaky ReLUs, all maps kept."""

    def run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        x = self.conv_post(x)
        maps.append(x)
        return torch.flatten(x, 1, -1), maps


class PeriodJudge(JudgingConvs):
    """One period of the multi-period discriminator."""

    def __init__(self, period: int, channels: tuple[int, ...]):
        super().__init__()
        self.period = period
        widths, strides = [1, *channels], [3, 3, 3, 3, 1]
        self.convs = nn.ModuleList(
            old_weight_norm(nn.Conv2d(widths[i], widths[i + 1], (5, 1), (strides[i], 1), padding=(2, 0)))
            for i in range(5)
        )
        self.conv_post = old_weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), 1, padding=(1, 0)))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        batch, channels, length = x.shape
        if length % self.period:
            missing = self.period - length % self.period
            x = F.pad(x, (0, missing), "reflect")
            length += missing
        return self.run(x.view(batch, channels, length // self.period, self.period))


class ResolutionJudge(JudgingConvs):
    """One resolution of the multi-resolution discriminator."""

    def __init__(self, n_fft: int, hop: int, window: int, channels: int):
        super().__init__()
        self.sizes = (n_fft, hop, window)
        shapes = [((7, 5), (2, 2), (3, 2)), ((5, 3), (2, 1), (2, 1)), ((5, 3), (2, 2), (2, 1))]
        shapes += [(3, (2, 1), 1), (3, (2, 2), 1)]
        widths = [1, *[channels] * 5]
        self.convs = nn.ModuleList(
            old_weight_norm(nn.Conv2d(widths[i], channels, kernel, stride, padding))
            for i, (kernel, stride, padding) in enumerate(shapes)
        )
        self.conv_post = old_weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        n_fft, hop, window = self.sizes
        rectangular = torch.ones(window, device=x.device)
        x = torch.stft(x.squeeze(1), n_fft, hop, window, rectangular, center=True, return_complex=True)
        x = torch.norm(torch.view_as_real(x), p=2, dim=-1)
        return self.run(x.unsqueeze(1))


class OfficialDiscriminator(nn.Module):
    """Judges apart, first the real and then the generated waveform (B, 1, N).

    Returns the scores of both, a list each, and their maps, a list of lists each.
    """

    def __init__(self, judges: list[nn.Module]):
        super().__init__()
        self.discriminators = nn.ModuleList(judges)

    def forward(self, real: Tensor, generated: Tensor) -> tuple[list, list, list, list]:
        real_scores, generated_scores, real_maps, generated_maps = [], [], [], []
        for judge in self.discriminators:
            score, maps = judge(real)
            real_scores.append(score)
            real_maps.append(maps)
            score, maps = judge(generated)
            generated_scores.append(score)
            generated_maps.append(maps)
        return real_scores, generated_scores, real_maps, generated_maps


def amplitude_phase_spectrum(audio: Tensor) -> Spectra:
    """The spectra of waveforms (B, N)."""
    window = torch.hann_window(WINDOW, device=audio.device)
    spectrum = torch.stft(audio, N_FFT, HOP, WINDOW, window, center=True, return_complex=True)
    log_amplitude = torch.log(torch.abs(spectrum) + 1e-5)
    return Spectra(log_amplitude, torch.atan2(spectrum.imag, spectrum.real), spectrum.real, spectrum.imag)


class MelSpectrogram(nn.Module):
    """Natural-log mel (B, 80, T) of waveforms (B, N); `fmax` None is half the sample rate."""

    def __init__(self, fmax: float | None):
        super().__init__()
        self.register_buffer("basis", torch.from_numpy(mel_basis(SAMPLE_RATE, N_FFT, N_MELS, 0.0, fmax)))
        self.register_buffer("window", torch.hann_window(WINDOW))

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(audio, N_FFT, HOP, WINDOW, self.window, center=True, return_complex=True)
        magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1) + 1e-9)
        return torch.log(torch.clamp(torch.matmul(self.basis, magnitude), min=1e-5))


def anti_wrapping(x: Tensor) -> Tensor:
    return torch.abs(x - torch.round(x / (2 * torch.pi)) * 2 * torch.pi)


def first_differences(size: int, device: torch.device) -> Tensor:
    """Matrix whose product takes each column's difference from the one before, the first one from 0."""
    return torch.eye(size, device=device) - torch.diag(torch.ones(size - 1, device=device), 1)


def phase_losses(target: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Instantaneous phase, group delay and phase time difference, by products with matrices of differences."""
    bins, frames = (first_differences(target.shape[dim], target.device) for dim in (1, 2))
    delay = torch.matmul(target.permute(0, 2, 1), bins), torch.matmul(predicted.permute(0, 2, 1), bins)
    time = torch.matmul(target, frames), torch.matmul(predicted, frames)
    return tuple(torch.mean(anti_wrapping(a - b)) for a, b in ((target, predicted), delay, time))


def discriminator_loss(real_scores: list[Tensor], generated_scores: list[Tensor]) -> Tensor:
    loss = 0
    for real, generated in zip(real_scores, generated_scores, strict=True):
        loss = loss + torch.mean(torch.clamp(1 - real, min=0)) + torch.mean(torch.clamp(1 + generated, min=0))
    return loss


def generator_loss(generated_scores: list[Tensor]) -> Tensor:
    loss = 0
    for generated in generated_scores:
        loss = loss + torch.mean(torch.clamp(1 - generated, min=0))
    return loss


def feature_loss(real_maps: list[list[Tensor]], generated_maps: list[list[Tensor]]) -> Tensor:
    loss = 0
    for real_part, generated_part in zip(real_maps, generated_maps, strict=True):
        for real, generated in zip(real_part, generated_part, strict=True):
            loss = loss + torch.mean(torch.abs(real - generated))
    return loss


class Features(NamedTuple):
    """What the official data loader hands to a step: all of the waveform (B, 1, N) that does not need a network."""

    waveform: Tensor
    mel: Tensor
    full_band_mel: Tensor
    spectra: Spectra


class OfficialTraining(nn.Module):
    """Networks, optimizers and one step of the official training."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        periods = (2, 3, 5, 7, 11)
        resolutions = ((1024, 256, 1024), (2048, 512, 2048), (512, 128, 512))
        self.generator = OfficialGenerator(*sizes[:3])
        self.mpd = OfficialDiscriminator([PeriodJudge(period, sizes.mpd_channels) for period in periods])
        self.mrd = OfficialDiscriminator([ResolutionJudge(*res, sizes.mrd_channels) for res in resolutions])
        self.mel, self.full_band_mel = MelSpectrogram(8000.0), MelSpectrogram(None)
        discriminators = [*self.mpd.parameters(), *self.mrd.parameters()]
        self.generator_optimizer = torch.optim.AdamW(self.generator.parameters(), 2e-4, betas=(0.8, 0.99))
        self.discriminators_optimizer = torch.optim.AdamW(discriminators, 2e-4, betas=(0.8, 0.99))

    def features(self, audio: Tensor) -> Features:
        """The features of waveforms (B, N)."""
        return Features(audio[:, None], self.mel(audio), self.full_band_mel(audio), amplitude_phase_spectrum(audio))

    def step(self, batch: Features) -> dict[str, Tensor]:
        """Update the discriminators, then the generator; returns the losses under the names ours have.

        The generator runs once; both updates use its waveform.
        """
        real = batch.waveform
        predicted, generated = self.generator.spectra_and_audio(batch.mel)
        generated_mel = self.full_band_mel(generated.squeeze(1))

        self.discriminators_optimizer.zero_grad()
        real_scores, generated_scores, _, _ = self.mpd(real, generated.detach())
        logged = {"loss_disc_mpd": discriminator_loss(real_scores, generated_scores)}
        real_scores, generated_scores, _, _ = self.mrd(real, generated.detach())
        logged["loss_disc_mrd"] = discriminator_loss(real_scores, generated_scores)
        logged["loss_disc"] = logged["loss_disc_mpd"] + 0.1 * logged["loss_disc_mrd"]
        logged["loss_disc"].backward()
        self.discriminators_optimizer.step()

        self.generator_optimizer.zero_grad()
        terms = {"amplitude": F.mse_loss(batch.spectra.log_amplitude, predicted.log_amplitude)}
        phase_terms = phase_losses(batch.spectra.phase, predicted.phase)
        terms |= zip(("instantaneous_phase", "group_delay", "phase_time_difference"), phase_terms, strict=True)
        final = amplitude_phase_spectrum(generated.squeeze(1))
        consistency = (predicted.real - final.real) ** 2 + (predicted.imag - final.imag) ** 2
        terms["stft_consistency"] = torch.mean(torch.mean(consistency, (1, 2)))
        terms["real"] = F.l1_loss(batch.spectra.real, predicted.real)
        terms["imaginary"] = F.l1_loss(batch.spectra.imag, predicted.imag)
        terms["mel"] = F.l1_loss(batch.full_band_mel, generated_mel)
        # Gradients of the discriminators' weights are computed here too; the next step throws them away.
        for name, discriminator in (("mpd", self.mpd), ("mrd", self.mrd)):
            _, scores, real_maps, generated_maps = discriminator(real, generated)
            terms[f"feature_matching_{name}"] = feature_loss(real_maps, generated_maps)
            terms[f"adversarial_{name}"] = generator_loss(scores)
        spectral = 45 * terms["amplitude"] + 100 * sum(phase_terms) + 45 * terms["mel"]
        spectral = spectral + 20 * (terms["stft_consistency"] + 2.25 * (terms["real"] + terms["imaginary"]))
        loss = spectral + terms["adversarial_mpd"] + terms["feature_matching_mpd"]
        loss = loss + 0.1 * (terms["adversarial_mrd"] + terms["feature_matching_mrd"])
        loss.backward()
        self.generator_optimizer.step()
        return logged | {f"loss_{name}": term for name, term in terms.items()} | {"loss_gen": loss}
