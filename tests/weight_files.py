"""Files of weights that tests write, what they spoil in them, and how an import refuses them."""

from pathlib import Path

import pytest
import torch

from apnet2_tts_plugin import checkpoints
from apnet2_tts_plugin.checkpoints import CheckpointError


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def remove(name):
    return lambda state: state.pop(name)


def put(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


def refused(reason: str, out: Path, generator: Path, **files) -> None:
    """The import fails with one line that has `reason` in it, and writes nothing."""
    with pytest.raises(CheckpointError) as error:
        checkpoints.import_official(generator, out, **files)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not out.exists()
