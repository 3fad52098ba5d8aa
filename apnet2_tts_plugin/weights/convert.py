"""From one kind of file to another: exports of checkpoints, and imports of the official files."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apnet2_tts_plugin.config import PATHS, Apnet2Config
from apnet2_tts_plugin.errors import CheckpointError, one_line
from apnet2_tts_plugin.files import fill_folder, read_json, write_atomically
from apnet2_tts_plugin.network.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.weights import official
from apnet2_tts_plugin.weights.checkpoints import (
    NETWORK_NAMES,
    generator_state,
    load_strictly,
    named_tensors,
    read_tensors,
    save_config,
    save_weights,
)
from apnet2_tts_plugin.weights.find import CONFIG_NAME


def export(checkpoint_path: str | os.PathLike[Any], out: str | os.PathLike[Any], half: bool = False) -> list[Path]:
    """Turn a Trainer checkpoint into a folder to use and to give away: `config.json` and `model.safetensors`.

    Args:
        checkpoint_path: A `.pth` file of the Trainer; it holds the configuration too.
        out: Folder to write to, new or empty.
        half: Store float16, half the size, read back as float32.

    Returns:
        The files written. The configuration in them names no folder of this machine.

    Raises:
        CheckpointError: if the file cannot be read, or is not APNet2's.
        ConfigError: if its configuration makes no sense.
        OutputError: if there is something in `out` already, such as the run that the checkpoint is of.
    """
    content = read_tensors(checkpoint_path)
    settings = content.get("config")
    if not isinstance(settings, dict) or settings.get("model") != "apnet2":
        raise CheckpointError(f"{checkpoint_path}: no configuration of APNet2 in it, expected a Trainer checkpoint")
    config = Apnet2Config().deserialize(settings)
    for name in PATHS:
        config[name] = getattr(Apnet2Config, name)
    generator = Generator(config)
    load_strictly(generator, generator_state(content, checkpoint_path), checkpoint_path)
    with fill_folder(out, last=CONFIG_NAME) as folder:
        save_config(config, folder)
        save_weights(generator, folder, torch.float16 if half else torch.float32)
    return _files(out)


def import_official(
    generator_path: str | os.PathLike[Any],
    out: str | os.PathLike[Any],
    discriminators_path: str | os.PathLike[Any] | None = None,
    config_path: str | os.PathLike[Any] | None = None,
) -> list[Path]:
    """Turn official APNet2 or FreeV files into a folder that coqui-tts can use.

    Args:
        generator_path: Official `g_XXXXXXXX`.
        out: Folder to write `config.json` and `model.safetensors` to, new or empty.
        discriminators_path: Official `do_XXXXXXXX`; with it, `checkpoint_<steps>.pth` to fine-tune from is written too.
        config_path: Official `config.json` with the audio settings; those of LJSpeech by default.

    Returns:
        The files written.

    Raises:
        CheckpointError: if a file cannot be read, a tensor is missing, unexpected or misshapen, or the settings in
            `config_path` make no sense; nothing is written.
        OutputError: if there is something in `out` already.
    """
    content = read_tensors(generator_path)
    state = official.rename_official(
        "generator", named_tensors(content, generator_path, "generator", official.OFFICIAL_FILE)
    )
    config = _official_config(state, generator_path, config_path)
    generator = Generator(config)
    load_strictly(generator, state, generator_path)
    checkpoint = None
    if discriminators_path is not None:
        checkpoint = _training_checkpoint(generator, config, discriminators_path)
    with fill_folder(out, last=CONFIG_NAME) as folder:
        save_config(config, folder)
        save_weights(generator, folder)
        if checkpoint is not None:
            path = folder / f"checkpoint_{checkpoint['step']}.pth"
            write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
    return _files(out)


def _files(folder: str | os.PathLike[Any]) -> list[Path]:
    """What a model folder holds: configuration and weights, then a checkpoint if there is one."""
    return sorted(Path(folder).iterdir(), key=lambda path: (path.suffix == ".pth", path.name))


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
    load_strictly(
        discriminators, official.official_state(content, discriminators_path, *NETWORK_NAMES[1:]), discriminators_path
    )
    steps = content.get("steps", 0)
    if not isinstance(steps, int) or steps < 0:
        raise CheckpointError(f"{discriminators_path}: steps is {steps!r}, expected a number of 0 or more")
    model = nn.ModuleDict({"generator": generator, **discriminators}).state_dict()
    return {"model": model, "config": config.to_dict(), "step": steps, "epoch": 0}


def _official_config(
    state: dict[str, Any], source: str | os.PathLike[Any], config_path: str | os.PathLike[Any] | None
) -> Apnet2Config:
    """The configuration of a renamed generator: sizes from its tensors, audio settings from the official file."""
    config = official.config_of(state, source)
    if config_path is None:
        return config
    try:
        settings = read_json(config_path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_path}: not a readable JSON file ({one_line(error)})") from error
    try:
        official.take_settings(config, settings)
        config.check_values()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config_path}: {one_line(error)}") from error
    return config
