"""From a model's name or folder to a model that speaks."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from apnet2_tts_plugin import store
from apnet2_tts_plugin.checkpoints import CONFIG_NAME
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.model import Apnet2


class ModelError(ValueError):
    """A model cannot be loaded, or not to this device; the message says why in one line."""


def load_model(name_or_folder: str | os.PathLike, device: str = "cpu") -> Apnet2:
    """Load a model to speak with; its discriminators are left out.

    Args:
        name_or_folder: A name that `store` knows, or a folder with `config.json` and weights.
        device: A device that torch knows, such as "cpu", "cuda" or "cuda:1".

    Raises:
        ModelError: if the configuration or the device cannot be used.
        StoreError: if there is no such model.
        CheckpointError: if the weights cannot be read or do not fit the configuration.
    """
    folder = store.resolve(name_or_folder)
    weights = store.weights_file(folder)
    place = _usable_device(device)
    config = read_config(folder / CONFIG_NAME)
    try:
        model = Apnet2(config)
    except (RuntimeError, TypeError) as error:  # sizes of the right kind that torch cannot make, such as 10**9
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{folder / CONFIG_NAME}: no model can be made of it ({reason})") from error
    model.load_checkpoint(config, weights, eval=True)
    return model.to(place)


def read_config(path: Path) -> Apnet2Config:
    """The configuration in a JSON file.

    Raises:
        ModelError: if it cannot be read, or a value in it makes no sense.
    """
    config = Apnet2Config()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # coqpit warns and takes the default for a value of wrong type
            config.load_json(path)
    except (OSError, ValueError, TypeError, AttributeError, UserWarning) as error:
        raise ModelError(f"{path}: not a usable configuration ({' '.join(str(error).split())})") from error
    return config


def overview() -> Iterator[str]:
    """One line for each named model: its name, origin, size, sample rate and folder, or what is wrong with it."""
    for name, folder in store.names().items():
        origin = "bundled" if folder.parent == store.BUNDLED else "user"
        try:
            size = store.weights_file(folder).stat().st_size / 1e6
            facts = f"{size:7.1f} MB  {read_config(folder / CONFIG_NAME).audio.sample_rate:6d} Hz  {folder}"
        except ValueError as error:
            facts = f"broken: {error}"
        yield f"{name:16}  {origin:7}  {facts}"


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"device {name!r} cannot be used here ({reason}); 'cpu' always can") from error
    return device
