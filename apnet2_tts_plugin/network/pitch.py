"""Fundamental frequency and voicing of each frame, read from the mel."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apnet2_tts_plugin.config import PredictorConfig
from apnet2_tts_plugin.network.convnext import Backbone, RowConv, output_conv

CENTS_PER_BIN = 20.0
BLUR_CENTS = 25.0  # standard deviation of the label around the true frequency (CREPE, arXiv 1802.06182, section 2)
REACH = 4  # bins on either side of the peak that count
F0_STEP = 1 / 64  # of the grid of frequencies, in Hz


class Pitch(NamedTuple):
    """What is known of the pitch, (B, T) each: f0 in Hz, also where nothing is voiced, and voicing as 0 or 1."""

    f0: Tensor
    voiced: Tensor


class PitchPredictor(nn.Module):
    """Frequency and voicing from the mel: probabilities of bins of `CENTS_PER_BIN` from f0_min up to f0_max.

    Args:
        n_inputs: Channels of the mel or latent.
        sizes: Sizes of the backbone.
        f0_min: Lowest frequency in Hz.
        f0_max: Highest frequency in Hz.

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to logits of the bins (B, F, T) and of voicing (B, T).
    """

    def __init__(self, n_inputs: int, sizes: PredictorConfig, f0_min: float, f0_max: float):
        super().__init__()
        self.f0_min = f0_min
        self.n_bins = math.ceil(1200 * math.log2(f0_max / f0_min) / CENTS_PER_BIN) + 1
        self.backbone = Backbone(n_inputs, sizes, RowConv)
        self.output_conv = output_conv(sizes, self.n_bins + 1, RowConv)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.split(self.output_conv(self.backbone(x.transpose(1, 2), mask)).transpose(1, 2))

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the bins and of voicing in float32, from both in one (B, F + 1, T)."""
        outputs = outputs.float()
        return outputs[:, :-1], outputs[:, -1]

    def decode(self, logits: Tensor, voicing: Tensor) -> Pitch:
        """The mean of the bins around the most probable one, weighted by their probabilities, on a grid of `F0_STEP`.

        The phase integrates f0, and a harmonic of number h is h times as sensitive: on a grid, what one run rounds
        otherwise than another, alone, in a batch or in pieces, does not add up.
        """
        near = logits.argmax(1, keepdim=True) + torch.arange(-REACH, REACH + 1, device=logits.device)[:, None]
        bins = near.clamp(0, self.n_bins - 1)
        # in float64 what is left to round otherwise is the logits
        weights = logits.gather(1, bins).double().masked_fill(near != bins, float("-inf")).softmax(1)
        octaves = (weights * bins).sum(1) / (1200 / CENTS_PER_BIN)
        f0 = self.f0_min * torch.exp2(octaves)
        return Pitch(((f0 / F0_STEP).round() * F0_STEP).float(), (voicing > 0).float())


def bin_labels(f0: Tensor, f0_min: float, n_bins: int) -> Tensor:
    """Probabilities of the bins (B, F, T) for f0 (B, T) in Hz; what is off the scale counts as its end."""
    position = (1200 / CENTS_PER_BIN) * torch.log2(f0.clamp(min=1.0) / f0_min)
    position = position.clamp(0, n_bins - 1)[:, None]
    bins = torch.arange(n_bins, device=f0.device)[:, None]
    return (-0.5 * ((bins - position) * (CENTS_PER_BIN / BLUR_CENTS)).square()).softmax(1)
