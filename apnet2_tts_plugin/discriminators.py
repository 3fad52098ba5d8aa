"""The two discriminators of training: periods of the waveform, and magnitude spectra at several resolutions.

Each returns one `Judgement` per part, whose feature maps serve the feature matching loss.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

LEAKY_SLOPE = 0.1


class Judgement(NamedTuple):
    """A discriminator part's scores (B, n) and its feature maps in order, the score map last."""

    scores: Tensor
    features: list[Tensor]


class ConvStack(nn.Module):
    """2-D convolutions with leaky ReLUs and a last one to a single channel, all weight-normalised.

    Shape:
        x (B, 1, H, W) to a `Judgement`.
    """

    def __init__(self, convs: list[nn.Conv2d], output_conv: nn.Conv2d):
        super().__init__()
        self.convs = nn.ModuleList(weight_norm(conv) for conv in convs)
        self.output_conv = weight_norm(output_conv)

    def forward(self, x: Tensor) -> Judgement:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), LEAKY_SLOPE)
            features.append(x)
        x = self.output_conv(x)
        features.append(x)
        return Judgement(x.flatten(1), features)


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded to rows of one period (HiFi-GAN, arXiv 2010.05646, section 2.3).

    Shape:
        waveform (B, N) to a `Judgement`.
    """

    def __init__(self, period: int, channels: list[int]):
        super().__init__()
        self.period = period
        widths = [1, *channels]
        strides = [3] * (len(channels) - 1) + [1]
        convs = [
            nn.Conv2d(widths[i], widths[i + 1], (5, 1), (strides[i], 1), padding=(2, 0)) for i in range(len(channels))
        ]
        self.stack = ConvStack(convs, nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> Judgement:
        missing = -waveform.shape[1] % self.period
        waveform = F.pad(waveform[:, None], (0, missing), "reflect")
        return self.stack(waveform.unflatten(2, (-1, self.period)))


class ResolutionDiscriminator(nn.Module):
    """Judges a magnitude spectrum (UnivNet, arXiv 2106.07889, section 2.2), with a rectangular window as APNet2 does.

    Shape:
        waveform (B, N) to a `Judgement`.
    """

    def __init__(self, n_fft: int, hop_length: int, win_length: int, channels: int):
        super().__init__()
        self.sizes = (n_fft, hop_length, win_length)
        convs = [
            nn.Conv2d(1, channels, (7, 5), (2, 2), padding=(3, 2)),
            nn.Conv2d(channels, channels, (5, 3), (2, 1), padding=(2, 1)),
            nn.Conv2d(channels, channels, (5, 3), (2, 2), padding=(2, 1)),
            nn.Conv2d(channels, channels, 3, (2, 1), padding=1),
            nn.Conv2d(channels, channels, 3, (2, 2), padding=1),
        ]
        self.stack = ConvStack(convs, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> Judgement:
        with torch.autocast(waveform.device.type, enabled=False):
            rectangular = waveform.new_ones(self.sizes[2], dtype=torch.float32)
            spectrum = torch.stft(waveform.float(), *self.sizes, rectangular, return_complex=True)
        return self.stack(spectrum.abs()[:, None])


class Discriminator(nn.Module):
    """A list of parts that judge the same waveform.

    Shape:
        waveform (B, N) to one `Judgement` per part.
    """

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, waveform: Tensor) -> list[Judgement]:
        return [part(waveform) for part in self.parts]


def multi_period(periods: list[int], channels: list[int]) -> Discriminator:
    """The multi-period discriminator (MPD)."""
    return Discriminator([PeriodDiscriminator(period, channels) for period in periods])


def multi_resolution(resolutions: list[list[int]], channels: int) -> Discriminator:
    """The multi-resolution discriminator (MRD); a resolution is [n_fft, hop_length, win_length]."""
    return Discriminator([ResolutionDiscriminator(*resolution, channels) for resolution in resolutions])
