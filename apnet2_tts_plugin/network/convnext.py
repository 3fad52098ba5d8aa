"""ConvNeXt v2 blocks over frames (arXiv 2301.00808), and the stack of them that all predictors share.

Parameter names are those of the official checkpoints after `weights.official.NAMES`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.config import PredictorConfig


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
        # Faster on a processor than vector_norm over this axis. Squares overflow in float16, and the root of 0 has no
        # gradient, hence float and clamp.
        squares = masked(x, mask).float().square().sum(dim=1, keepdim=True)
        norm = squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        response = (norm / (norm.mean(dim=2, keepdim=True) + 1e-6)).to(x.dtype)
        return torch.addcmul(self.beta, x, 1 + self.gamma * response)


class FrameConv(nn.Conv1d):
    """Convolution over frames that gives as many as it gets, each from `look_ahead` frames after it and others before.

    Shape:
        (B, T, in_channels) to (B, T, out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, look_ahead: int, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, groups=groups)
        self.look_ahead = look_ahead
        self.behind = kernel_size - 1 - look_ahead

    def forward(self, x: Tensor) -> Tensor:
        # Padded at the end as at the beginning, for which the library needs no copy; what is too much is left out.
        return self.inside(x, self.behind)[:, : x.shape[1]]

    def inside(self, x: Tensor, padding: int = 0) -> Tensor:
        """With `padding` frames of zeros at both ends: (B, T, in_channels) to (B, T - behind - look_ahead, ...)."""
        if self.groups == 1 and self.kernel_size[0] > 1:
            return F.conv1d(x.transpose(1, 2), self.weight, self.bias, padding=padding).transpose(1, 2)
        # An image of height 1 with its channels last, which is what x is in memory: nothing needs to be copied. For the
        # convolutions above, on a processor, it is the slower way.
        image = x.transpose(1, 2).unsqueeze(2)
        image = F.conv2d(image, self.weight.unsqueeze(2), self.bias, padding=(0, padding), groups=self.groups)
        return image.squeeze(2).transpose(1, 2)


class RowConv(FrameConv):
    """`FrameConv` as one matrix product, whose rows, on a processor, are to the last bit what they are among others.

    The library's convolution rounds otherwise for another number of frames.
    """

    def inside(self, x: Tensor, padding: int = 0) -> Tensor:
        rows = F.pad(x, (0, 0, padding, padding)).unfold(1, self.kernel_size[0], 1).flatten(2)
        return F.linear(rows, self.weight.flatten(1), self.bias)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt v2 block: depthwise convolution, LayerNorm, expansion, GELU, response norm, projection, residual.

    Shape:
        x (B, T, C), mask (B, T, 1) or None, to (B, T, C).
    """

    def __init__(self, sizes: PredictorConfig, look_ahead: int):
        super().__init__()
        channels, hidden_channels = sizes.channels, sizes.hidden_channels
        self.depthwise = FrameConv(channels, channels, sizes.kernel_size, look_ahead, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, hidden_channels)
        self.activation = nn.GELU()
        self.response_norm = GlobalResponseNorm(hidden_channels) if sizes.response_norm == "sentence" else None
        self.project = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return masked(self.mix(self.depthwise(x), mask) + x, mask)

    def mix(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """All that follows the depthwise convolution, but for the residual."""
        hidden = self.activation(self.expand(self.norm(hidden)))
        if self.response_norm is not None:
            hidden = self.response_norm(hidden, mask)
        return self.project(hidden)


class Backbone(nn.Module):
    """Input convolution, LayerNorm, ConvNeXt v2 blocks, LayerNorm: what all predictors share.

    Args:
        n_inputs: Channels of the input.
        sizes: Sizes of the predictor.
        input_conv: The kind of the first convolution.

    Shape:
        x (B, T, n_inputs), mask (B, T, 1) or None, to (B, T, channels).
    """

    def __init__(self, n_inputs: int, sizes: PredictorConfig, input_conv: type[FrameConv] = FrameConv):
        super().__init__()
        ahead = look_aheads(_kernel_sizes(sizes), sizes.look_ahead)
        self.input_conv = input_conv(n_inputs, sizes.channels, sizes.input_kernel_size, next(ahead))
        self.input_norm = nn.LayerNorm(sizes.channels, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(sizes, next(ahead)) for _ in range(sizes.blocks))
        self.output_norm = nn.LayerNorm(sizes.channels, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = masked(self.input_norm(self.input_conv(x.to(self.dtype))), mask)
        for block in self.blocks:
            x = block(x, mask)
        return masked(self.output_norm(x), mask)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights have and the input is converted to."""
        return self.input_norm.weight.dtype


def output_conv(sizes: PredictorConfig, n_outputs: int, kind: type[FrameConv] = FrameConv) -> FrameConv:
    """The convolution from a backbone to what is predicted."""
    *_, last = look_aheads(_kernel_sizes(sizes), sizes.look_ahead)
    return kind(sizes.channels, n_outputs, sizes.output_kernel_size, last)


def look_aheads(kernel_sizes: list[int], in_all: int) -> Iterator[int]:
    """Frames after its own that each convolution of a stack sees, `in_all` together; -1 centres all of them."""
    left = in_all if in_all >= 0 else sum(kernel_sizes)
    for kernel_size in kernel_sizes:
        ahead = min(kernel_size // 2, left)
        left -= ahead
        yield ahead


def _kernel_sizes(sizes: PredictorConfig) -> list[int]:
    return [sizes.input_kernel_size, *[sizes.kernel_size] * sizes.blocks, sizes.output_kernel_size]


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padded frames, as a convolution pads the end of a single run."""
    return x if mask is None else x * mask.to(x.dtype)
