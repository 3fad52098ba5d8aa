"""Tensors in files: checkpoints of the Trainer and safetensors, never a pickle that could run code."""

import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import CheckpointError, DamagedError, one_line
from apnet2_tts_plugin.files import write_atomically, write_text
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.weights.find import CONFIG_NAME, WEIGHTS_NAME

NETWORK_NAMES = ("generator", "mpd", "mrd")  # and the beginnings of their tensors' names in a checkpoint


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
        # Mapped, no more of a large file is read than is used; files of old cannot be.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors, or is damaged") from error
    except Exception as error:  # damaged files make the readers raise almost anything
        raise CheckpointError(f"{path}: not a readable file of weights ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def verify(path: str | os.PathLike[Any]) -> None:
    """Read all of a torch file and compare it with its checksums, which `torch.load` ignores.

    Raises:
        DamagedError: if the file is cut short or damaged, or none that `torch.save` writes nowadays.
        CheckpointError: if it cannot be read, for a reason that is not in it.
    """
    fault = None
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                fault = "no data.pkl in it"
            elif damaged := archive.testzip():
                fault = f"{damaged!r} in it fails its checksum"
    except Exception as error:  # as in read_tensors
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise CheckpointError(f"{path}: cannot be read ({one_line(error)})") from error
        fault = one_line(error)  # EINVAL is what seeking by a damaged directory ends in
    if fault:
        raise DamagedError(f"{path}: not a whole torch file ({fault}); use another copy, or an earlier checkpoint")


def load_strictly(network: nn.Module, state: dict[str, Any], source: str | os.PathLike[Any]) -> None:
    """Load `state` into `network` if names and shapes agree; otherwise nothing is changed.

    Raises:
        CheckpointError: naming the first few missing, unexpected and misshapen tensors of `source`.
    """
    check_fit(network, state, source)
    network.load_state_dict(state)


def check_fit(network: nn.Module, state: dict[str, Any], source: str | os.PathLike[Any], advice: str = "") -> None:
    """Compare names and shapes, as `load_strictly` does, without loading; `advice` ends the message."""
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unexpected" for name in state if name not in expected]
    for name in (name for name in expected if name in state):
        found, shape = _shape(state[name]), tuple(expected[name].shape)
        if found != shape:
            faults.append(f"{name} is {found}, expected {shape}")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        advice = f" ({advice})" if advice else ""
        raise CheckpointError(f"{source}: the weights do not fit: {'; '.join(faults[:5])}{more}{advice}")


def _shape(value: Any) -> tuple[int, ...] | str:
    """The shape of a tensor that can be loaded, or else what `value` is."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        return f"a tensor of {value.dtype}, {value.layout}, on {value.device}"
    return tuple(value.shape)


def generator_state(checkpoint: dict[str, Any], source: str | os.PathLike[Any]) -> dict[str, Any]:
    """The generator's tensors in a Trainer checkpoint, under their names in the generator."""
    prefix = "generator."
    state = model_state(checkpoint, source)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def model_state(checkpoint: dict[str, Any], source: str | os.PathLike[Any]) -> dict[str, Any]:
    """The tensors of all networks in a Trainer checkpoint."""
    return named_tensors(checkpoint, source, "model", "a checkpoint of coqui's Trainer")


def named_tensors(content: dict[str, Any], source: str | os.PathLike[Any], key: str, expected: str) -> dict[str, Any]:
    """The named tensors at `key` in a file that should be `expected`."""
    state = content.get(key)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{source}: no {key!r} in it, expected {expected}")
    return state


def save_weights(generator: Generator, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `model.safetensors` with the generator's tensors into `folder`, whole or not at all."""
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in generator.state_dict().items()}
    path = folder / WEIGHTS_NAME
    write_atomically(path, lambda temporary: save_file(state, temporary, {"format": "pt"}))
    return path


def save_config(config: Apnet2Config, folder: Path) -> Path:
    """Write `config.json` into `folder`, whole or not at all."""
    path = folder / CONFIG_NAME
    write_text(path, config.to_json())
    return path
