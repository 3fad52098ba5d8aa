"""Plots for the training log."""

from typing import Any

import torch
from torch import Tensor

from apnet2_tts_plugin.network.spectra import LogMel


@torch.inference_mode()
def spectrogram_plot(log_mel: LogMel, target: Tensor, generated: Tensor) -> Any:  # a Figure
    """Log-mel spectrograms of two waveforms (N,) and their difference, as one Matplotlib figure."""
    from matplotlib.figure import Figure  # half a second that vocoding can do without

    mels = log_mel(torch.stack([target, generated])).cpu().numpy()
    low, high = mels[0].min(), mels[0].max()
    panels = (
        ("target", mels[0], low, high, "magma"),
        ("generated", mels[1], low, high, "magma"),
        ("generated - target", mels[1] - mels[0], -2.0, 2.0, "coolwarm"),
    )
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for axis, (title, image, vmin, vmax, colors) in zip(axes, panels, strict=True):
        shown = axis.imshow(image, origin="lower", aspect="auto", vmin=vmin, vmax=vmax, cmap=colors)
        axis.set(title=title, ylabel="mel band")
        figure.colorbar(shown, ax=axis)
    axes[-1].set_xlabel("frame")
    return figure
