"""What weights were trained as, where their shapes do not say it."""

import os
from pathlib import Path
from typing import Any

from apnet2_tts_plugin.config import ANALYSIS, Apnet2Config
from apnet2_tts_plugin.files import read_json
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.checkpoints import read_tensors
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights

AUDIO = tuple(("audio", name) for name in ANALYSIS)
F0_RANGE = (("f0_min",), ("f0_max",))


def other_settings(config: Apnet2Config, path: str | os.PathLike[Any]) -> list[str]:
    """Settings that differ from those that weights were trained with, though their shapes may be the same.

    Args:
        config: The configuration of the model that is to take the weights.
        path: The weights, as for `restore`. Their own configuration is in a checkpoint of the Trainer, or else in
            `config.json` beside it; files that have neither are not compared.

    Returns:
        A phrase for each, such as "audio.hop_length (256, these weights had 240)".
    """
    weights = find_weights(store.path_of(path), checkpoint_first=True)
    trained = _configuration(weights)
    if trained is None:
        return []
    default = Apnet2Config()
    own = [(keys, _value(keys, config)) for keys in _settings(config, trained)]
    theirs = [_value(keys, trained, _value(keys, default)) for keys, _ in own]
    pairs = zip(own, theirs, strict=True)
    return [f"{'.'.join(keys)} ({new}, these weights had {old})" for (keys, new), old in pairs if new != old]


def _settings(config: Apnet2Config, trained: dict[str, Any]) -> list[tuple[str, ...]]:
    """The names of settings to compare: those of what is restored."""
    predictors = ["amplitude"]
    if config.phase_start == trained.get("phase_start"):
        predictors += ["phase", "pitch"] if config.phase_start == "pitch" else ["phase"]
    f0_range = F0_RANGE if "pitch" in predictors else ()
    return [*AUDIO, *((name, "look_ahead") for name in predictors), *f0_range]


def _value(keys: tuple[str, ...], config: Any, default: Any = None) -> Any:
    for key in keys:
        try:
            config = config[key]
        except (KeyError, TypeError):
            return default
    return config


def _configuration(weights: Path) -> dict[str, Any] | None:
    beside = weights.with_name(CONFIG_NAME)
    config = None if weights.suffix == ".safetensors" else read_tensors(weights).get("config")
    if config is None and beside.is_file():
        try:
            config = read_json(beside)
        except (OSError, ValueError):
            return None
    return config if isinstance(config, dict) else None
