"""Weights in and out: checkpoints of the Trainer, safetensors, and files that must be refused."""

import warnings
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from weight_files import is_same, put, refused, remove, save, save_checkpoint, snapshot, training_model

from apnet2_tts_plugin.errors import CheckpointError
from apnet2_tts_plugin.weights import checkpoints


class Trap:
    """When it is unpickled, a file appears."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trained():
    return training_model(1)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_not_run(zipped, tmp_path, trained):
    trap, bad, out = tmp_path / "trapped", tmp_path / "bad.pth", tmp_path / "out"
    content = {"generator": {"w": Trap(trap)}, "mpd": Trap(trap), "model": Trap(trap)}
    torch.save(content, bad, _use_new_zipfile_serialization=zipped)
    refused("bad.pth: refused", out, bad)
    refused("bad.pth: refused", out, save(tiny.official_generator(), tmp_path / "g_1"), discriminators_path=bad)
    with pytest.raises(CheckpointError, match=r"bad\.pth: refused"):
        trained.load_checkpoint(trained.config, bad)
    assert not trap.exists()
    torch.load(bad, weights_only=False)
    assert trap.exists(), "the trap does not work, so the test shows nothing"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_files(kind, tmp_path):
    if kind == "safetensors":
        whole = checkpoints.save_weights(tiny.generator(), tmp_path)
    else:
        whole, state = tmp_path / "whole.pth", {"model": tiny.generator().state_dict()}
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    cut = tmp_path / f"cut{whole.suffix}"
    end = len(content)
    for size in [0, 1, 7, 100, 1000, *range(5000, end, end // 20), *range(end - 30, end)]:
        cut.write_bytes(content[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(CheckpointError, match=rf"/cut{whole.suffix}: [^\n]*\Z"):
                checkpoints.read_tensors(cut)
        if kind == "zip":
            with pytest.raises(CheckpointError, match=r"/cut\.pth: not a whole torch file \(.+\); use another"):
                checkpoints.verify(cut)


@pytest.mark.parametrize("eval", [True, False])
def test_trainer_checkpoint(eval, trained, tmp_path):
    """To use it, the generator alone; to go on with, everything."""
    path = save_checkpoint(trained, tmp_path / "best_model.pth")
    other = tiny.model(2).train()
    other.load_checkpoint(other.config, path, eval=eval)
    assert is_same(other.generator, trained.generator.state_dict())
    assert (other.mpd is None) == eval and other.training != eval
    assert eval or is_same(other, trained.state_dict())


@pytest.mark.parametrize("eval", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove("generator.phase.real_conv.bias"), r"phase\.real_conv\.bias is missing"),
        (put("generator.surprise", 3), r"surprise is unexpected"),
        (put("generator.phase.real_conv.bias", 3), r"phase\.real_conv\.bias is \(3,\), expected \(513,\)"),
        (put(5, 3), "no 'model' in it"),
    ],
)
def test_trainer_checkpoint_that_does_not_fit(change, reason, eval, trained, tmp_path):
    state = dict(trained.state_dict())
    change(state)
    path = save_checkpoint(trained, tmp_path / "checkpoint_5.pth", state)
    other = training_model(2)
    before = snapshot(other)
    with pytest.raises(CheckpointError, match=reason):
        other.load_checkpoint(other.config, path, eval=eval)
    assert is_same(other, before) and other.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_safetensors(dtype, trained, tmp_path):
    """They have no discriminators: to fine-tune from, those stay as they are."""
    path = checkpoints.save_weights(tiny.generator(), tmp_path, dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    state = {f"generator.{name}": tensor.to(dtype).float() for name, tensor in tiny.generator().state_dict().items()}
    expected = snapshot(trained) | state
    trained.load_checkpoint(trained.config, path)
    assert is_same(trained, expected) and trained.training
    assert {tensor.dtype for tensor in trained.state_dict().values()} == {torch.float32}
