"""What the official APNet2 and FreeV code calls things: tensors, sizes and settings by their names here."""

import os
import re
from typing import Any

import torch
from torch import Tensor

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.errors import CheckpointError, one_line
from apnet2_tts_plugin.weights.checkpoints import named_tensors

OFFICIAL_FILE = "an official APNet2 file"

# By network, the beginnings of official names and this code's. There `norm2` and `convnext2` are the amplitude branch.
NAMES = {
    "generator": (
        (r"ASP_input_conv\.", "amplitude.backbone.input_conv."),
        (r"ASP_output_conv\.", "amplitude.output_conv."),
        (r"norm2\.", "amplitude.backbone.input_norm."),
        (r"final_layer_norm2\.", "amplitude.backbone.output_norm."),
        (r"convnext2\.", "amplitude.backbone.blocks."),
        (r"PSP_input_conv\.", "phase.backbone.input_conv."),
        (r"PSP_output_R_conv\.", "phase.real_conv."),
        (r"PSP_output_I_conv\.", "phase.imag_conv."),
        (r"norm\.", "phase.backbone.input_norm."),
        (r"final_layer_norm\.", "phase.backbone.output_norm."),
        (r"convnext\.", "phase.backbone.blocks."),
    ),
    "mpd": ((r"discriminators\.", "parts."),),
    "mrd": ((r"discriminators\.", "parts."),),
}
# Pieces of names, in any network, and this code's.
PIECES = (
    (".dwconv.", ".depthwise."),
    (".pwconv1.", ".expand."),
    (".grn.", ".response_norm."),
    (".pwconv2.", ".project."),
    (".convs.", ".stack.convs."),
    (".conv_post.", ".stack.output_conv."),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)


def rename_official(network: str, state: dict[str, Tensor], freev: bool | None = None) -> dict[str, Tensor]:
    """The state dict of an official `network` ("generator", "mpd" or "mrd") by this code's names; unknown names stay.

    `freev` says whether a generator is FreeV's; None tells by its tensors. FreeV has no convolutions around its
    amplitude blocks, and so no backbone; it stores norms there that it never uses.
    """
    if freev is None:
        freev = network == "generator" and "ASP_input_conv.weight" not in state
    renamed = {}
    for name, tensor in state.items():
        if freev and re.match(r"(norm2|final_layer_norm2)\.", name):
            continue
        new = name
        for pattern, replacement in NAMES[network]:
            new, found = re.subn("^" + pattern, replacement, new)
            if found:
                break
        for old, replacement in PIECES:
            new = new.replace(old, replacement)
        if freev:
            new = new.replace("amplitude.backbone.", "amplitude.")
        renamed[new] = tensor
    return renamed


def official_state(content: dict[str, Any], source: str | os.PathLike[Any], *networks: str) -> dict[str, Tensor]:
    """The tensors of official networks under their names in the model."""
    state = {}
    for network in networks:
        renamed = rename_official(network, named_tensors(content, source, network, OFFICIAL_FILE))
        state |= {f"{network}.{name}": tensor for name, tensor in renamed.items()}
    return state


def config_of(state: dict[str, Any], source: str | os.PathLike[Any]) -> Apnet2Config:
    """The default configuration with the sizes of a renamed generator, read from `source`.

    Raises:
        CheckpointError: if a tensor that tells a size is missing or misshapen.
    """

    def shape(name: str, n_dims: int = 3) -> torch.Size:
        if not isinstance(state.get(name), Tensor) or state[name].dim() != n_dims:
            problem = "misshapen" if name in state else "missing"
            raise CheckpointError(f"{source}: {name} is {problem}, expected an official APNet2 or FreeV generator")
        return state[name].shape

    def sizes(branch: str, output: str | None) -> PredictorConfig:
        trunk = f"{branch}.backbone" if output else branch
        hidden_channels, channels = shape(f"{trunk}.blocks.0.expand.weight", 2)
        numbers = {name.split(".blocks.")[1].split(".")[0] for name in state if name.startswith(f"{trunk}.blocks.")}
        found = PredictorConfig(
            channels=channels,
            hidden_channels=hidden_channels,
            blocks=len(numbers),
            kernel_size=shape(f"{trunk}.blocks.0.depthwise.weight")[2],
        )
        if output:
            found.input_kernel_size = shape(f"{trunk}.input_conv.weight")[2]
            found.output_kernel_size = shape(f"{branch}.{output}.weight")[2]
        return found

    freev = "amplitude.backbone.input_conv.weight" not in state
    return Apnet2Config(
        amplitude_start="pseudo_inverse" if freev else "mel",
        amplitude=sizes("amplitude", None if freev else "output_conv"),
        phase=sizes("phase", "real_conv"),
    )


def take_settings(config: Apnet2Config, settings: Any) -> None:
    """Overwrite audio and training settings of `config` by those of an official `config.json`.

    Raises:
        ValueError: if one of them is missing or no number.
    """
    try:
        config.audio.sample_rate = settings["sampling_rate"]
        config.audio.fft_size = settings["n_fft"]
        config.audio.hop_length = settings["hop_size"]
        config.audio.win_length = settings["win_size"]
        config.audio.num_mels = settings["num_mels"]
        config.audio.mel_fmin = float(settings["fmin"])
        config.audio.mel_fmax = None if settings["fmax"] is None else float(settings["fmax"])
        config.seq_len = settings.get("segment_size", config.seq_len)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no usable {one_line(error)}, expected an official APNet2 config.json") from error
