"""The official APNet2 generator, transcribed plainly.

This is what ours is compared with, so nothing here is made faster: every module, product and transform is done when and
as often as there.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Spectra(NamedTuple):
    """Log-amplitude, phase, real and imaginary part, each (B, 513, T)."""

    log_amplitude: Tensor
    phase: Tensor
    real: Tensor
    imag: Tensor


class ResponseNorm(nn.Module):
    """Global response normalisation as the official code writes it, with gains that are not zero."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        self.beta = nn.Parameter(0.1 * torch.randn(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=1, keepdim=True)
        response = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * response) + self.beta + x


class Block(nn.Module):
    """ConvNeXt v2 block as the official code writes it. (B, C, T) to (B, C, T)."""

    def __init__(self, dim: int, intermediate_dim: int):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, intermediate_dim)
        self.act = nn.GELU()
        self.grn = ResponseNorm(intermediate_dim)
        self.pwconv2 = nn.Linear(intermediate_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.dwconv(x)
        x = x.transpose(1, 2)
        x = self.norm(x)
        x = self.pwconv1(x)
        x = self.act(x)
        x = self.grn(x)
        x = self.pwconv2(x)
        x = x.transpose(1, 2)
        return residual + x


class OfficialGenerator(nn.Module):
    """The official generator, module by module, under its parameter names. (B, 80, T) to (B, 1, (T - 1) * 256)."""

    def __init__(self, dim: int = 512, intermediate_dim: int = 1536, num_layers: int = 8):
        super().__init__()
        self.ASP_input_conv = nn.Conv1d(80, dim, 7, padding=3)
        self.PSP_input_conv = nn.Conv1d(80, dim, 7, padding=3)
        self.ASP_output_conv = nn.Conv1d(dim, 513, 7, padding=3)
        self.PSP_output_R_conv = nn.Conv1d(dim, 513, 7, padding=3)
        self.PSP_output_I_conv = nn.Conv1d(dim, 513, 7, padding=3)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.convnext = nn.ModuleList(Block(dim, intermediate_dim) for _ in range(num_layers))
        self.convnext2 = nn.ModuleList(Block(dim, intermediate_dim) for _ in range(num_layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.final_layer_norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, mel: Tensor) -> Tensor:
        return self.spectra_and_audio(mel)[1]

    def spectra_and_audio(self, mel: Tensor) -> tuple[Spectra, Tensor]:
        """All that the training step asks for; the official forward pass has the same work."""
        logamp = self.ASP_input_conv(mel)
        logamp = self.norm2(logamp.transpose(1, 2)).transpose(1, 2)
        for block in self.convnext2:
            logamp = block(logamp)
        logamp = self.final_layer_norm2(logamp.transpose(1, 2)).transpose(1, 2)
        logamp = self.ASP_output_conv(logamp)

        phase = self.PSP_input_conv(mel)
        phase = self.norm(phase.transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            phase = block(phase)
        phase = self.final_layer_norm(phase.transpose(1, 2)).transpose(1, 2)
        phase = torch.atan2(self.PSP_output_I_conv(phase), self.PSP_output_R_conv(phase))

        real = torch.exp(logamp) * torch.cos(phase)
        imag = torch.exp(logamp) * torch.sin(phase)
        window = torch.hann_window(1024, device=mel.device)
        audio = torch.istft(torch.complex(real, imag), 1024, 256, 1024, window, center=True)
        return Spectra(logamp, phase, real, imag), audio.unsqueeze(1)
