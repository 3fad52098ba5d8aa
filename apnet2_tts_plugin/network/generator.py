"""The generator: amplitude and phase spectra from a mel, or a latent, by ConvNeXt v2 blocks, then one inverse STFT.

APNet2 (arXiv 2311.11545), section 2; the pseudo-inverse start of the amplitude is FreeV's (arXiv 2406.08196). Parameter
names are those of the official checkpoints after `official.NAMES`.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.network.spectra import AMPLITUDE_FLOOR, ISTFT, Float32Buffers, mel_basis


class GlobalResponseNorm(nn.Module):
    """Global response normalisation over time (ConvNeXt V2, arXiv 2301.00808, section 3.2).

    Each channel is scaled by its L2 norm over all frames relative to the mean of these norms. Padded frames must be
    left out by `mask`: they would change every other frame.

    Shape:
        x (B, T, C), mask (B, T, 1) or None, to (B, T, C).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # Faster on a processor than vector_norm over this axis; the root of 0 has no gradient, hence the clamp.
        squares = _masked(x, mask).float().square().sum(dim=1, keepdim=True)
        norm = squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        response = (norm / (norm.mean(dim=2, keepdim=True) + 1e-6)).to(x.dtype)
        return torch.addcmul(self.beta, x, 1 + self.gamma * response)


class DepthwiseConv(nn.Conv1d):
    """Depthwise convolution over time, of as many frames as it gets.

    Shape:
        (B, T, C) to (B, T, C).
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        # An image of height 1 with its channels last, which is what x is in memory: nothing needs to be copied.
        image = x.transpose(1, 2).unsqueeze(2)
        padding = (0, *self.padding)
        image = F.conv2d(image, self.weight.unsqueeze(2), self.bias, padding=padding, groups=self.groups)
        return image.squeeze(2).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt v2 block: depthwise convolution, LayerNorm, expansion, GELU, GRN, projection, residual.

    Shape:
        x (B, T, C), mask (B, T, 1) or None, to (B, T, C).
    """

    def __init__(self, channels: int, hidden_channels: int, kernel_size: int):
        super().__init__()
        self.depthwise = DepthwiseConv(channels, kernel_size)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, hidden_channels)
        self.response_norm = GlobalResponseNorm(hidden_channels)
        self.project = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.norm(self.depthwise(x))
        hidden = F.gelu(self.expand(hidden))
        hidden = self.response_norm(hidden, mask)
        return _masked(self.project(hidden) + x, mask)


class Backbone(nn.Module):
    """Input convolution, LayerNorm, ConvNeXt v2 blocks, LayerNorm: what both predictors share.

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to (B, channels, T).
    """

    def __init__(self, n_inputs: int, sizes: PredictorConfig):
        super().__init__()
        kernel_size = sizes.input_kernel_size
        self.input_conv = nn.Conv1d(n_inputs, sizes.channels, kernel_size, padding=kernel_size // 2)
        self.input_norm = nn.LayerNorm(sizes.channels, eps=1e-6)
        self.blocks = _blocks(sizes)
        self.output_norm = nn.LayerNorm(sizes.channels, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = _masked(self.input_norm(self.input_conv(x).transpose(1, 2)), mask)
        for block in self.blocks:
            x = block(x, mask)
        return _masked(self.output_norm(x), mask).transpose(1, 2)


class AmplitudePredictor(nn.Module):
    """Log-amplitude spectrum from the mel (APNet2 paper, section 2.1), or from whatever has n_inputs channels.

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to natural log-amplitude (B, n_bins, T).
    """

    def __init__(self, n_inputs: int, n_bins: int, sizes: PredictorConfig):
        super().__init__()
        self.backbone = Backbone(n_inputs, sizes)
        self.output_conv = _output_conv(sizes, n_bins)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output_conv(self.backbone(x, mask))


class AmplitudeRefiner(Float32Buffers):
    """Log-amplitude spectrum from the mel taken back to linear frequency (FreeV, section 2.2).

    Starts from log(max(|B^+ exp(mel)|, 1e-5)), B^+ the pseudo-inverse of the mel filters, and refines it by ConvNeXt v2
    blocks of width n_bins.

    Shape:
        mel (B, n_mels, T), mask (B, T, 1) or None, to natural log-amplitude (B, n_bins, T).
    """

    def __init__(self, basis: np.ndarray, sizes: PredictorConfig):
        super().__init__()
        self.register_buffer("inverse_basis", torch.from_numpy(np.linalg.pinv(basis)), persistent=False)
        self.blocks = _blocks(sizes)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(mel.device.type, enabled=False):
            magnitude = self.inverse_basis @ mel.float().exp()
            start = magnitude.abs().clamp(min=AMPLITUDE_FLOOR).log()
        x = _masked(start.to(mel.dtype).transpose(1, 2), mask)
        for block in self.blocks:
            x = block(x, mask)
        return x.transpose(1, 2)


class PhasePredictor(nn.Module):
    """Pseudo real and imaginary parts, whose angle is the phase spectrum (APNet2 paper, section 2.1).

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to two tensors (B, n_bins, T).
    """

    def __init__(self, n_inputs: int, n_bins: int, sizes: PredictorConfig):
        super().__init__()
        self.backbone = Backbone(n_inputs, sizes)
        self.real_conv = _output_conv(sizes, n_bins)
        self.imag_conv = _output_conv(sizes, n_bins)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.backbone(x, mask)
        return self.real_conv(x), self.imag_conv(x)


class Prediction(NamedTuple):
    """What the generator predicts, in float32.

    log_amplitude (B, n_bins, T) is natural, phase (B, n_bins, T) in [-pi, pi], spectrum (B, n_bins, T) complex, and
    waveform (B, (T - 1) * hop_length).
    """

    log_amplitude: Tensor
    phase: Tensor
    spectrum: Tensor
    waveform: Tensor


class Generator(nn.Module):
    """APNet2's generator, of the sizes in `config`.

    Its input, called mel here, may be a latent (B, n_inputs, T).
    """

    def __init__(self, config: Apnet2Config):
        super().__init__()
        audio = config.audio
        n_bins = audio.fft_size // 2 + 1
        self.hop_length = audio.hop_length
        if config.amplitude_start == "pseudo_inverse":
            basis = mel_basis(audio.sample_rate, audio.fft_size, audio.num_mels, audio.mel_fmin, audio.mel_fmax)
            self.amplitude = AmplitudeRefiner(basis, config.amplitude)
        else:
            self.amplitude = AmplitudePredictor(config.n_inputs, n_bins, config.amplitude)
        self.phase = PhasePredictor(config.n_inputs, n_bins, config.phase)
        self.istft = ISTFT(audio.fft_size, audio.hop_length, audio.win_length)
        self.apply(_init_weights)

    def forward(self, mel: Tensor) -> Prediction:
        """Predict spectra and waveform from a natural-log mel (B, n_mels, T); for training."""
        log_amplitude = self.amplitude(mel)
        real, imag = self.phase(mel)
        with torch.autocast(mel.device.type, enabled=False):
            log_amplitude = log_amplitude.float()
            phase = torch.atan2(imag.float(), real.float())
            amplitude = log_amplitude.exp()
            spectrum = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
            return Prediction(log_amplitude, phase, spectrum, self.istft(spectrum))

    @torch.inference_mode()
    def inference(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform of a mel, the same as `forward` gives but without the angles that only training needs.

        Args:
            mel: Natural-log mel (B, n_mels, T), T >= 2, on the generator's device.
            lengths: True number of frames of each item, (B,), all of them 2 to T; None when all have T.

        Returns:
            Waveform (B, (T - 1) * hop_length) in float32, zero behind the end of each item. Every item is as long and
            as loud as it would be alone.
        """
        mask = None
        if lengths is not None:
            lengths = lengths.to(mel.device)[:, None]
            frames = torch.arange(mel.shape[2], device=mel.device)
            mel = mel.masked_fill((frames >= lengths)[:, None], 0.0)  # whatever was there, be it -inf
            mask = (frames < lengths)[:, :, None].to(mel.dtype)
        log_amplitude = self.amplitude(mel, mask)
        real, imag = self.phase(mel, mask)
        with torch.autocast(mel.device.type, enabled=False):
            # sgn(z) = z / |z| is the angle's cosine and sine: no arctangent is needed.
            direction = torch.complex(real.float(), imag.float()).sgn()
            spectrum = direction * log_amplitude.float().exp()
            waveform = self.istft(spectrum, None if mask is None else mask.float())
        if lengths is not None:
            samples = torch.arange(waveform.shape[1], device=mel.device)
            waveform = waveform.masked_fill(samples >= (lengths - 1) * self.hop_length, 0.0)
        return waveform


def _blocks(sizes: PredictorConfig) -> nn.ModuleList:
    return nn.ModuleList(
        ConvNeXtBlock(sizes.channels, sizes.hidden_channels, sizes.kernel_size) for _ in range(sizes.blocks)
    )


def _output_conv(sizes: PredictorConfig, n_bins: int) -> nn.Conv1d:
    return nn.Conv1d(sizes.channels, n_bins, sizes.output_kernel_size, padding=sizes.output_kernel_size // 2)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padded frames, as a convolution pads the end of a single run."""
    return x if mask is None else x * mask


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
