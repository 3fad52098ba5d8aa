"""The spectrum of a voice whose harmonics all start together, pulses: what the phase predictor starts from.

In voiced speech the phase of harmonic h at the centre of frame k is h * Phi_k plus a slow function of the envelope,
with Phi the phase of the fundamental (harmonic priors: NSF, arXiv 1904.12088; HiFTNet, 2309.09493; Wavehax,
2411.06807). A mel does not say where a period begins, so Phi_0 is free: 0 in use, that of the recording in training.

Frames are centred at k * hop_length, frequencies in Hz, phases in radians.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apnet2_tts_plugin.network.pitch import Pitch
from apnet2_tts_plugin.network.spectra import Float32Buffers

NOISE_PERIOD = 1024  # frames
MAX_GLIDE = 8.0  # of the frequency per second: 11 octaves in one


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


def glide(pitch: Pitch, hop_length: int, sample_rate: int) -> Tensor:
    """How fast the frequency moves at each frame in Hz per second: half the difference of the frames to either side.

    To and from what is not voiced, or not there, it does not move. No voice is faster than `MAX_GLIDE`; what is, is an
    error of the pitch.

    Args:
        pitch: That of all frames.
        hop_length: Samples between frames.
        sample_rate: In Hz.

    Returns:
        Slopes (B, T).
    """
    f0, voiced = pitch
    steps = F.pad(f0.diff(dim=1) * voiced[:, 1:] * voiced[:, :-1], (1, 1))
    slope = (steps[:, 1:] + steps[:, :-1]) * (sample_rate / (2 * hop_length))
    limit = MAX_GLIDE * f0
    return slope.clamp(-limit, limit)


def fundamental_phase(waveform: Tensor, pitch: Pitch, hop_length: int, sample_rate: int, window: Tensor) -> Tensor:
    """Phi of a recording: the angle of sum_n w_n x[k hop_length + n] exp(-2 pi i (f0_k t_n + slope_k t_n^2 / 2)).

    n is from -N/2 to N/2 - 1, t_n = n / sample_rate, and slope from `glide`. Without it a voice that glides would seem
    off by about pi slope times the variance of t, and its harmonics by as many times that.

    Args:
        waveform: Recording (B, (T - 1) * hop_length), or longer.
        pitch: Its pitch.
        hop_length: Samples between frames.
        sample_rate: In Hz.
        window: w, (N,), N even.

    Returns:
        Phi in [-pi, pi], (B, T).
    """
    n_fft, f0, slope = len(window), pitch.f0[..., None], glide(pitch, hop_length, sample_rate)[..., None]
    padded = F.pad(waveform, (n_fft // 2, n_fft // 2))
    frames = padded.unfold(1, n_fft, hop_length)[:, : f0.shape[1]] * window
    time = torch.arange(-(n_fft // 2), n_fft // 2, device=f0.device) / sample_rate
    angle = (2 * math.pi) * time * (f0 + slope / 2 * time)
    return torch.atan2(-(frames * angle.sin()).sum(2), (frames * angle.cos()).sum(2))


class PulseTrain(Float32Buffers):
    """The STFT of a voice whose harmonics are equal, start together and glide with the fundamental: of pulses.

    t seconds from a frame's centre the fundamental is at c = Phi / 2 pi + f0 t + slope t^2 / 2 cycles, and the H =
    floor(sample_rate / (2 f0)) harmonics together are

        2 sum_(h=1..H) cos(2 pi h c) = sin((2 H + 1) pi c) / sin(pi c) - 1    (Dirichlet's kernel).

    The window's sum is 1, so that a harmonic has a peak of 1.

    Args:
        hop_length: Samples between frames.
        sample_rate: In Hz.
        window: That of the STFT, (n_fft,), n_fft even.

    Shape:
        pitch and Phi (B, T) to a complex spectrum (B, n_fft / 2 + 1, T), 0 where nothing is voiced.
    """

    def __init__(self, hop_length: int, sample_rate: int, window: Tensor):
        super().__init__()
        self.hop_length, self.sample_rate = hop_length, sample_rate
        half = len(window) // 2
        self.register_buffer("time", torch.arange(-half, half) / sample_rate, persistent=False)
        self.register_buffer("window", window / window.sum(), persistent=False)

    def forward(self, pitch: Pitch, phi: Tensor) -> Tensor:
        return torch.fft.rfft(self.frames(pitch, phi)).transpose(1, 2)

    @torch.no_grad()  # the pitch is rounded, so none would go back through it
    def frames(self, pitch: Pitch, phi: Tensor) -> Tensor:
        """The windowed frames (B, T, n_fft)."""
        slope = glide(pitch, self.hop_length, self.sample_rate)
        f0, voiced, slope, phi = (part[..., None] for part in (*pitch, slope, phi))
        # in float64, as the error of a cycle counts H times; the sign is of no account, and 0 would give 0 / 0
        time = self.time.double()
        cycles = torch.addcmul(phi.double() / (2 * math.pi), torch.addcmul(f0.double(), slope.double() / 2, time), time)
        angle = (cycles - cycles.round()).float().abs_().clamp_(min=1e-6).mul_(math.pi)
        # of two tensors: a number divided by one is multiplied by its reciprocal, which may fall short of the whole
        n_terms = 2 * (torch.full_like(f0, self.sample_rate / 2) / f0).floor() + 1
        pulses = (n_terms * angle).sin_().div_(angle.sin_()).sub_(1)
        return pulses.mul_(self.window).mul_(voiced)


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
