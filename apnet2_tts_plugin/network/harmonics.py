"""The phase that a voice has if all its harmonics start together: what the phase predictor starts from.

In voiced speech the phase of harmonic h at the centre of frame k is h * Phi_k plus a slow function of the envelope,
with Phi the phase of the fundamental (harmonic priors: NSF, arXiv 1904.12088; HiFTNet, 2309.09493; Wavehax,
2411.06807). A mel does not say where a period begins, so Phi_0 is free: 0 in use, that of the recording in training.

Frames are centred at k * hop_length, frequencies in Hz, phases in radians.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apnet2_tts_plugin.network.spectra import Float32Buffers

NOISE_PERIOD = 1024  # frames
REACH = 2.75  # bins of the window to either side of a harmonic


def integrate(f0: Tensor, hop_length: int, sample_rate: int, start: Tensor | None = None) -> Tensor:
    """The fundamental's phase Phi from its frequency by the trapezoidal rule.

    Phi_k = Phi_(k-1) + pi (f0_(k-1) + f0_k) hop_length / sample_rate, added up in float64 cycles: after ten minutes it
    is off by less than 1e-6 of a cycle.

    Args:
        f0: Frequency in Hz (B, T).
        hop_length: Samples between frames.
        sample_rate: In Hz.
        start: Phi of the first frame (B,); 0 by default.

    Returns:
        Phi in [0, 2 pi), (B, T) in float64.
    """
    cycles = f0.double() * hop_length / sample_rate  # by numbers that float32 has too, to which exporters round them
    steps = F.pad((cycles[:, 1:] + cycles[:, :-1]) / 2, (1, 0))
    if start is not None:
        steps[:, 0] = start.double() / (2 * math.pi)
    return steps.cumsum(1).remainder(1.0) * (2 * math.pi)


def fundamental_phase(waveform: Tensor, f0: Tensor, hop_length: int, sample_rate: int, window: Tensor) -> Tensor:
    """Phi of a recording, the angle of sum_n w_n x[k hop + n] exp(-2 pi i f0_k n / sample_rate), n = -N/2 to N/2 - 1.

    Args:
        waveform: Recording (B, (T - 1) * hop_length), or longer.
        f0: Its fundamental frequency in Hz (B, T); where there is none, any.
        hop_length: Samples between frames.
        sample_rate: In Hz.
        window: w, (N,), N even.

    Returns:
        Phi in [-pi, pi], (B, T).
    """
    n_fft = len(window)
    padded = F.pad(waveform, (n_fft // 2, n_fft // 2))
    frames = padded.unfold(1, n_fft, hop_length)[:, : f0.shape[1]] * window
    time = torch.arange(-(n_fft // 2), n_fft // 2, device=f0.device) / sample_rate
    angle = (2 * math.pi) * f0[..., None] * time
    return torch.atan2(-(frames * angle.sin()).sum(2), (frames * angle.cos()).sum(2))


def harmonic_phase(f0: Tensor, phi: Tensor, n_fft: int, sample_rate: int) -> Tensor:
    """The start psi_b = h Phi_k - pi b of the phase of each bin b of a centred STFT, h the harmonic nearest to the bin.

    h = round(b sample_rate / (n_fft f0_k)). The term -pi b is the half window between a frame's start, from which the
    STFT counts, and its centre.

    Args:
        f0: Fundamental frequency in Hz (B, T), above 0.
        phi: Phase of the fundamental (B, T).
        n_fft: FFT size in samples, even.
        sample_rate: In Hz.

    Returns:
        psi (B, n_fft / 2 + 1, T), not wrapped.
    """
    bins = torch.arange(n_fft // 2 + 1, device=f0.device, dtype=f0.dtype)
    harmonics = (bins * (sample_rate / n_fft) / f0[..., None]).round()
    psi = harmonics * phi[..., None] - math.pi * bins.remainder(2.0)
    return psi.transpose(1, 2)  # so in memory the bins are last, as in the spectra


def harmonic_weight(f0: Tensor, n_fft: int, win_length: int, sample_rate: int) -> Tensor:
    """How much each bin of an STFT has of the harmonic nearest to it: cos^2(pi d / (2 `REACH`)), 0 from d = `REACH` on.

    d is the distance in bins of the window, of sample_rate / win_length each. With a reach of 2 that is the main lobe
    of a Hann window to within 0.03; a little more allows for a frequency that is a little wrong.

    Args:
        f0: Fundamental frequency in Hz (B, T), above 0.
        n_fft: FFT size in samples, even.
        win_length: Length of the window in samples.
        sample_rate: In Hz.

    Returns:
        Weights from 0 to 1, (B, n_fft / 2 + 1, T).
    """
    bins = torch.arange(n_fft // 2 + 1, device=f0.device, dtype=f0.dtype) * (win_length / n_fft)
    spacing = f0[..., None] * (win_length / sample_rate)
    distance = bins - (bins / spacing).round() * spacing
    return ((distance / REACH).clamp(-1, 1) * (math.pi / 2)).cos().square().transpose(1, 2)


class NoisePhase(Float32Buffers):
    """Random phases in [0, 2 pi): in use those of `NOISE_PERIOD` frames, over and over; in training new ones each time.

    So every frame has the same on every device, in a piece of a mel, in compiled code and in an exported graph.

    Args:
        n_bins: Number of bins.
        seed: Of the phases in use.
    """

    def __init__(self, n_bins: int, seed: int):
        super().__init__()
        self.register_buffer("phases", _draw(NOISE_PERIOD, n_bins, torch.Generator().manual_seed(seed)), False)

    def forward(self, n_frames: int, first: int = 0) -> Tensor:
        """Those of the frames from `first` on, (1, n_bins, n_frames)."""
        if self.training:
            phases = _draw(n_frames, self.phases.shape[1]).to(self.phases.device)
        else:
            phases = self.phases[torch.arange(first, first + n_frames, device=self.phases.device) % NOISE_PERIOD]
        return phases.t()[None]


def _draw(n_frames: int, n_bins: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.rand(n_frames, n_bins, generator=generator) * (2 * math.pi)
