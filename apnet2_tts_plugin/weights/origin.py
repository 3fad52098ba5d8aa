"""What weights were trained as, where their shapes do not say it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from apnet2_tts_plugin.config import ANALYSIS, Apnet2Config
from apnet2_tts_plugin.errors import Apnet2Error
from apnet2_tts_plugin.files import read_json
from apnet2_tts_plugin.network.convnext import look_aheads
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.checkpoints import read_tensors
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights
from apnet2_tts_plugin.weights.official import take_settings


class Setting(NamedTuple):
    """A setting as it is written, and what it means, which may be written in another way too."""

    value: Any
    meaning: Any


def other_settings(config: Apnet2Config, path: str | os.PathLike[Any]) -> list[str]:
    """Settings that differ from those that weights were trained with, though their shapes may be the same.

    Args:
        config: The configuration of the model that is to take the weights.
        path: The weights, as for `restore`. Their own configuration is in a checkpoint of the Trainer, or else in
            `config.json` beside it, which may be an official one; files that have neither are not compared.

    Returns:
        A phrase for each, such as "audio.hop_length 240 (now 256)".
    """
    trained = _configuration(find_weights(store.path_of(path), checkpoint_first=True))
    if trained is None:
        return []
    now, then = _settings(config, trained), _settings(trained, config)
    changed = [name for name in now if now[name].meaning != then[name].meaning]
    return [f"{name} {then[name].value} (now {now[name].value})" for name in changed]


def _settings(config: Apnet2Config, other: Apnet2Config) -> dict[str, Setting]:
    """What is compared: all that matters to a part of the network that both have."""
    audio = config.audio
    found = {f"audio.{name}": Setting(audio[name], audio[name]) for name in ANALYSIS}
    if audio.mel_fmax is None:
        found["audio.mel_fmax"] = Setting(None, audio.sample_rate / 2)
    predictors = ["amplitude"]
    if config.predicts_mel and other.predicts_mel:
        predictors.append("mel")
    if config.phase_start == other.phase_start:
        predictors.append("phase")
        if config.phase_start == "pitch":
            predictors.append("pitch")
            found |= {name: Setting(config[name], config[name]) for name in ("f0_min", "f0_max")}
    return found | {f"{name}.look_ahead": _look_ahead(config, name) for name in predictors}


def _look_ahead(config: Apnet2Config, name: str) -> Setting:
    """-1, and any number beyond the kernels' own, mean the same."""
    sizes = config[name]
    kernel_sizes = [sizes.kernel_size] * sizes.blocks
    if name != "amplitude" or config.amplitude_start != "pseudo_inverse":
        kernel_sizes = [sizes.input_kernel_size, *kernel_sizes, sizes.output_kernel_size]
    return Setting(sizes.look_ahead, sum(look_aheads(kernel_sizes, sizes.look_ahead)))


def _configuration(weights: Path) -> Apnet2Config | None:
    beside = weights.with_name(CONFIG_NAME)
    found, config = None if weights.suffix == ".safetensors" else read_tensors(weights).get("config"), Apnet2Config()
    try:
        if found is None:
            found = read_json(beside)
        if found.get("model") == config.model:
            config.deserialize(found)
        else:
            take_settings(config, found)
    except (OSError, ValueError, TypeError, AttributeError, Apnet2Error):  # none, or another program's
        return None
    return config
