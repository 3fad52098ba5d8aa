"""Short-time Fourier transform, its inverse and log-mel spectrograms, always in float32.

Waveforms are (B, N) with N samples, spectra (B, n_bins, T) with n_bins = n_fft / 2 + 1 and T = N // hop_length + 1
frames (frames are centred, the edges reflected). Logarithms are natural.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.errors import DataError

MEL_FLOOR = 1e-5
AMPLITUDE_FLOOR = 1e-5
DB_PER_NEPER = 20 / math.log(10)  # logarithms are natural


def mel_basis(sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float | None) -> np.ndarray:
    """Slaney mel filters, float32 of shape (n_mels, n_fft / 2 + 1); `fmax` None is half the sample rate.

    They are librosa's, without what it takes to import that; torchaudio's have an error of 3e-6 of their peak, which
    the pseudo-inverse magnifies.
    """
    ends = hertz_to_mel(np.array([fmin, sample_rate / 2 if fmax is None else fmax]))
    edges = mel_to_hertz(np.linspace(*ends, n_mels + 2))[:, None]
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    widths = np.diff(edges, axis=0)
    triangles = np.minimum((frequencies - edges[:-2]) / widths[:-1], (edges[2:] - frequencies) / widths[1:])
    return (np.maximum(triangles, 0) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def hertz_to_mel(hertz: np.ndarray | float) -> np.ndarray:
    """Slaney's scale: linear up to 1000 Hz, which are 15 mel, and logarithmic above, 27 mel for a factor of 6.4."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def mel_to_hertz(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of `hertz_to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


class Float32Buffers(nn.Module):
    """A module whose floating buffers follow it to a device but stay in float32: `.bfloat16()` would ruin a window."""

    def _apply(self, fn, recurse=True):
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            self._buffers[name] = tensor.to(self._buffers[name].device)
        return self


class STFT(Float32Buffers):
    """Centred short-time Fourier transform with a periodic Hann window and reflected edges.

    Args:
        n_fft: FFT size in samples, even.
        hop_length: Step between frames in samples.
        win_length: Window length in samples, at most `n_fft`.

    Shape:
        waveform (B, N), N > n_fft / 2, to complex spectrum (B, n_fft / 2 + 1, N // hop_length + 1).

    Example:

        >>> STFT(1024, 256, 1024)(torch.zeros(2, 8192)).shape
        torch.Size([2, 513, 33])
    """

    def __init__(self, n_fft: int, hop_length: int, win_length: int):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.win_length = win_length
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.stft(
                waveform.float(),
                self.n_fft,
                self.hop_length,
                self.win_length,
                self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )


class ISTFT(Float32Buffers):
    """Inverse of `STFT`: windowed overlap-add over the sum of the squared windows (the least-squares inverse).

    torch.istft takes one length for a whole batch. Here frames at which `mask` is 0 count neither in the overlap-add
    nor in the sum of windows, so that each item of a padded batch ends as it would alone.

    Args:
        n_fft: FFT size in samples, even.
        hop_length: Step between frames in samples.
        win_length: Window length in samples, more than `hop_length`.

    Shape:
        spectrum (B, n_fft / 2 + 1, T) complex, mask (B, T, 1) or None, to waveform (B, (T - 1) * hop_length).

    Example:

        >>> x = torch.randn(2, 8192)
        >>> stft, istft = STFT(1024, 256, 1024), ISTFT(1024, 256, 1024)
        >>> torch.allclose(istft(stft(x)), x, atol=1e-5)
        True
    """

    def __init__(self, n_fft: int, hop_length: int, win_length: int):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        left = (n_fft - win_length) // 2
        window = F.pad(torch.hann_window(win_length), (left, n_fft - win_length - left))
        self.register_buffer("window", window, persistent=False)

    def forward(self, spectrum: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.add_up(torch.fft.irfft(spectrum.transpose(1, 2), n=self.n_fft), mask)

    def add_up(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """The waveform of frames (B, T, n_fft) that are still to be windowed."""
        n_frames = frames.shape[1]
        frames = frames * self.window
        if mask is None:
            present = frames.new_ones(1, n_frames)
        else:
            frames, present = frames.masked_fill(mask == 0, 0.0), mask[..., 0]
        start = self.n_fft // 2
        end = start + (n_frames - 1) * self.hop_length
        waveform = self._overlap_add(frames)[:, start:end]
        envelope = self._squared_windows(present)[:, start:end]
        return waveform / envelope.clamp(min=1e-8)  # 0 / 1e-8 where no frame is left

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(B, T, n_fft) frames, `hop_length` apart, to their sum (B, at least (T - 1) * hop_length + n_fft)."""
        pieces = self._in_hops(frames)
        n_hops = pieces.shape[2]
        total = sum(F.pad(pieces[:, :, i], (0, 0, i, n_hops - 1 - i)) for i in range(n_hops))
        return total.flatten(1)

    def _squared_windows(self, present: Tensor) -> Tensor:
        """What `_overlap_add` makes of squared windows at the frames where `present` (B, T) is 1."""
        pieces = self._in_hops(self.window.square())
        n_hops = len(pieces)
        frames = F.pad(present, (n_hops - 1, n_hops - 1)).unfold(
            1, n_hops, 1
        )  # that reach into each hop, first to last
        return (frames @ pieces.flip(0)).flatten(1)

    def _in_hops(self, frames: Tensor) -> Tensor:
        """(..., n_fft) to (..., n_hops, hop_length), the last one filled up by zeros."""
        n_hops = -(-self.n_fft // self.hop_length)
        return F.pad(frames, (0, n_hops * self.hop_length - self.n_fft)).unflatten(-1, (n_hops, self.hop_length))


class LogMel(Float32Buffers):
    """Natural-log mel spectrogram of the magnitude: log(max(B sqrt(|STFT|^2 + 1e-9), 1e-5)), B with Slaney's scale.

    Args:
        sample_rate: Sample rate in Hz.
        n_fft: FFT size in samples.
        hop_length: Step between frames in samples.
        win_length: Window length in samples.
        n_mels: Number of bands.
        fmin: Lower edge of the bands in Hz.
        fmax: Upper edge of the bands in Hz; None is half the sample rate.

    Shape:
        waveform (B, N) within [-1, 1], a tensor or an array, or its complex spectrum (B, n_bins, T) to (B, n_mels, T),
        at least log(1e-5).

    Raises:
        DataError: if the waveform is not as above, or not longer than half an FFT.

    Example:

        >>> LogMel(22050, 1024, 256, 1024, 80, 0.0, 8000.0)(torch.zeros(1, 8192)).shape
        torch.Size([1, 80, 33])
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        win_length: int,
        n_mels: int,
        fmin: float,
        fmax: float | None,
    ):
        super().__init__()
        self.stft = STFT(n_fft, hop_length, win_length)
        basis = torch.from_numpy(mel_basis(sample_rate, n_fft, n_mels, fmin, fmax))
        self.register_buffer("basis", basis, persistent=False)

    @classmethod
    def from_audio_config(cls, audio, full_band: bool = False) -> "LogMel":
        """The analysis of a coqui audio config; `full_band` goes up to half the sample rate, as the loss does."""
        fmin, fmax = (0.0, None) if full_band else (audio.mel_fmin, audio.mel_fmax)
        sizes = (audio.sample_rate, audio.fft_size, audio.hop_length, audio.win_length, audio.num_mels)
        return cls(*sizes, fmin, fmax)

    def forward(self, waveform: Tensor | np.ndarray) -> Tensor:
        waveform = as_waveform(waveform, self.basis.device)
        shape, shortest = tuple(waveform.shape), self.stft.n_fft // 2 + 1
        if waveform.dim() not in (1, 2) or shape[-1] < shortest:
            raise DataError(f"waveform of shape {shape}, expected (batch, samples) with {shortest} samples or more")
        return self.from_spectrum(self.stft(waveform))

    def pieces(self, waveform: Tensor, n_frames: int) -> Iterator[Tensor]:
        """The mel of a waveform (N,), `n_frames` at a time, so that long ones fit in memory: (1, n_mels, T) each."""
        hop_length, half_window = self.stft.hop_length, self.stft.n_fft // 2
        margin = half_window // hop_length + 1  # frames that the edge of a piece, where the waveform goes on, reflects
        n_all = len(waveform) // hop_length + 1
        for start in range(0, n_all, n_frames):
            first, end = max(start - margin, 0), min(start + n_frames, n_all)
            last = len(waveform) if end == n_all else (end + margin) * hop_length
            mel = self(waveform[None, first * hop_length : last])
            yield mel[:, :, start - first : end - first]

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        """Log-mel (B, n_mels, T) of a complex spectrum (B, n_bins, T)."""
        with torch.autocast(spectrum.device.type, enabled=False):
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
            return (self.basis @ magnitude).clamp(min=MEL_FLOOR).log()


class LogMelStream:
    """`LogMel` of a waveform that comes in pieces.

    Args:
        log_mel: The analysis.
        audio: The audio config that it is of.

    Example:

        >>> from apnet2_tts_plugin import load_model
        >>> model = load_model("apnet2")
        >>> stream = LogMelStream(model.log_mel, model.config.audio)
        >>> [stream.push(torch.zeros(1024), last=i == 2).shape[2] for i in range(3)]
        [3, 4, 6]
    """

    def __init__(self, log_mel: LogMel, audio):
        self.log_mel, self.audio = log_mel, audio
        self.hop_length, self.half_window = log_mel.stft.hop_length, log_mel.stft.n_fft // 2
        self.margin = self.half_window // self.hop_length + 1  # frames that the edge, where it goes on, reflects
        self.kept = log_mel.basis.new_zeros(0)
        self.n_before = 0  # frames among the kept ones that are out
        self.n_samples = 0

    def push(self, waveform: Tensor, last: bool = False) -> Tensor:
        """The frames that are complete with the next samples.

        Args:
            waveform: (N,) within [-1, 1].
            last: Whether it ends here; it is continued by silence then, as by `whole_hops`.

        Returns:
            Natural-log mel (1, n_mels, T); all together are those of the whole.
        """
        self.n_samples += len(waveform)
        kept = torch.cat([self.kept, waveform])
        if last:
            kept = F.pad(kept, (0, n_hops(self.n_samples, self.audio) * self.hop_length - self.n_samples))
            n_frames = len(kept) // self.hop_length + 1
        else:
            n_frames = (len(kept) - self.half_window) // self.hop_length + 1
        if n_frames <= max(self.n_before, 1):  # a window that reflects takes more samples than half of it
            self.kept = kept
            return kept.new_zeros(1, len(self.log_mel.basis), 0)
        mel = self.log_mel(kept[None])[:, :, self.n_before : n_frames]
        first = max(n_frames - self.margin, 0)
        self.kept, self.n_before = kept[first * self.hop_length :], n_frames - first
        return mel


def as_tensor(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """A tensor as it is, or an array as a tensor on `device`."""
    return values if torch.is_tensor(values) else torch.as_tensor(np.ascontiguousarray(values), device=device)


def as_waveform(waveform: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """A waveform as `as_tensor` gives it.

    Raises:
        DataError: if its numbers are not floating: those of integers have another scale.
    """
    waveform = as_tensor(waveform, device)
    if not waveform.is_floating_point():
        hint = "; divide 16-bit samples by 32768" if waveform.dtype == torch.int16 else ""
        raise DataError(f"waveform of type {waveform.dtype}, expected floating numbers from -1 to 1{hint}")
    return waveform


def whole_hops(waveform: Tensor, audio) -> Tensor:
    """A waveform (N,), continued by silence to whole hops, and to as many as the analysis reflects at the edges."""
    return F.pad(waveform, (0, n_hops(len(waveform), audio) * audio.hop_length - len(waveform)))


def n_hops(n_samples: int, audio) -> int:
    """How many hops `whole_hops` gives of so many samples."""
    return max(-(-n_samples // audio.hop_length), audio.fft_size // 2 // audio.hop_length + 1)


def magnitude(real: Tensor, imag: Tensor, floor: float) -> Tensor:
    """sqrt(real^2 + imag^2), at least `floor`; on a processor several times as fast as abs() of a complex number."""
    return (real.square() + imag.square()).clamp(min=floor**2).sqrt()


def log_amplitude(spectrum: Tensor) -> Tensor:
    """log(|spectrum| + 1e-5), same shape."""
    return (spectrum.abs() + AMPLITUDE_FLOOR).log()


def phase(spectrum: Tensor) -> Tensor:
    """Wrapped phase in [-pi, pi], same shape."""
    return torch.atan2(spectrum.imag, spectrum.real)
