"""The two discriminators of training: periods of the waveform, and magnitude spectra at several resolutions.

Each returns one `DiscriminatorOutput` per sub-discriminator, whose feature maps serve the feature matching loss.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.utils.parametrizations import weight_norm

LEAKY_SLOPE = 0.1


class DiscriminatorOutput(NamedTuple):
    """A sub-discriminator's scores (B, n) and its feature maps in order, the score map last.

    The maps are laid out as they are computed: the first axis has the items of the batch in order, each once or several
    times in a row.
    """

    scores: Tensor
    feature_maps: list[Tensor]


class MatmulConv1d(torch.autograd.Function):
    """A convolution over time, the middle axis of x (N, H, C), as matrix products; for processors.

    weight is (D, kernel size * C), bias (D), for an odd kernel, padded by half of it; the result is (N * H', D). In the
    multi-period discriminator this reaches three quarters of the speed of a large matrix product on a processor,
    forward and backward; torch's own convolution reaches half, and training spends most of its time here. It holds up
    to five times the input in memory, and was not measured on CUDA, where cuDNN is used.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        patches = _patches(x, weight.shape[1] // x.shape[2], stride)
        return torch.addmm(bias, patches.flatten(0, 1), weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        kernel_size = weight.shape[1] // x.shape[2]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_patches = (gradient @ weight).view(len(x), -1, kernel_size, x.shape[2])
            of_x = _add_patches(of_patches, x.shape[1], ctx.stride)
        if ctx.needs_input_grad[1]:
            of_weight = gradient.t() @ _patches(x, kernel_size, ctx.stride).flatten(0, 1)
        if ctx.needs_input_grad[2]:
            # Sum the real and the generated half apart: early in training they cancel, and Adam would turn the rounding
            # error into a full step.
            halves = gradient.unflatten(0, (2, -1)) if len(gradient) % 2 == 0 else gradient[None]
            of_bias = halves.sum(dim=1).sum(dim=0)
        return of_x, of_weight, of_bias, None


def _patches(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """What a kernel of odd size sees of x (N, H, C) at each step, zeros beyond the ends: (N, H', kernel size * C)."""
    items, length, channels = x.shape
    padding = kernel_size // 2
    x = F.pad(x, (0, 0, padding, padding)).contiguous()
    steps = (length - 1) // stride + 1
    return x.as_strided((items, steps, kernel_size * channels), (x.stride(0), stride * channels, 1)).contiguous()


def _add_patches(patches: Tensor, length: int, stride: int) -> Tensor:
    """The transpose of `_patches`: patches (N, H', kernel size, C), added where they overlap, to (N, length, C)."""
    items, steps, kernel_size, channels = patches.shape
    padding = kernel_size // 2
    x = patches.new_zeros(items, kernel_size + stride * steps, channels)
    for i in range(kernel_size):
        x[:, i : i + stride * steps : stride] += patches[:, :, i]
    return x[:, padding : padding + length]


class ConvStack(nn.Module):
    """2-D convolutions with leaky ReLUs and a last one to a single channel, all weight-normalised.

    Shape:
        x (B, 1, H, W) to a `DiscriminatorOutput`.
    """

    def __init__(self, convs: list[nn.Conv2d], output_conv: nn.Conv2d):
        super().__init__()
        self.convs = nn.ModuleList(weight_norm(conv) for conv in convs)
        self.output_conv = weight_norm(output_conv)

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        feature_maps = []
        for conv in self.convs:
            # Channels last: a fifth faster than channels first on a processor.
            x = conv(x).contiguous(memory_format=torch.channels_last)
            x = F.leaky_relu(x, LEAKY_SLOPE, inplace=True)
            feature_maps.append(x)
        feature_maps.append(self.output_conv(x))
        return DiscriminatorOutput(feature_maps[-1].flatten(1), feature_maps)


class PeriodConvStack(ConvStack):
    """A `ConvStack` over time alone: its kernels have the width 1.

    Shape:
        x (B, 1, H, W) to a `DiscriminatorOutput` with maps (B * W, H', C).
    """

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        items, _, length, width = x.shape
        x = x.permute(0, 3, 2, 1).reshape(items * width, length, 1)
        convolve = matmul_conv1d if x.device.type == "cpu" else library_conv1d
        feature_maps = []
        for conv in self.convs:
            x = F.leaky_relu(convolve(conv, x), LEAKY_SLOPE, inplace=True)
            feature_maps.append(x)
        feature_maps.append(convolve(self.output_conv, x))
        scores = feature_maps[-1].view(items, width, -1).transpose(1, 2)
        return DiscriminatorOutput(scores.flatten(1), feature_maps)


def library_conv1d(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """x (N, H, C) to (N, H', D) by a kernel of width 1, as torch convolves (cuDNN on CUDA)."""
    weight = conv.weight.squeeze(3)
    x = F.conv1d(x.transpose(1, 2), weight, conv.bias, conv.stride[0], conv.padding[0])
    return x.transpose(1, 2).contiguous()


def matmul_conv1d(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The same as `library_conv1d`, as matrix products."""
    weight, bias = conv.weight.squeeze(3).transpose(1, 2).flatten(1), conv.bias
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    return MatmulConv1d.apply(x, weight, bias, conv.stride[0]).view(len(x), -1, conv.out_channels)


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded to rows of one period (HiFi-GAN, arXiv 2010.05646, section 2.3).

    Shape:
        waveform (B, N) to a `DiscriminatorOutput`.
    """

    def __init__(self, period: int, channels: list[int]):
        super().__init__()
        self.period = period
        widths = [1, *channels]
        strides = [3] * (len(channels) - 1) + [1]
        convs = [
            nn.Conv2d(widths[i], widths[i + 1], (5, 1), (strides[i], 1), padding=(2, 0)) for i in range(len(channels))
        ]
        self.stack = PeriodConvStack(convs, nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        missing = -waveform.shape[1] % self.period
        waveform = F.pad(waveform[:, None], (0, missing), "reflect")
        return self.stack(waveform.unflatten(2, (-1, self.period)))


class ResolutionDiscriminator(nn.Module):
    """Judges a magnitude spectrum (UnivNet, arXiv 2106.07889, section 2.2), with a rectangular window as APNet2 does.

    Shape:
        waveform (B, N) to a `DiscriminatorOutput`.
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

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        with torch.autocast(waveform.device.type, enabled=False):
            rectangular = waveform.new_ones(self.sizes[2], dtype=torch.float32)
            spectrum = torch.stft(waveform.float(), *self.sizes, rectangular, return_complex=True)
        return self.stack(spectrum.abs()[:, None])


class Discriminator(nn.Module):
    """Sub-discriminators that judge the same waveform.

    Shape:
        waveform (B, N) to one `DiscriminatorOutput` for each.
    """

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, waveform: Tensor) -> list[DiscriminatorOutput]:
        return [part(waveform) for part in self.parts]

    def pair(self, real: Tensor, generated: Tensor) -> tuple[list[DiscriminatorOutput], list[DiscriminatorOutput]]:
        """Judge real and generated waveforms (B, N) in one pass; the same as apart, as no item sees another."""
        halves = [_halves(output) for output in self(torch.cat([real, generated]))]
        return [first for first, _ in halves], [second for _, second in halves]


def _halves(output: DiscriminatorOutput) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
    maps = [feature_map.chunk(2) for feature_map in output.feature_maps]
    first, second = output.scores.chunk(2)
    return DiscriminatorOutput(first, [half for half, _ in maps]), DiscriminatorOutput(
        second, [half for _, half in maps]
    )


def multi_period(periods: list[int], channels: list[int]) -> Discriminator:
    """The multi-period discriminator (MPD)."""
    return Discriminator([PeriodDiscriminator(period, channels) for period in periods])


def multi_resolution(resolutions: list[list[int]], channels: int) -> Discriminator:
    """The multi-resolution discriminator (MRD); a resolution is [n_fft, hop_length, win_length]."""
    return Discriminator([ResolutionDiscriminator(*resolution, channels) for resolution in resolutions])
