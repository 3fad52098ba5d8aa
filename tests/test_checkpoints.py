"""Weights in and out: checkpoints of the Trainer, safetensors, and files that must be refused."""

import warnings
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from weight_files import put, refused, remove, save

from apnet2_tts_plugin import checkpoints
from apnet2_tts_plugin.checkpoints import CheckpointError
from apnet2_tts_plugin.model import Apnet2


class Trap:
    """When it is unpickled, a file appears."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def tiny_model():
    """As in training, with its discriminators."""
    model = Apnet2(tiny.config())
    model.add_discriminators()
    return model


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def differences(a: torch.nn.Module, b: torch.nn.Module) -> list[str]:
    other = b.state_dict()
    return [name for name, tensor in a.state_dict().items() if not torch.equal(tensor, other[name])]


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_not_run(zipped, tmp_path, out, tiny_model):
    trap = tmp_path / "trapped"
    bad = tmp_path / "bad.pth"
    torch.save(
        {"generator": {"w": Trap(trap)}, "mpd": Trap(trap), "model": Trap(trap)},
        bad,
        _use_new_zipfile_serialization=zipped,
    )
    good = save(tiny.official_generator(), tmp_path / "g_1")
    refused("bad.pth: refused", out, bad)
    refused("bad.pth: refused", out, good, discriminators_path=bad)
    for eval in (True, False):
        with pytest.raises(CheckpointError, match=r"bad\.pth: refused"):
            tiny_model.load_checkpoint(tiny_model.config, bad, eval=eval)
    assert not trap.exists()
    torch.load(bad, weights_only=False)
    assert trap.exists(), "the trap does not work, so the test shows nothing"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_files(kind, tmp_path):
    whole = tmp_path / ("whole.safetensors" if kind == "safetensors" else "whole.pth")
    state = tiny.generator().state_dict()
    if kind == "safetensors":
        whole = checkpoints.save_weights(tiny.generator(), tmp_path)
    else:
        torch.save({"model": state}, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    cut = tmp_path / f"cut{whole.suffix}"
    for size in [0, 1, 7, 100, 1000, *range(5000, len(content), len(content) // 20), len(content) - 1]:
        cut.write_bytes(content[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(CheckpointError, match=f"cut{whole.suffix}: ") as error:
                checkpoints.read_tensors(cut)
        assert "\n" not in str(error.value)


def test_missing_file(tmp_path, tiny_model):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        tiny_model.load_checkpoint(tiny_model.config, tmp_path / "nowhere.pth")


def trainer_checkpoint(model: Apnet2) -> dict:
    """What the Trainer saves, as far as it matters."""
    return {"config": model.config.to_dict(), "model": model.state_dict(), "optimizer": [{}, {}], "step": 5, "epoch": 1}


def test_trainer_checkpoint_for_use(tmp_path, tiny_model):
    path = save(trainer_checkpoint(tiny_model), tmp_path / "best_model.pth")
    other = Apnet2(tiny.config())
    assert differences(other.generator, tiny_model.generator)
    other.load_checkpoint(other.config, path, eval=True)
    assert not differences(other.generator, tiny_model.generator)
    assert not other.training
    assert not [name for name, _ in other.named_parameters() if not name.startswith("generator.")]


def test_trainer_checkpoint_to_go_on(tmp_path, tiny_model):
    path = save(trainer_checkpoint(tiny_model), tmp_path / "checkpoint_5.pth")
    other = Apnet2(tiny.config())
    other.load_checkpoint(other.config, path)
    assert not differences(other, tiny_model)
    assert other.training


@pytest.mark.parametrize("eval", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove("generator.phase.real_conv.bias"), r"phase\.real_conv\.bias is missing"),
        (put("generator.surprise", 3), r"surprise is unexpected"),
        (put("generator.phase.real_conv.bias", 3), r"phase\.real_conv\.bias is \(3,\), expected \(513,\)"),
    ],
)
def test_trainer_checkpoint_that_does_not_fit(change, reason, eval, tmp_path, tiny_model):
    content = trainer_checkpoint(tiny_model)
    content["model"] = dict(content["model"])
    change(content["model"])
    path = save(content, tmp_path / "checkpoint_5.pth")
    other = Apnet2(tiny.config())
    other.add_discriminators()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=reason):
        other.load_checkpoint(other.config, path, eval=eval)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert other.mpd is not None and other.training


def test_checkpoint_of_something_else(tmp_path, tiny_model):
    path = save({"generator": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="no 'model' in it"):
        tiny_model.load_checkpoint(tiny_model.config, path, eval=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_safetensors(dtype, tmp_path, tiny_model):
    path = checkpoints.save_weights(tiny_model.generator, tmp_path, dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    other = Apnet2(tiny.config())
    other.load_checkpoint(other.config, path, eval=True)
    for name, tensor in other.generator.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tiny_model.generator.state_dict()[name].to(dtype).float())


def test_safetensors_have_no_discriminators(tmp_path, tiny_model):
    """For fine-tuning, the discriminators stay as they are."""
    path = checkpoints.save_weights(tiny.generator(), tmp_path)
    mpd = {name: tensor.clone() for name, tensor in tiny_model.mpd.state_dict().items()}
    tiny_model.load_checkpoint(tiny_model.config, path)
    assert not differences(tiny_model.generator, tiny.generator())
    assert all(torch.equal(tensor, mpd[name]) for name, tensor in tiny_model.mpd.state_dict().items())
    assert tiny_model.training
