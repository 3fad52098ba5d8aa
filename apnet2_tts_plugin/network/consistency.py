"""Fast Griffin-Lim (Perraudin et al., WASPAA 2013): phases that agree with an amplitude, from phases that nearly do."""

import torch
from torch import Tensor, nn

from apnet2_tts_plugin.network.spectra import ISTFT, magnitude

MOMENTUM = 0.99


class FastGriffinLim(nn.Module):
    """A few iterations on a spectrum, with its own amplitude; differentiable.

    With S the amplitude, c_0 the spectrum given and G the STFT of the inverse STFT: t_n = G(c_(n-1)) and
    c_n = S * angle(t_n - m t_(n-1)), m = a / (1 + a) for the acceleration a = 0.99, t_0 = 0.

    Args:
        istft: The inverse STFT.
        hop_length: Samples between frames.
        iterations: How many; with 0 the spectrum stays as it is.

    Shape:
        amplitude (B, n_bins, T), spectrum (B, n_bins, T) complex and of that amplitude, mask (B, T, 1) or None,
        lengths (B,) or None, to a spectrum of the same shape.
    """

    def __init__(self, istft: ISTFT, hop_length: int, iterations: int):
        super().__init__()
        self.__dict__["istft"] = istft  # the generator's, not another submodule
        self.hop_length = hop_length
        self.iterations = iterations

    def forward(
        self, amplitude: Tensor, spectrum: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        if not self.iterations:
            return spectrum
        momentum = MOMENTUM / (1 + MOMENTUM)
        previous = None
        for _ in range(self.iterations):
            consistent = self._stft(self.istft(spectrum, mask), lengths)
            direction = consistent if previous is None else consistent - momentum * previous
            previous = consistent
            # the floor keeps the gradient of a direction of no length finite
            spectrum = direction * (amplitude / magnitude(direction.real, direction.imag, floor=1e-8))
        return spectrum

    def _stft(self, waveform: Tensor, lengths: Tensor | None) -> Tensor:
        """The centred STFT of each item; both edges are mirrors, so that items shorter than the window have one too."""
        half, n_samples = self.istft.n_fft // 2, waveform.shape[1]
        around = torch.arange(-half, n_samples + half, device=waveform.device)
        if lengths is None:
            before, after = mirrored(around[:half], n_samples), mirrored(around[-half:], n_samples)
            padded = torch.cat([waveform[:, before], waveform, waveform[:, after]], dim=1)
        else:
            padded = waveform.gather(1, mirrored(around[None], (lengths[:, None] - 1) * self.hop_length))
        frames = padded.unfold(1, self.istft.n_fft, self.hop_length) * self.istft.window
        return torch.fft.rfft(frames).transpose(1, 2)


def mirrored(positions: Tensor, n_samples: int | Tensor) -> Tensor:
    """Which of samples 0 to `n_samples` - 1 lie at any positions, if the edges are mirrors of what is between."""
    last = n_samples - 1
    positions = positions.remainder(2 * last)
    return torch.minimum(positions, 2 * last - positions)
