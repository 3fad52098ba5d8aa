"""Weights to fine-tune from: every source there is, and every one that must be refused without a trace."""

import shutil

import pytest
import tiny
import torch

from apnet2_tts_plugin import checkpoints
from apnet2_tts_plugin.checkpoints import CheckpointError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.official import rename_official


def training_model(seed: int, config=None) -> Apnet2:
    """As in training, with its discriminators."""
    torch.manual_seed(seed)
    model = Apnet2(config or tiny.config())
    model.add_discriminators()
    return model


@pytest.fixture(scope="module")
def trained():
    return training_model(1)


@pytest.fixture
def model():
    """Other weights than `trained`."""
    return training_model(2)


def save_checkpoint(model: Apnet2, path, state=None):
    """What the Trainer saves, as far as it matters."""
    state = model.state_dict() if state is None else state
    torch.save({"config": model.config.to_dict(), "model": state, "optimizer": [{}, {}], "step": 5, "epoch": 1}, path)
    return path


def snapshot(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(network, state) -> bool:
    found = network.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in found)


def only_generator(model: Apnet2, path, expected) -> str:
    """Restore; the generator is `expected` after that and the discriminators are as before."""
    before = snapshot(model)
    done = checkpoints.restore(model, path)
    generator = {f"generator.{name}": tensor for name, tensor in expected.items()}
    assert same(model, {**before, **generator}) and not same(model, before)
    return done


def refused(model: Apnet2, path, *reasons: str) -> None:
    """The error is one line with all `reasons` in it, and the model is as before."""
    before = snapshot(model)
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(model, path)
    assert "\n" not in str(error.value)
    for reason in reasons:
        assert reason in str(error.value)
    assert same(model, before)


def test_trainer_checkpoint(trained, model, tmp_path):
    path = save_checkpoint(trained, tmp_path / "checkpoint_5.pth")
    assert checkpoints.restore(model, str(path)) == "generator and discriminators of checkpoint_5.pth"
    assert same(model, trained.state_dict())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_discriminators_are_made(trained, tmp_path):
    path = save_checkpoint(trained, tmp_path / "checkpoint_5.pth")
    bare = Apnet2(tiny.config())
    checkpoints.restore(bare, path)
    assert same(bare, trained.state_dict())


def test_trainer_checkpoint_of_the_generator_alone(trained, model, tmp_path):
    state = {name: tensor for name, tensor in trained.state_dict().items() if name.startswith("generator.")}
    path = save_checkpoint(trained, tmp_path / "model_file.pth", state)
    done = only_generator(model, path, trained.generator.state_dict())
    assert done == "generator of model_file.pth; the discriminators start anew"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_safetensors(dtype, trained, model, tmp_path):
    path = checkpoints.save_weights(trained.generator, tmp_path, dtype)
    expected = {name: tensor.to(dtype).float() for name, tensor in trained.generator.state_dict().items()}
    done = only_generator(model, path, expected)
    assert done == "generator of model.safetensors; the discriminators start anew"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors"], "generator of model.safetensors;"),
        (["model.safetensors", "checkpoint_5.pth"], "generator and discriminators of checkpoint_5.pth"),
        (["best_model.pth"], "generator and discriminators of best_model.pth"),
        (["model.safetensors", "checkpoint_5.pth", "best_model.pth"], "generator of model.safetensors;"),
        (["checkpoint_5.pth", "best_model.pth"], "generator and discriminators of best_model.pth"),
    ],
)
def test_folders(names, taken, trained, model, tmp_path):
    checkpoints.save_config(trained.config, tmp_path)
    for name in names:
        if name.endswith(".pth"):
            save_checkpoint(trained, tmp_path / name)
        else:
            checkpoints.save_weights(trained.generator, tmp_path)
    assert checkpoints.restore(model, tmp_path).startswith(taken)
    assert same(model.generator, trained.generator.state_dict())


@pytest.mark.parametrize(
    ("names", "found"), [(["b.pth", "a.pth", "config.json"], "found a.pth, b.pth;"), ([], "found none;")]
)
def test_folders_that_are_refused(names, found, model, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    expected = f"{tmp_path}: expected one .pth file, model.safetensors or best_model.pth"
    refused(model, tmp_path, expected, found, "name the file")


def test_exported_and_imported_folders(trained, model, tmp_path):
    checkpoint = save_checkpoint(trained, tmp_path / "best_model.pth")
    checkpoints.export(checkpoint, tmp_path / "exported")
    only_generator(model, tmp_path / "exported", trained.generator.state_dict())
    torch.save(tiny.official_generator(), tmp_path / "g_00000007")
    checkpoints.import_official(tmp_path / "g_00000007", tmp_path / "imported")
    only_generator(model, tmp_path / "imported", tiny.generator().state_dict())


@pytest.fixture(scope="module")
def official(trained, tmp_path_factory):
    """A folder with both official files of the same number, and a discriminator file of another one."""
    folder = tmp_path_factory.mktemp("official")
    discriminators = tiny.official_discriminators(trained.config)
    torch.save(tiny.official_generator(), folder / "g_00000007")
    torch.save({**discriminators, "optim_g": {}, "optim_d": {}}, folder / "do_00000007")
    torch.save(tiny.official_generator(), folder / "g_00000008")
    return folder


def test_official_files(official, model):
    done = checkpoints.restore(model, official / "g_00000007")
    assert done == "generator and discriminators of g_00000007 and do_00000007"
    assert same(model.generator, tiny.generator().state_dict())
    content = torch.load(official / "do_00000007", weights_only=True)
    for name in ("mpd", "mrd"):
        assert same(getattr(model, name), rename_official(name, content[name]))


def test_official_generator_alone(official, model):
    done = only_generator(model, official / "g_00000008", tiny.generator().state_dict())
    assert done == "generator of g_00000008; the discriminators start anew"


def test_official_generator_of_another_name(official, model, tmp_path):
    path = shutil.copy(official / "g_00000007", tmp_path / "generator.pt")
    only_generator(model, path, tiny.generator().state_dict())


def test_official_freev(model, tmp_path):
    content = tiny.official_freev()
    torch.save(content, tmp_path / "g_00000007")
    refused(model, tmp_path / "g_00000007", "input_conv.weight is missing", "amplitude_start")
    freev = training_model(3, tiny.freev_config())
    only_generator(freev, tmp_path / "g_00000007", rename_official("generator", content["generator"]))


def test_torch_files_of_old(model, tmp_path):
    """Without zip, and so without checksums."""
    path = tmp_path / "g_00000007"
    torch.save(tiny.official_generator(), path, _use_new_zipfile_serialization=False)
    only_generator(model, path, tiny.generator().state_dict())


def test_official_discriminators_named_instead(official, model):
    refused(model, official / "do_00000007", "do_00000007: ", "name the generator's file, g_XXXXXXXX")


def change(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda state: state.pop("generator.phase.real_conv.bias"), ["generator.phase.real_conv.bias is missing"]),
        (
            change("generator.phase.real_conv.bias", torch.zeros(3)),
            ["is (3,), expected (513,)", "set amplitude, phase"],
        ),
        (change("surprise", torch.zeros(3)), ["surprise is unexpected"]),
        (change("mpd.surprise", torch.zeros(3)), ["mpd.surprise is unexpected"]),
        (
            lambda state: state.pop("mrd.parts.0.stack.output_conv.bias"),
            ["mrd.parts.0.stack.output_conv.bias is missing"],
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("mrd.")],
            ["mrd.parts.0.stack.convs.0.bias is missing", "more"],
        ),
        (change("generator.phase.real_conv.bias", torch.zeros(513, dtype=torch.int)), ["is a tensor of torch.int32"]),
        (change("generator.phase.real_conv.bias", torch.zeros(513, device="meta")), ["on meta"]),
        (change("mpd.parts.0.stack.convs.0.bias", 3), ["mpd.parts.0.stack.convs.0.bias is int, expected (4,)"]),
        (change(5, torch.zeros(3)), ["no 'model' in it"]),
    ],
)
def test_trainer_checkpoints_that_do_not_fit(change, reasons, trained, model, tmp_path):
    state = dict(trained.state_dict())
    change(state)
    refused(model, save_checkpoint(trained, tmp_path / "checkpoint_5.pth", state), "checkpoint_5.pth: ", *reasons)


def test_discriminators_of_another_size(trained, model, tmp_path):
    """The generator fits, but is not restored without being told so; `apnet2 export` helps, as the message says."""
    config = tiny.config()
    config.mpd_channels = [4, 6]
    other = training_model(3, config)
    path = save_checkpoint(other, tmp_path / "checkpoint_5.pth")
    reasons = [
        "mpd.parts.0.stack.convs.1.bias is (6,), expected (4,)",
        "set mpd_periods, mpd_channels",
        "apnet2 export",
    ]
    refused(model, path, *reasons)
    checkpoints.export(path, tmp_path / "exported")
    only_generator(model, tmp_path / "exported", other.generator.state_dict())


def test_official_discriminators_of_another_size(official, model, tmp_path):
    shutil.copy(official / "g_00000007", tmp_path)
    config = tiny.config()
    config.mrd_channels = 6
    torch.save(tiny.official_discriminators(config), tmp_path / "do_00000007")
    refused(model, tmp_path / "g_00000007", "do_00000007: ", "expected (4,)", "mrd_channels", "move it away")


def test_official_companion_of_something_else(official, model, tmp_path):
    shutil.copy(official / "g_00000007", tmp_path)
    torch.save({"mpd": {}}, tmp_path / "do_00000007")
    refused(model, tmp_path / "g_00000007", "do_00000007: no 'mrd' in it")


def test_generator_of_another_size(model, tmp_path):
    config = tiny.config()
    config.phase.channels = 24
    path = checkpoints.save_weights(Apnet2(config).generator, tmp_path)
    refused(model, path, "model.safetensors: ", "is (24, 80, 7), expected (16, 80, 7)", "set amplitude, phase")


@pytest.mark.parametrize("content", [{"weights": {}}, {}, [torch.zeros(3)]])
def test_file_of_something_else(content, model, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    refused(model, tmp_path / "file.pth", "file.pth: ")


def test_missing_file(model, tmp_path):
    refused(model, tmp_path / "nowhere.pth", "nowhere.pth: no such file")


def test_damaged_checkpoint(trained, model, tmp_path):
    """One wrong byte in a tensor, which `torch.load` does not see."""
    path = save_checkpoint(trained, tmp_path / "checkpoint_5.pth")
    content = bytearray(path.read_bytes())
    content[content.index(trained.generator.phase.real_conv.weight.detach().numpy().tobytes())] ^= 0x10
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    refused(model, path, "checkpoint_5.pth: not a whole torch file", "fails its checksum", "use another copy")


def test_damaged_companion(official, model, tmp_path):
    shutil.copy(official / "g_00000007", tmp_path)
    (tmp_path / "do_00000007").write_bytes((official / "do_00000007").read_bytes()[:5000])
    refused(model, tmp_path / "g_00000007", "do_00000007: ")
