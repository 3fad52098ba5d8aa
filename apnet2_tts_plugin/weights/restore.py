"""From a file of weights into a model: to use it, or to train from it."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from apnet2_tts_plugin.errors import CheckpointError
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.checkpoints import (
    NETWORK_NAMES,
    check_fit,
    generator_state,
    load_strictly,
    model_state,
    read_tensors,
    verify,
)
from apnet2_tts_plugin.weights.find import find_weights
from apnet2_tts_plugin.weights.official import OFFICIAL_FILE, official_state

DISCRIMINATORS = NETWORK_NAMES[1:]
LATENT_MEL = "generator.mel."  # the predictor of a mel from a latent, before what may be a vocoder of mels
PHASE = ("generator.phase.", "generator.pitch.")


def load_weights(model: nn.Module, path: str | os.PathLike[Any], generator_only: bool) -> None:
    """Load a Trainer checkpoint, or the generator alone from it or from safetensors, which hold nothing else.

    Args:
        model: A model with `generator` and, unless `generator_only`, its discriminators.
        path: The file.
        generator_only: Leave the discriminators out.

    Raises:
        CheckpointError: if the file cannot be read or its tensors do not fit; nothing is changed then.
    """
    content = read_tensors(path)
    if Path(path).suffix == ".safetensors":
        load_strictly(model.generator, content, path)
    elif generator_only:
        load_strictly(model.generator, generator_state(content, path), path)
    else:
        load_strictly(model, model_state(content, path), path)


def restore(model: nn.Module, path: str | os.PathLike[Any]) -> str:
    """Load weights to fine-tune from: the generator, and the discriminators where the source has them.

    A model that predicts a mel from a latent may start from one of mels; then that predictor starts anew, and so does
    the phase's if that predicts from the latent too.

    Args:
        model: The model to train, with its discriminators.
        path: One of

            - a checkpoint of the Trainer (`.pth`), with or without discriminators;
            - `model.safetensors`, the generator alone;
            - an official generator `g_XXXXXXXX`, beside which `do_XXXXXXXX` has the discriminators, if it is there;
            - a folder: the checkpoint in it, or else its `model.safetensors`, see `find_weights`;
            - the name of a model, see `store`.

    Returns:
        What was restored, as a phrase for the log.

    Raises:
        CheckpointError: if a file cannot be read, is damaged, or does not fit; nothing is loaded then.
    """
    path = find_weights(store.path_of(path), checkpoint_first=True)
    sources = _sources(path)
    targets = [nn.ModuleDict({name: model.get_submodule(name) for name in source.networks}) for source in sources]
    anew = _adopt_latent_mel(targets[0], sources[0], model.generator.phase_from_latent)
    for target, source in zip(targets, sources, strict=True):
        check_fit(target, source.state, source.path, source.advice)
    for target, source in zip(targets, sources, strict=True):
        target.load_state_dict(source.state)
    if len(sources) > 1:
        names = dict.fromkeys(source.path.name for source in sources)
        return f"generator and discriminators of {' and '.join(names)}"
    return f"generator of {path.name}; {anew}the discriminators start anew"


def _adopt_latent_mel(target: nn.Module, source: "_Source", phase_from_latent: bool) -> str:
    """Let a vocoder of mels do for one of latents, what predicts from which is left as it is; what to say of it."""
    parts = (LATENT_MEL, *PHASE) if phase_from_latent else (LATENT_MEL,)
    own = {name: tensor for name, tensor in target.state_dict().items() if name.startswith(parts)}
    is_vocoder_of_mels = not any(name.startswith(LATENT_MEL) for name in source.state)
    if not own or not is_vocoder_of_mels:
        return ""
    for name in [name for name in source.state if name.startswith(parts)]:
        del source.state[name]
    source.state.update(own)
    return "the predictors of mel and phase and " if phase_from_latent else "the predictor of the mel and "


class _Source(NamedTuple):
    """Tensors to restore, named as in the model, of one or more of its networks."""

    networks: tuple[str, ...]
    state: dict[str, Any]
    path: Path
    advice: str


def _generator_source(state: dict[str, Any], path: Path) -> _Source:
    settings = "audio, input_features, amplitude, amplitude_start, phase, phase_start and pitch"
    advice = f"set {settings} as in the configuration of these weights"
    return _Source(("generator",), state, path, advice)


def _discriminators_source(state: dict[str, Any], path: Path, without: str) -> _Source:
    """`without` says how to restore the generator alone."""
    advice = f"set mpd_periods, mpd_channels, mrd_resolutions and mrd_channels as in its configuration, or {without}"
    return _Source(DISCRIMINATORS, state, path, advice)


def _sources(path: Path) -> list[_Source]:
    """The generator, and the discriminators if there are any."""
    content = _read_undamaged(path)
    if path.suffix == ".safetensors":
        return [_generator_source({f"generator.{name}": tensor for name, tensor in content.items()}, path)]
    if "model" in content:
        return _trainer_sources(model_state(content, path), path)
    if "generator" in content:
        return _official_sources(content, path)
    if "mpd" in content:
        msg = (
            f"{path}: holds official discriminators alone; name the generator's file, g_XXXXXXXX, which finds this one"
        )
        raise CheckpointError(msg)
    msg = f"{path}: no 'model' and no 'generator' in it, expected a checkpoint of coqui's Trainer or {OFFICIAL_FILE}"
    raise CheckpointError(msg)


def _trainer_sources(state: dict[str, Any], path: Path) -> list[_Source]:
    prefixes = tuple(f"{name}." for name in DISCRIMINATORS)
    discriminators = {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
    sources = [_generator_source({name: state[name] for name in state if name not in discriminators}, path)]
    if discriminators:
        sources.append(
            _discriminators_source(discriminators, path, "run `apnet2 export` on it and restore what that writes")
        )
    return sources


def _official_sources(content: dict[str, Any], path: Path) -> list[_Source]:
    sources = [_generator_source(official_state(content, path, "generator"), path)]
    companion = path.with_name(re.sub(r"^g_(?=\d+$)", "do_", path.name))
    if companion != path and companion.is_file():
        state = official_state(_read_undamaged(companion), companion, *DISCRIMINATORS)
        sources.append(_discriminators_source(state, companion, "move it away"))
    return sources


def _read_undamaged(path: Path) -> dict[str, Any]:
    content = read_tensors(path)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"
    if zipped:  # the others, safetensors and torch files of old, have no checksums
        verify(path)
    return content
