"""Weights to fine-tune from: every source there is, and every one that must be refused without a trace."""

import shutil

import pytest
import tiny
import torch
from weight_files import is_same, put, remove, save, save_checkpoint, snapshot, training_model

from apnet2_tts_plugin.errors import CheckpointError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights import checkpoints, convert
from apnet2_tts_plugin.weights.find import find_weights
from apnet2_tts_plugin.weights.official import rename_official
from apnet2_tts_plugin.weights.restore import restore


@pytest.fixture(scope="module")
def trained():
    return training_model(1)


@pytest.fixture
def model():
    """Other weights than `trained`."""
    return training_model(2)


def only_generator(model: Apnet2, path, expected) -> str:
    """Restore; the generator is `expected` after that and the discriminators are as before."""
    before = snapshot(model)
    done = restore(model, path)
    generator = {f"generator.{name}": tensor for name, tensor in expected.items()}
    assert is_same(model, {**before, **generator}) and not is_same(model, before)
    return done


def refused(model: Apnet2, path, *reasons: str) -> None:
    """The error is one line with all `reasons` in it, and the model is as before."""
    before = snapshot(model)
    with pytest.raises(CheckpointError) as error:
        restore(model, path)
    assert "\n" not in str(error.value)
    for reason in reasons:
        assert reason in str(error.value)
    assert is_same(model, before)


def test_trainer_checkpoint(trained, model, tmp_path):
    path = save_checkpoint(trained, tmp_path / "checkpoint_5.pth")
    assert restore(model, str(path)) == "generator and discriminators of checkpoint_5.pth"
    assert is_same(model, trained.state_dict())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_generator_alone(trained, model, tmp_path):
    state = {name: tensor for name, tensor in trained.state_dict().items() if name.startswith("generator.")}
    path = save_checkpoint(trained, tmp_path / "model_file.pth", state)
    done = only_generator(model, path, trained.generator.state_dict())
    assert done == "generator of model_file.pth; the discriminators start anew"


SAFETENSORS, CHECKPOINT, BEST, TABLE = "model.safetensors", "checkpoint_5.pth", "best_model.pth", "speakers.pth"


@pytest.mark.parametrize(
    ("names", "to_vocode", "to_restore"),
    [
        ([SAFETENSORS], SAFETENSORS, SAFETENSORS),
        ([SAFETENSORS, CHECKPOINT], SAFETENSORS, CHECKPOINT),  # what `apnet2 import --discriminators` writes
        ([CHECKPOINT], CHECKPOINT, CHECKPOINT),
        ([CHECKPOINT, TABLE], CHECKPOINT, CHECKPOINT),
        ([CHECKPOINT, "checkpoint_9.pth", BEST], BEST, BEST),  # a run
        ([CHECKPOINT, "checkpoint_9.pth", BEST, SAFETENSORS], SAFETENSORS, BEST),
        ([CHECKPOINT, "checkpoint_9.pth", SAFETENSORS], SAFETENSORS, SAFETENSORS),
    ],
)
def test_folders(names, to_vocode, to_restore, trained, model, tmp_path):
    checkpoints.save_config(trained.config, tmp_path)
    for name in names:
        if name == SAFETENSORS:
            checkpoints.save_weights(trained.generator, tmp_path)
        else:
            save_checkpoint(trained, tmp_path / name)
    assert find_weights(tmp_path) == tmp_path / to_vocode
    assert f" of {to_restore}" in restore(model, tmp_path)
    assert is_same(model.generator, trained.generator.state_dict())


@pytest.mark.parametrize(("names", "found"), [(["b.pth", "a.pth", "config.json"], "a.pth, b.pth;"), ([TABLE], "none;")])
def test_folders_that_are_refused(names, found, model, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    refused(model, tmp_path, f"{tmp_path}: expected model.safetensors, best_model.pth or one other .pth file", found)


@pytest.fixture(scope="module")
def official(trained, tmp_path_factory):
    """A folder with both official files of the same number, and a generator of another one."""
    folder = tmp_path_factory.mktemp("official")
    discriminators = tiny.official_discriminators(trained.config)
    save(tiny.official_generator(), folder / "g_00000007")
    save({**discriminators, "optim_g": {}, "optim_d": {}}, folder / "do_00000007")
    save(tiny.official_generator(), folder / "g_00000008")
    return folder


def test_official_files(official, model):
    done = restore(model, official / "g_00000007")
    assert done == "generator and discriminators of g_00000007 and do_00000007"
    assert is_same(model.generator, tiny.generator().state_dict())
    content = torch.load(official / "do_00000007", weights_only=True)
    for name in ("mpd", "mrd"):
        assert is_same(getattr(model, name), rename_official(name, content[name]))


def test_official_generator_alone(official, model):
    done = only_generator(model, official / "g_00000008", tiny.generator().state_dict())
    assert done == "generator of g_00000008; the discriminators start anew"
    path = shutil.copy(official / "g_00000007", official / "generator.pt")  # whose name says nothing of a companion
    only_generator(training_model(2), path, tiny.generator().state_dict())


def test_official_freev(model, tmp_path):
    content = tiny.official_freev()
    path = save(content, tmp_path / "g_00000007")
    refused(model, path, "input_conv.weight is missing", "amplitude_start")
    freev = training_model(3, amplitude_start="pseudo_inverse")
    only_generator(freev, path, rename_official("generator", content["generator"]))


def test_torch_files_of_old(model, tmp_path):
    """Without zip, and so without checksums."""
    path = tmp_path / "g_00000007"
    torch.save(tiny.official_generator(), path, _use_new_zipfile_serialization=False)
    only_generator(model, path, tiny.generator().state_dict())


BIAS = "generator.phase.real_conv.bias"


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (remove(BIAS), [f"{BIAS} is missing"]),
        (put(BIAS, 3), ["is (3,), expected (513,)", "set audio, input_features"]),
        (put("surprise", 3), ["surprise is unexpected"]),
        (put("mpd.surprise", 3), ["mpd.surprise is unexpected"]),
        (remove("mrd.parts.0.stack.output_conv.bias"), ["mrd.parts.0.stack.output_conv.bias is missing"]),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("mrd.")],
            ["mrd.parts.0.stack.convs.0.bias is missing", "more"],
        ),
        (put(BIAS, 513, dtype=torch.int), ["is a tensor of torch.int32"]),
        (put(BIAS, 513, device="meta"), ["on meta"]),
        (lambda state: state.update({BIAS: 3}), [f"{BIAS} is int, expected (513,)"]),
        (put(5, 3), ["no 'model' in it"]),
    ],
)
def test_trainer_checkpoints_that_do_not_fit(change, reasons, trained, model, tmp_path):
    state = dict(trained.state_dict())
    change(state)
    refused(model, save_checkpoint(trained, tmp_path / CHECKPOINT, state), "checkpoint_5.pth: ", *reasons)


def test_discriminators_of_another_size(model, tmp_path):
    """The generator fits, but is not restored without being told so; `apnet2 export` helps, as the message says."""
    other = training_model(3, mpd_channels=[4, 6])
    path = save_checkpoint(other, tmp_path / CHECKPOINT)
    misfit = "mpd.parts.0.stack.convs.1.bias is (6,), expected (4,)"
    refused(model, path, misfit, "set mpd_periods, mpd_channels", "apnet2 export")
    convert.export(path, tmp_path / "exported")
    only_generator(model, tmp_path / "exported", other.generator.state_dict())


def test_official_companions_that_are_refused(official, model, tmp_path):
    generator, companion = shutil.copy(official / "g_00000007", tmp_path), tmp_path / "do_00000007"
    save(tiny.official_discriminators(tiny.config(mrd_channels=6)), companion)
    refused(model, generator, "do_00000007: ", "expected (4,)", "mrd_channels", "move it away")
    save({"mpd": {}}, companion)
    refused(model, generator, "do_00000007: no 'mrd' in it")
    companion.write_bytes((official / "do_00000007").read_bytes()[:5000])
    refused(model, generator, "do_00000007: ")
    refused(model, official / "do_00000007", "do_00000007: ", "name the generator's file, g_XXXXXXXX")


def test_generator_of_another_size(model, tmp_path):
    other = tiny.model(phase=tiny.PredictorConfig(channels=24, hidden_channels=32, blocks=1))
    path = checkpoints.save_weights(other.generator, tmp_path)
    refused(model, path, "model.safetensors: ", "is (24, 80, 7), expected (16, 80, 7)", "set audio, input_features")


@pytest.mark.parametrize("content", [{"weights": {}}, [torch.zeros(3)]])
def test_file_of_something_else(content, model, tmp_path):
    refused(model, tmp_path / "file.pth", "file.pth: no such file")
    refused(model, save(content, tmp_path / "file.pth"), "file.pth: ")


def test_damaged_checkpoint(trained, model, tmp_path):
    """One wrong byte in a tensor, which `torch.load` does not see."""
    path = save_checkpoint(trained, tmp_path / CHECKPOINT)
    content = bytearray(path.read_bytes())
    content[content.index(trained.generator.phase.real_conv.weight.detach().numpy().tobytes())] ^= 0x10
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    refused(model, path, "checkpoint_5.pth: not a whole torch file", "fails its checksum", "use another copy")
