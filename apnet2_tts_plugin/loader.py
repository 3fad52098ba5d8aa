"""From a model's name or folder to a model, and from files to configurations."""

import os
import re
import textwrap
import warnings
from pathlib import Path

import torch
from TTS.config import BaseAudioConfig, load_config
from TTS.utils.audio import AudioProcessor
from TTS.vocoder.configs.shared_configs import BaseVocoderConfig

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import ModelError, one_line
from apnet2_tts_plugin.files import read_json
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights


def load_model(name_or_folder: str | os.PathLike, device: str = "cpu", runtime: str | None = None) -> Apnet2:
    """Load a model to vocode with; its discriminators are left out.

    Args:
        name_or_folder: A name that `store` knows, or a folder with `config.json` and weights.
        device: "cpu", "cuda", "cuda:1" or another device that torch has here; "auto" is CUDA if it is there, and the
            processor if not.
        runtime: How it computes, see `network.runtime.use_runtime`; by default as `APNET2_RUNTIME` in the environment
            or the configuration says, from its first use on.

    Raises:
        ModelError: if there is no such model, or the configuration or the device cannot be used.
        CheckpointError: if there are no weights, or they cannot be read or do not fit the configuration.
        ConfigError: if there is no such runtime, or it cannot be used on the device.

    Example:

        >>> model = load_model("apnet2")
        >>> model.copy_synthesis(torch.zeros(22050), sample_rate=22050).shape
        torch.Size([22050])
    """
    folder = store.resolve(name_or_folder)
    weights = find_weights(folder)
    place = usable_device(device)
    config = read_config(folder / CONFIG_NAME)
    try:
        model = Apnet2(config)
    except (RuntimeError, TypeError) as error:  # sizes of the right kind that torch cannot make, such as 10**9
        raise ModelError(f"{folder / CONFIG_NAME}: no model can be made of it ({one_line(error)})") from error
    model.load_checkpoint(config, weights, eval=True)
    model.to(place)
    if runtime is not None:
        model.use_runtime(runtime)
    return model


def load_with_runtime(words: str, device: str = "cpu") -> Apnet2:
    """`load_model` of a name or folder, or of one with a runtime behind it, as in "apnet2@bfloat16".

    Raises:
        Apnet2Error: as `load_model`.
    """
    name, at, runtime = words.rpartition("@")
    if not at or Path(words).exists():
        return load_model(words, device)
    return load_model(name, device, runtime)


def read_config(path: Path) -> Apnet2Config:
    """The configuration in a JSON file.

    Raises:
        ModelError: if it cannot be read, or a value in it makes no sense.
    """
    config = Apnet2Config()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # coqpit warns and takes the default for a value of wrong type
            config.deserialize(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError, UserWarning) as error:
        raise ModelError(f"{path}: not a usable configuration ({one_line(error)})") from error
    return config


def read_acoustic_config(name_or_path: str | os.PathLike):
    """The configuration of one of coqui's acoustic or voice conversion models.

    Args:
        name_or_path: A `config.json`, the folder that has one, or the name of a model that coqui-tts has downloaded or
            that ships with the plugin.

    Raises:
        ModelError: if there is none that can be read, or it is a vocoder's.
    """
    downloaded = store.data_folder() / str(name_or_path).replace("/", "--")
    bundled = store.acoustic_files(str(name_or_path))
    path = bundled[1] if bundled else downloaded if downloaded.is_dir() else Path(name_or_path)
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"{name_or_path}: neither a {CONFIG_NAME} nor a model that coqui-tts has downloaded")
    try:
        with warnings.catch_warnings():
            # coqpit takes all defaults of a section with one value of the wrong type in it
            warnings.filterwarnings("error", category=UserWarning, module="coqpit")
            config = load_config(path)
    except Exception as error:  # coqui-tts raises almost anything
        raise ModelError(
            f"{path}: not a configuration of coqui-tts ({type(error).__name__}: {one_line(error)})"
        ) from error
    if isinstance(config, BaseVocoderConfig) or not getattr(config, "audio", None):
        raise ModelError(f"{path}: the configuration of a {config.model}, expected an acoustic model's")
    return config


def read_vocoder_config(name_or_path: str | os.PathLike) -> Apnet2Config:
    """The configuration of an APNet2: a name that `store` knows, a folder with a `config.json`, or such a file.

    Raises:
        ModelError: if it cannot be used, or there is no such model.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = store.resolve(name_or_path) / CONFIG_NAME
    elif not store.is_config(path):
        raise ModelError(f'{path}: not the configuration of an APNet2, it does not say "model": "apnet2"')
    return read_config(path)


def audio_processor(tts_config) -> AudioProcessor | None:
    """The audio processor that an acoustic model of this configuration makes for itself, if it does.

    Raises:
        ModelError: if it cannot be made.
    """
    if not isinstance(tts_config.audio, BaseAudioConfig):
        return None
    try:
        ap = AudioProcessor(tts_config.audio)
    except Exception as error:  # as it reads a file of statistics, almost anything
        raise ModelError(
            f"the audio settings of {tts_config.model} cannot work ({type(error).__name__}: {one_line(error)})"
        ) from error
    for name in ("hop_length", "win_length"):
        if getattr(ap, name) < 2:
            raise ModelError(f"audio.{name} of {tts_config.model}: {getattr(ap, name)}, expected at least 2")
    return ap


def usable_device(name: str) -> torch.device:
    """The device of this name, see `load_model`.

    Raises:
        ModelError: if there is none, or it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = textwrap.shorten(re.split("[.:] ", str(error))[0], 80, placeholder=" ...")  # torch goes on for pages
        expected = "expected auto, cpu, cuda or cuda:N"
        raise ModelError(f"device {name!r} cannot be used here, {expected} ({reason})") from error
    return device
