"""Fast Griffin-Lim (Perraudin et al., WASPAA 2013): phases that agree with an amplitude, from phases that nearly do."""

import torch
from torch import Tensor, nn

from apnet2_tts_plugin.network.spectra import ISTFT

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
        spectrum (B, n_bins, T) complex, mask (B, T, 1) or None, lengths (B,) or None, to the same shape.
    """

    def __init__(self, istft: ISTFT, hop_length: int, iterations: int):
        super().__init__()
        self.__dict__["istft"] = istft  # the generator's, not another submodule
        self.hop_length = hop_length
        self.iterations = iterations

    def forward(self, spectrum: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        if not self.iterations:
            return spectrum
        amplitude = spectrum.abs()
        momentum = MOMENTUM / (1 + MOMENTUM)
        previous = torch.zeros_like(spectrum)
        positions = self._reflected(spectrum.shape[2], lengths, spectrum.device)
        for _ in range(self.iterations):
            waveform = self.istft(spectrum, mask)
            consistent = self._stft(waveform, positions)
            direction = consistent - momentum * previous
            previous = consistent
            # the angle alone; the floor keeps the gradient of a direction of no length finite
            spectrum = amplitude * direction / direction.abs().clamp(min=1e-8)
        return spectrum

    def _stft(self, waveform: Tensor, positions: Tensor) -> Tensor:
        """The centred STFT of each item, whose edges `positions` reflects."""
        padded = waveform.gather(1, positions.expand(len(waveform), -1))
        frames = padded.unfold(1, self.istft.n_fft, self.hop_length) * self.istft.window
        return torch.fft.rfft(frames).transpose(1, 2)

    def _reflected(self, n_frames: int, lengths: Tensor | None, device: torch.device) -> Tensor:
        """Where each sample of the padded waveforms comes from, (B or 1, (T - 1) * hop_length + n_fft).

        Both edges are mirrors, so that also items shorter than the window have a reflection.
        """
        half = self.istft.n_fft // 2
        if lengths is None:
            lengths = torch.tensor([n_frames], device=device)
        last = (lengths[:, None] - 1) * self.hop_length - 1
        position = torch.arange(-half, (n_frames - 1) * self.hop_length + half, device=device)[None]
        position = position.remainder(2 * last)
        return torch.minimum(position, 2 * last - position)
