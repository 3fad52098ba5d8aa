"""Iterations behind the networks: from a spectrum that no waveform has to one that a waveform has, or nearly.

Each is an inverse STFT, an STFT, and a step back towards what the spectrum was to be like: `FastGriffinLim` gives every
bin the predicted amplitude again, `MelConsistency` every band the level that the mel says.
"""

import numpy as np
import torch
from torch import Tensor, nn

from apnet2_tts_plugin.network.spectra import ISTFT, MEL_FLOOR, Float32Buffers, magnitude

MOMENTUM = 0.99
MAX_LOG_GAIN = 3.0  # 26 dB: where a band is nearly empty, a step to what it should have would be noise
FLOOR = 1e-8  # of what is divided by; it keeps the gradient of a direction of no length finite


class FastGriffinLim(nn.Module):
    """Fast Griffin-Lim (Perraudin et al., WASPAA 2013); differentiable.

    With S the amplitude, c_0 the spectrum given and G the STFT of the inverse STFT: t_n = G(c_(n-1)) and
    c_n = S * angle(t_n - m t_(n-1)), m = a / (1 + a) for the acceleration a = 0.99, t_0 = 0.

    Args:
        istft: The inverse STFT.
        hop_length: Samples between frames.
        iterations: How many; with 0 the spectrum stays as it is.

    Shape:
        spectrum (B, n_bins, T) complex, its amplitude (B, n_bins, T), any mel, mask (B, T, 1) or None, lengths (B,) or
        None, to a spectrum of the same shape.
    """

    def __init__(self, istft: ISTFT, hop_length: int, iterations: int):
        super().__init__()
        self.analysis = Analysis(istft, hop_length)
        self.iterations = iterations

    def forward(
        self,
        spectrum: Tensor,
        amplitude: Tensor,
        mel: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        momentum = MOMENTUM / (1 + MOMENTUM)
        previous = None
        for _ in range(self.iterations):
            consistent = self.analysis(spectrum, mask, lengths)
            direction = consistent if previous is None else consistent - momentum * previous
            previous = consistent
            spectrum = direction * (amplitude / magnitude(direction.real, direction.imag, FLOOR))
        return spectrum


class MelConsistency(Float32Buffers):
    """Iterations after which the mel of the waveform is nearly the one that was given; differentiable.

    A predicted phase makes frames cancel one another in part, and the mel says by how much. With M the mel given, B its
    filters, G the STFT of the inverse STFT: t_n = G(c_(n-1)), c_n = t_n exp(V^T (M - log B |t_n|)), V being B with the
    sum 1 over the bands of each bin; the logarithm has the mel's floor, and its difference is within 3. Unlike
    Griffin-Lim's, the gains are smooth over the bins, so that they hardly spoil what they are applied to. Of the
    amplitude that was predicted, bands keep no more than what lies between them: the mel says how loud they are. Bins
    in none of the bands get the predicted amplitude, as in Griffin-Lim.

    Args:
        istft: The inverse STFT.
        hop_length: Samples between frames.
        iterations: How many; with 0 the spectrum stays as it is.
        basis: The mel filters (n_mels, n_bins).

    Shape:
        spectrum (B, n_bins, T) complex, its amplitude (B, n_bins, T), natural-log mel (B, n_mels, T), mask (B, T, 1) or
        None, lengths (B,) or None, to a spectrum of the same shape.
    """

    def __init__(self, istft: ISTFT, hop_length: int, iterations: int, basis: np.ndarray):
        super().__init__()
        self.analysis = Analysis(istft, hop_length)
        self.iterations = iterations
        basis = torch.from_numpy(basis)
        total = basis.sum(dim=0)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("shares", basis / total.clamp(min=FLOOR), persistent=False)
        self.register_buffer("covered", total > 0, persistent=False)

    def forward(
        self,
        spectrum: Tensor,
        amplitude: Tensor,
        mel: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        for _ in range(self.iterations):
            consistent = self.analysis(spectrum, mask, lengths)
            size = magnitude(consistent.real, consistent.imag, FLOOR)
            spectrum = consistent * self.gain(size, amplitude, mel)
        return spectrum

    def gain(self, size: Tensor, amplitude: Tensor, mel: Tensor) -> Tensor:
        """What a spectrum of the amplitude `size` is multiplied by, (B, n_bins, T)."""
        with torch.autocast(size.device.type, enabled=False):
            size, amplitude, mel = (
                part.transpose(1, 2) for part in (size, amplitude, mel.float())
            )  # bins last in memory
            missing = mel - (size @ self.basis.T).clamp(min=MEL_FLOOR).log()
            in_bands = (missing.clamp(-MAX_LOG_GAIN, MAX_LOG_GAIN) @ self.shares).exp()
            return torch.where(self.covered, in_bands, amplitude / size).transpose(1, 2)


class Analysis(nn.Module):
    """The spectrum of the waveform of a spectrum: the inverse STFT, and the centred STFT of each item.

    Both edges are mirrors, so that items shorter than the window have one too.

    Shape:
        spectrum (B, n_bins, T) complex, mask (B, T, 1) or None, lengths (B,) or None, to a spectrum of the same shape.
    """

    def __init__(self, istft: ISTFT, hop_length: int):
        super().__init__()
        self.__dict__["istft"] = istft  # the generator's, not another submodule
        self.hop_length = hop_length

    def forward(self, spectrum: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        return self.stft(self.istft(spectrum, mask), lengths)

    def stft(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The STFT of a waveform (B, (T - 1) * hop_length)."""
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
