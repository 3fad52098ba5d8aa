"""Weights in and out: official files, Trainer checkpoints and safetensors, never a pickle that could run code."""

import json
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.generator import Generator

if TYPE_CHECKING:
    from apnet2_tts_plugin.model import Apnet2

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

# Official parameter names to ours. In the official code `norm2` and `convnext2` are the amplitude branch.
OFFICIAL_NAMES = {
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
OFFICIAL_PARTS = (
    (".dwconv.", ".depthwise."),
    (".pwconv1.", ".expand."),
    (".grn.", ".response_norm."),
    (".pwconv2.", ".project."),
    (".convs.", ".stack.convs."),
    (".conv_post.", ".stack.output_conv."),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)


class CheckpointError(ValueError):
    """A file of weights that cannot be used; the message is one line that says which file and why."""


def rename_official(network: str, state: dict[str, Tensor], freev: bool | None = None) -> dict[str, Tensor]:
    """The state dict of an official `network` ("generator", "mpd" or "mrd") under our names; unknown names stay.

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
        for pattern, replacement in OFFICIAL_NAMES[network]:
            new, found = re.subn("^" + pattern, replacement, new)
            if found:
                break
        for old_part, new_part in OFFICIAL_PARTS:
            new = new.replace(old_part, new_part)
        if freev:
            new = new.replace("amplitude.backbone.", "amplitude.")
        renamed[new] = tensor
    return renamed


def read_tensors(path: str | os.PathLike[Any]) -> dict[str, Any]:
    """What a safetensors file or a torch file holds; of the latter nothing but tensors and plain containers.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors, or is damaged") from error
    except Exception as error:  # damaged files make the readers raise almost anything
        raise CheckpointError(f"{path}: not a readable file of weights ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def load_strictly(network: nn.Module, state: dict[str, Any], source: str | os.PathLike[Any]) -> None:
    """Load `state` into `network` if names and shapes agree; otherwise nothing is changed.

    Raises:
        CheckpointError: naming the first few missing, unexpected and misshapen tensors of `source`.
    """
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unexpected" for name in state if name not in expected]
    for name in (name for name in expected if name in state):
        found = tuple(state[name].shape) if isinstance(state[name], Tensor) else type(state[name]).__name__
        if found != tuple(expected[name].shape):
            faults.append(f"{name} is {found}, expected {tuple(expected[name].shape)}")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{source}: the weights do not fit: {'; '.join(faults[:5])}{more}")
    network.load_state_dict(state)


def load_model(model: "Apnet2", path: str | os.PathLike[Any], generator_only: bool) -> None:
    """Load a Trainer checkpoint, or the generator alone from it or from safetensors, which hold nothing else.

    Raises:
        CheckpointError: if the file cannot be read or its tensors do not fit; nothing is changed then.
    """
    content = read_tensors(path)
    if Path(path).suffix == ".safetensors":
        load_strictly(model.generator, content, path)
    elif generator_only:
        load_strictly(model.generator, _generator_state(content, path), path)
    else:
        model.add_discriminators()
        load_strictly(model, _model_state(content, path), path)


def save_weights(generator: Generator, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `model.safetensors` with the generator's tensors into `folder`, whole or not at all."""
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in generator.state_dict().items()}
    path = folder / WEIGHTS_NAME
    write_atomically(path, lambda temporary: save_file(state, temporary, {"format": "pt"}))
    return path


def export(checkpoint_path: str | os.PathLike[Any], out: str | os.PathLike[Any], half: bool = False) -> list[Path]:
    """Turn a Trainer checkpoint into a folder to use and to give away: `config.json` and `model.safetensors`.

    Args:
        checkpoint_path: A `.pth` file of the Trainer; it holds the configuration too.
        out: Folder to write to; made if need be.
        half: Store float16, half the size, read back as float32.

    Returns:
        The files written. The configuration in them names no folder of this machine.

    Raises:
        CheckpointError: if the file cannot be read, or is not APNet2's.
        ConfigError: if its configuration makes no sense.
    """
    content = read_tensors(checkpoint_path)
    settings = content.get("config")
    if not isinstance(settings, dict) or settings.get("model") != "apnet2":
        raise CheckpointError(f"{checkpoint_path}: no configuration of APNet2 in it, expected a Trainer checkpoint")
    config = Apnet2Config().deserialize(settings)
    config.output_path, config.data_path = Apnet2Config.output_path, Apnet2Config.data_path
    generator = Generator(config)
    load_strictly(generator, _generator_state(content, checkpoint_path), checkpoint_path)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return [save_config(config, out), save_weights(generator, out, torch.float16 if half else torch.float32)]


def _generator_state(checkpoint: dict[str, Any], source: str | os.PathLike[Any]) -> dict[str, Any]:
    """The generator's tensors in a Trainer checkpoint."""
    prefix = "generator."
    state = _model_state(checkpoint, source)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _model_state(checkpoint: dict[str, Any], source: str | os.PathLike[Any]) -> dict[str, Any]:
    if not isinstance(checkpoint.get("model"), dict):
        raise CheckpointError(f"{source}: no 'model' in it, expected a checkpoint of coqui's Trainer")
    return checkpoint["model"]


def import_official(
    generator_path: str | os.PathLike[Any],
    out: str | os.PathLike[Any],
    discriminators_path: str | os.PathLike[Any] | None = None,
    config_path: str | os.PathLike[Any] | None = None,
) -> list[Path]:
    """Turn official APNet2 or FreeV files into a folder that coqui-tts can use.

    Args:
        generator_path: Official `g_XXXXXXXX`.
        out: Folder to write `config.json` and `model.safetensors` to; made if need be.
        discriminators_path: Official `do_XXXXXXXX`; with it, `checkpoint_<steps>.pth` to fine-tune from is written too.
        config_path: Official `config.json` with the audio settings; those of LJSpeech by default.

    Returns:
        The files written.

    Raises:
        CheckpointError: if a file cannot be read, a tensor is missing, unexpected or misshapen, or the settings in
            `config_path` make no sense; nothing is written.
    """
    official = read_tensors(generator_path)
    state = rename_official("generator", _network_state(official, generator_path, "generator"))
    config = _official_config(state, generator_path, config_path)
    generator = Generator(config)
    load_strictly(generator, state, generator_path)
    checkpoint = None
    if discriminators_path is not None:
        checkpoint = _training_checkpoint(generator, config, discriminators_path)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = [save_config(config, out), save_weights(generator, out)]
    if checkpoint is not None:
        path = out / f"checkpoint_{checkpoint['step']}.pth"
        write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
        written.append(path)
    return written


def _training_checkpoint(
    generator: Generator, config: Apnet2Config, discriminators_path: str | os.PathLike[Any]
) -> dict[str, Any]:
    """What the Trainer's `restore_path` takes: `generator` and the official discriminators."""
    official = read_tensors(discriminators_path)
    networks = {
        "mpd": multi_period(config.mpd_periods, config.mpd_channels),
        "mrd": multi_resolution(config.mrd_resolutions, config.mrd_channels),
    }
    for name, network in networks.items():
        state = rename_official(name, _network_state(official, discriminators_path, name))
        load_strictly(network, state, discriminators_path)
    steps = official.get("steps", 0)
    if not isinstance(steps, int) or steps < 0:
        raise CheckpointError(f"{discriminators_path}: steps is {steps!r}, expected a number of 0 or more")
    model = nn.ModuleDict({"generator": generator, **networks}).state_dict()
    return {"model": model, "config": config.to_dict(), "step": steps, "epoch": 0}


def _network_state(official: dict[str, Any], source: str | os.PathLike[Any], network: str) -> dict[str, Any]:
    state = official.get(network)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{source}: no {network!r} in it, expected an official APNet2 file")
    return state


def _official_config(
    state: dict[str, Tensor], source: str | os.PathLike[Any], config_path: str | os.PathLike[Any] | None
) -> Apnet2Config:
    """The configuration of a renamed generator: sizes from its tensors, audio settings from the official file."""

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
    config = Apnet2Config(
        amplitude_start="pseudo_inverse" if freev else "mel",
        amplitude=sizes("amplitude", None if freev else "output_conv"),
        phase=sizes("phase", "real_conv"),
    )
    if config_path is not None:
        _take_official_settings(config, config_path)
    return config


def _take_official_settings(config: Apnet2Config, path: str | os.PathLike[Any]) -> None:
    """Overwrite audio and training settings of `config` by those of the official `config.json` at `path`."""
    try:
        official = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({_first_line(error)})") from error
    try:
        config.audio.sample_rate = official["sampling_rate"]
        config.audio.fft_size = official["n_fft"]
        config.audio.hop_length = official["hop_size"]
        config.audio.win_length = official["win_size"]
        config.audio.num_mels = official["num_mels"]
        config.audio.mel_fmin = float(official["fmin"])
        config.audio.mel_fmax = None if official["fmax"] is None else float(official["fmax"])
        config.seq_len = official.get("segment_size", config.seq_len)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: no usable {_first_line(error)}, expected an official APNet2 config.json"
        raise CheckpointError(msg) from error
    try:
        config.check_values()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from error


def save_config(config: Apnet2Config, folder: Path) -> Path:
    """Write `config.json` into `folder`, whole or not at all."""
    path = folder / CONFIG_NAME
    write_atomically(path, lambda temporary: temporary.write_text(config.to_json(), encoding="utf-8"))
    return path


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary file beside `path`, then rename it to `path`; on failure nothing is left."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
