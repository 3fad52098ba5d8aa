"""Layers to vocode with on a processor, whose weights lie in memory, and have the type, that it multiplies fastest.

They take the place of a trained predictor's layers, which can do nothing but vocode from then on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnet2_tts_plugin.network.convnext import ConvNeXtBlock, FrameConv

TILE = 32  # rows and columns: of other numbers of them, oneDNN takes up to three times as long


class PackedLinear(nn.Module):
    """A linear layer in the type of its weights, with GELU in the same pass if asked for.

    Args:
        weight: (n_outputs, n_inputs).
        bias: (n_outputs,).
        gelu: Whether GELU follows.

    Shape:
        (B, T, n_inputs) to (B, T, n_outputs).
    """

    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool = False):
        super().__init__()
        self.n_outputs, n_inputs = weight.shape
        self.missing = -n_inputs % TILE
        more = -self.n_outputs % TILE
        weight = F.pad(weight.detach(), (0, self.missing, 0, more))
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = F.pad(bias.detach(), (0, more))
        self.behind = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, self.missing)) if self.missing else x
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.behind)[..., : self.n_outputs]


class Int8Linear(nn.Module):
    """A linear layer of 8-bit weights, with a scale for each output, whose inputs are rounded to 8 bits as they come.

    Args:
        weight: (n_outputs, n_inputs).
        bias: (n_outputs,).
        gelu: Whether GELU follows.

    Shape:
        (B, T, n_inputs) to (B, T, n_outputs), in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool = False):
        super().__init__()
        weight = weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        zero_points = torch.zeros(len(weight), dtype=torch.long)
        quantized = torch.quantize_per_channel(weight, scales, zero_points, axis=0, dtype=torch.qint8)
        # Without VNNI the products of two numbers are added up in 16 bits, which those of 8 bits would exceed.
        self.reduce_range = not torch.cpu._is_vnni_supported()
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm" if self.reduce_range else "onednn"
        try:
            self.packed = torch.ops.quantized.linear_prepack(quantized, bias.detach().float())
        finally:
            torch.backends.quantized.engine = engine
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        x = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return F.gelu(x) if self.gelu else x


class PackedConv(FrameConv):
    """A convolution over frames, not depthwise, as a linear layer.

    Args:
        conv: The convolution.
        linear: The kind of linear layer.
    """

    def __init__(self, conv: FrameConv, linear: type[PackedLinear | Int8Linear]):
        nn.Module.__init__(self)  # FrameConv's own would make weights
        self.kernel_size, self.out_channels = conv.kernel_size, conv.out_channels
        self.look_ahead, self.behind = conv.look_ahead, conv.behind
        self.linear = linear(conv.weight.transpose(1, 2).flatten(1), conv.bias)

    def inside(self, x: Tensor, padding: int = 0) -> Tensor:
        rows = F.pad(x, (0, 0, padding, padding)).unfold(1, self.kernel_size[0], 1)
        return self.linear(rows.transpose(2, 3).flatten(2))


def pack(predictor: nn.Module, linear: type[PackedLinear | Int8Linear]) -> None:
    """Replace the linear layers and convolutions of a predictor, but for the depthwise ones."""
    for module in list(predictor.modules()):
        if isinstance(module, ConvNeXtBlock):
            module.expand = linear(module.expand.weight, module.expand.bias, gelu=True)
            module.activation = nn.Identity()
            module.project = linear(module.project.weight, module.project.bias)
        for name, child in list(module.named_children()):
            if isinstance(child, FrameConv) and child.groups == 1:
                setattr(module, name, PackedConv(child, linear))
