"""Weights in and out: official files, Trainer checkpoints and safetensors, never a pickle that could run code."""

import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apnet2_tts_plugin import official
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.generator import Generator
from apnet2_tts_plugin.official import rename_official

if TYPE_CHECKING:
    from apnet2_tts_plugin.model import Apnet2

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
DISCRIMINATORS = ("mpd", "mrd")
OFFICIAL_FILE = "an official APNet2 file"


class CheckpointError(ValueError):
    """A file of weights that cannot be used; the message is one line that says which file and why."""


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


def verify(path: str | os.PathLike[Any]) -> None:
    """Read all of a torch file and compare it with its checksums, which `torch.load` ignores.

    Raises:
        CheckpointError: if the file is missing, cut short or damaged, or none that `torch.save` writes nowadays.
    """
    fault = None
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                fault = "no data.pkl in it"
            elif damaged := archive.testzip():
                fault = f"{damaged!r} in it fails its checksum"
    except Exception as error:  # as in read_tensors
        fault = _first_line(error)
    if fault:
        raise CheckpointError(f"{path}: not a whole torch file ({fault}); use another copy, or an earlier checkpoint")


def load_strictly(network: nn.Module, state: dict[str, Any], source: str | os.PathLike[Any]) -> None:
    """Load `state` into `network` if names and shapes agree; otherwise nothing is changed.

    Raises:
        CheckpointError: naming the first few missing, unexpected and misshapen tensors of `source`.
    """
    _check_fit(network, state, source)
    network.load_state_dict(state)


def _check_fit(network: nn.Module, state: dict[str, Any], source: str | os.PathLike[Any], advice: str = "") -> None:
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


def restore(model: "Apnet2", path: str | os.PathLike[Any]) -> str:
    """Load weights to fine-tune from: the generator, and the discriminators where the source has them.

    Args:
        model: The model to train; its discriminators are made, unless they are there.
        path: One of

            - a checkpoint of the Trainer (`.pth`), with or without discriminators;
            - `model.safetensors`, the generator alone;
            - an official generator `g_XXXXXXXX`, beside which `do_XXXXXXXX` has the discriminators, if it is there;
            - a folder: the only `.pth` file in it, or else its `model.safetensors`.

    Returns:
        What was restored, as a phrase for the log.

    Raises:
        CheckpointError: if a file cannot be read, is damaged, or does not fit; nothing is loaded then.
    """
    path = _file_to_restore(Path(path))
    parts = _parts_to_restore(path)
    model.add_discriminators()
    targets = [nn.ModuleDict({name: getattr(model, name) for name in part.networks}) for part in parts]
    for target, part in zip(targets, parts, strict=True):
        _check_fit(target, part.state, part.source, part.advice)
    for target, part in zip(targets, parts, strict=True):
        target.load_state_dict(part.state)
    if len(parts) > 1:
        return f"generator and discriminators of {' and '.join(dict.fromkeys(part.source.name for part in parts))}"
    return f"generator of {path.name}; the discriminators start anew"


class _Part(NamedTuple):
    """Tensors to restore, named as in the model, of one or more of its networks."""

    networks: tuple[str, ...]
    state: dict[str, Any]
    source: Path
    advice: str


def _generator_part(state: dict[str, Any], source: Path) -> _Part:
    advice = "set amplitude, phase, amplitude_start, input and audio as in the configuration of these weights"
    return _Part(("generator",), state, source, advice)


def _discriminators_part(state: dict[str, Any], source: Path, without: str) -> _Part:
    """`without` says how to restore the generator alone."""
    advice = f"set mpd_periods, mpd_channels, mrd_resolutions and mrd_channels as in its configuration, or {without}"
    return _Part(DISCRIMINATORS, state, source, advice)


def _file_to_restore(path: Path) -> Path:
    """`path`, or the file to take in the folder `path`."""
    if not path.is_dir():
        return path
    checkpoints = sorted(path.glob("*.pth"))
    if len(checkpoints) == 1:
        return checkpoints[0]
    for preferred in (path / WEIGHTS_NAME, path / "best_model.pth"):
        if preferred.is_file():
            return preferred
    found = ", ".join(file.name for file in checkpoints) or "none"
    raise CheckpointError(
        f"{path}: expected one .pth file, {WEIGHTS_NAME} or best_model.pth in it, found {found}; name the file to use"
    )


def _parts_to_restore(path: Path) -> list[_Part]:
    """The generator, and the discriminators if there are any."""
    content = _read_undamaged(path)
    if path.suffix == ".safetensors":
        return [_generator_part({f"generator.{name}": tensor for name, tensor in content.items()}, path)]
    if "model" in content:
        return _trainer_parts(_model_state(content, path), path)
    if "generator" in content:
        return _official_parts(content, path)
    if "mpd" in content:
        msg = (
            f"{path}: holds official discriminators alone; name the generator's file, g_XXXXXXXX, which finds this one"
        )
        raise CheckpointError(msg)
    msg = f"{path}: no 'model' and no 'generator' in it, expected a checkpoint of coqui's Trainer or {OFFICIAL_FILE}"
    raise CheckpointError(msg)


def _trainer_parts(state: dict[str, Any], path: Path) -> list[_Part]:
    prefixes = tuple(f"{name}." for name in DISCRIMINATORS)
    discriminators = {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
    parts = [_generator_part({name: state[name] for name in state if name not in discriminators}, path)]
    if discriminators:
        parts.append(
            _discriminators_part(discriminators, path, "run `apnet2 export` on it and restore what that writes")
        )
    return parts


def _official_parts(content: dict[str, Any], path: Path) -> list[_Part]:
    parts = [_generator_part(_official_state(content, path, "generator"), path)]
    companion = path.with_name(re.sub(r"^g_(?=\d+$)", "do_", path.name))
    if companion != path and companion.is_file():
        state = _official_state(_read_undamaged(companion), companion, *DISCRIMINATORS)
        parts.append(_discriminators_part(state, companion, "move it away"))
    return parts


def _read_undamaged(path: Path) -> dict[str, Any]:
    content = read_tensors(path)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"
    if zipped:  # the others, safetensors and torch files of old, have no checksums
        verify(path)
    return content


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
    for name in ("output_path", "data_path", "feature_path"):
        config[name] = getattr(Apnet2Config, name)
    generator = Generator(config)
    load_strictly(generator, _generator_state(content, checkpoint_path), checkpoint_path)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return [save_config(config, out), save_weights(generator, out, torch.float16 if half else torch.float32)]


def _generator_state(checkpoint: dict[str, Any], source: str | os.PathLike[Any]) -> dict[str, Any]:
    """The generator's tensors in a Trainer checkpoint, under their names in the generator."""
    prefix = "generator."
    state = _model_state(checkpoint, source)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _model_state(checkpoint: dict[str, Any], source: str | os.PathLike[Any]) -> dict[str, Any]:
    return _tensors(checkpoint, source, "model", "a checkpoint of coqui's Trainer")


def _official_state(content: dict[str, Any], source: str | os.PathLike[Any], *networks: str) -> dict[str, Tensor]:
    """The tensors of official networks under their names in the model."""
    state = {}
    for network in networks:
        renamed = rename_official(network, _tensors(content, source, network, OFFICIAL_FILE))
        state |= {f"{network}.{name}": tensor for name, tensor in renamed.items()}
    return state


def _tensors(content: dict[str, Any], source: str | os.PathLike[Any], key: str, expected: str) -> dict[str, Any]:
    """The named tensors at `key` in a file that should be `expected`."""
    state = content.get(key)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{source}: no {key!r} in it, expected {expected}")
    return state


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
    content = read_tensors(generator_path)
    state = rename_official("generator", _tensors(content, generator_path, "generator", OFFICIAL_FILE))
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
    content = read_tensors(discriminators_path)
    discriminators = nn.ModuleDict(
        {
            "mpd": multi_period(config.mpd_periods, config.mpd_channels),
            "mrd": multi_resolution(config.mrd_resolutions, config.mrd_channels),
        }
    )
    load_strictly(discriminators, _official_state(content, discriminators_path, *DISCRIMINATORS), discriminators_path)
    steps = content.get("steps", 0)
    if not isinstance(steps, int) or steps < 0:
        raise CheckpointError(f"{discriminators_path}: steps is {steps!r}, expected a number of 0 or more")
    model = nn.ModuleDict({"generator": generator, **discriminators}).state_dict()
    return {"model": model, "config": config.to_dict(), "step": steps, "epoch": 0}


def _official_config(
    state: dict[str, Any], source: str | os.PathLike[Any], config_path: str | os.PathLike[Any] | None
) -> Apnet2Config:
    """The configuration of a renamed generator: sizes from its tensors, audio settings from the official file."""
    try:
        config = official.config_of(state)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if config_path is None:
        return config
    try:
        settings = json.loads(Path(config_path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_path}: not a readable JSON file ({_first_line(error)})") from error
    try:
        official.take_settings(config, settings)
        config.check_values()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config_path}: {_first_line(error)}") from error
    return config


def save_config(config: Apnet2Config, folder: Path) -> Path:
    """Write `config.json` into `folder`, whole or not at all."""
    path = folder / CONFIG_NAME
    write_atomically(path, lambda temporary: temporary.write_text(config.to_json(), encoding="utf-8"))
    return path


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary file beside `path`, then rename it to `path`; on failure nothing is left.

    Not even a power cut leaves a part of the file at `path`. The temporary file's suffix is none that says a format.
    """
    # Whatever a killed process leaves must not look like a checkpoint: the Trainer's `*.pth` matches hidden files too.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
