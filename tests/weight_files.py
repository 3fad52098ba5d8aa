"""Models to save and load, files of weights, what tests spoil in them, and how an import refuses them."""

from pathlib import Path

import pytest
import tiny
import torch

from apnet2_tts_plugin.errors import CheckpointError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights.convert import import_official


def training_model(seed: int, **changes) -> Apnet2:
    """The tiny model as in training, with its discriminators."""
    model = tiny.model(seed, **changes).train()
    model.add_discriminators()
    return model


def snapshot(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def is_same(network, state: dict[str, torch.Tensor]) -> bool:
    found = network.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in found)


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def save_checkpoint(model: Apnet2, path: Path, state=None) -> Path:
    """What the Trainer saves, as far as it matters; `state` in place of the model's own."""
    state = model.state_dict() if state is None else state
    return save({"config": model.config.to_dict(), "model": state, "optimizer": [{}, {}], "step": 5, "epoch": 1}, path)


def remove(name):
    return lambda state: state.pop(name)


def put(name, *shape, **options):
    return lambda state: state.update({name: torch.zeros(shape, **options)})


def refused(reason: str, out: Path, generator: Path, **files) -> None:
    """The import fails with one line that has `reason` in it, and writes nothing."""
    with pytest.raises(CheckpointError) as error:
        import_official(generator, out, **files)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not out.exists()
