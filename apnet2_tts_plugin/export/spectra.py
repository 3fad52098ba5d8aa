"""The STFT and its inverse without complex numbers, which graphs cannot be relied on to have.

A frame x of N real samples has the spectrum X of K = N / 2 + 1 bins. With x_n and x_(N-n) added and subtracted first,
both transforms are two matrix products of K x K numbers:

    Re X_k =  sum_(n<K) (x_n + x_(N-n)) cos(2 pi k n / N)
    Im X_k = -sum_(n<K) (x_n - x_(N-n)) sin(2 pi k n / N)

where nothing is added to x_0 and x_(N/2), which have no partner.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.network.spectra import ISTFT


class RealDFT(nn.Module):
    """The discrete Fourier transform of real frames as matrix products.

    Args:
        n_fft: N, even.

    Shape:
        frames (..., N) to real and imaginary part (..., N / 2 + 1) each.

    Example:

        >>> real, imag = RealDFT(8)(torch.arange(8.0))
        >>> torch.allclose(torch.complex(real, imag), torch.fft.rfft(torch.arange(8.0)), atol=1e-5)
        True
    """

    def __init__(self, n_fft: int):
        super().__init__()
        bins = torch.arange(n_fft // 2 + 1)
        angle = bins[:, None] * bins % n_fft * (2 * torch.pi / n_fft)
        angle = angle.double()
        shares = torch.full((len(bins),), 2 / n_fft)  # of the bins in a frame: all but the outer ones count twice
        shares[0] = shares[-1] = 1 / n_fft
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())
        self.register_buffer("shares", shares)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        n_bins = len(self.shares)
        first, second = frames[..., :n_bins], F.pad(frames[..., n_bins:].flip(-1), (1, 1))
        return (first + second) @ self.cos, (second - first) @ self.sin

    def inverse(self, real: Tensor, imag: Tensor) -> Tensor:
        """The frames (..., N)."""
        even, odd = (real * self.shares) @ self.cos, (imag * self.shares) @ self.sin
        return torch.cat([even - odd, (even + odd)[..., 1:-1].flip(-1)], dim=-1)


class RealSpectra(nn.Module):
    """What `ISTFT` and the STFT of `consistency.Analysis` do to whole batches, on real and imaginary parts.

    Args:
        istft: The inverse STFT, for its sizes and window.

    Shape:
        real and imag (B, n_bins, T), waveform (B, (T - 1) * hop_length).
    """

    def __init__(self, istft: ISTFT):
        super().__init__()
        self.istft = istft
        self.dft = RealDFT(istft.n_fft)

    def waveform(self, real: Tensor, imag: Tensor) -> Tensor:
        """The inverse STFT."""
        return self.istft.add_up(self.dft.inverse(real.transpose(1, 2), imag.transpose(1, 2)))

    def spectrum(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """The centred STFT, both edges mirrors: real and imag."""
        real, imag = self.dft(self._frames(waveform) * self.istft.window)
        return real.transpose(1, 2), imag.transpose(1, 2)

    def _frames(self, waveform: Tensor) -> Tensor:
        """(B, T, n_fft)."""
        n_fft, hop_length = self.istft.n_fft, self.istft.hop_length
        n_samples = waveform.shape[1]
        position = torch.arange(-(n_fft // 2), n_samples + n_fft // 2, device=waveform.device)
        period = 2 * position[-n_fft // 2 - 1]  # a tensor: ONNX has no remainder of a number known only in use
        position = position.remainder(period)
        padded = waveform[:, torch.minimum(position, period - position)]
        n_hops = -(-n_fft // hop_length)
        hops = F.pad(padded, (0, n_hops * hop_length - n_fft)).unflatten(1, (-1, hop_length))
        n_frames = n_samples // hop_length + 1
        return torch.cat([hops[:, i : i + n_frames] for i in range(n_hops)], dim=2)[..., :n_fft]
