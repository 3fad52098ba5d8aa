"""Weights in and out: official files against golden audio, and every file that must be refused."""

import json
import os
import random
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import golden
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from trainer.io import get_last_checkpoint, load_fsspec, save_fsspec, sort_checkpoints

from apnet2_tts_plugin import checkpoints
from apnet2_tts_plugin.checkpoints import CheckpointError
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.generator import Generator
from apnet2_tts_plugin.model import Apnet2


class Trap:
    """When it is unpickled, a file appears."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The golden weights as official files, and the folder they were imported to with the files named as written."""
    folder = tmp_path_factory.mktemp("official")
    torch.save({"generator": golden.official_state("generator")}, folder / "g_01000000")
    discriminators = {name: golden.official_state(name) for name in ("mpd", "mrd")}
    torch.save(
        {**discriminators, "optim_g": {}, "optim_d": {}, "steps": 1_000_000, "epoch": 1234}, folder / "do_01000000"
    )
    written = checkpoints.import_official(folder / "g_01000000", folder / "imported", folder / "do_01000000")
    return folder / "imported", written


@pytest.fixture(scope="module")
def imported(official):
    """The model made of the imported configuration and loaded strictly from the imported checkpoint."""
    folder, written = official
    config = Apnet2Config()
    config.load_json(folder / "config.json")
    model = Apnet2(config)
    model.load_checkpoint(config, written[-1])
    return model


@pytest.fixture
def tiny_model():
    """As in training, with its discriminators."""
    model = Apnet2(tiny.config())
    model.add_discriminators()
    return model


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def audio_error(generator: Generator, name: str) -> float:
    """Largest error of the generated golden audio, as a share of its peak."""
    expected = golden.arrays(name)
    audio = generator.inference(torch.from_numpy(expected["mel"])).numpy()
    return np.abs(audio - expected["audio_g"][:, 0]).max() / np.abs(expected["audio_g"]).max()


def differences(a: torch.nn.Module, b: torch.nn.Module) -> list[str]:
    other = b.state_dict()
    return [name for name, tensor in a.state_dict().items() if not torch.equal(tensor, other[name])]


def test_official_files_written(official):
    folder, written = official
    assert [path.name for path in written] == ["config.json", "model.safetensors", "checkpoint_1000000.pth"]
    assert sorted(folder.iterdir()) == sorted(written)


def test_official_generator_from_the_checkpoint(imported):
    assert audio_error(imported.generator, "official_step") < 1e-4


def test_official_generator_from_safetensors(official, imported):
    folder, _ = official
    state = load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == 31_425_539
    expected = imported.generator.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_official_discriminators(imported):
    waveforms = golden.waveforms(7, 8)
    expected = golden.arrays("official_step")
    with torch.no_grad():
        for name in ("mpd", "mrd"):
            scores = torch.cat([judgement.scores.flatten() for judgement in getattr(imported, name)(waveforms)])
            largest = np.abs(expected[f"{name}_scores_real"]).max()
            assert np.abs(scores.numpy() - expected[f"{name}_scores_real"]).max() < 1e-4 * largest


def test_trainer_takes_the_imported_checkpoint(official, imported):
    """What the Trainer does with `--restore_path`."""
    checkpoint = load_fsspec(official[1][-1], map_location="cpu")
    assert (checkpoint["step"], checkpoint["epoch"]) == (1_000_000, 0)
    imported.load_state_dict(checkpoint["model"])


def test_freev(tmp_path, out):
    generator_file = save({"generator": golden.freev_state()}, tmp_path / "g_01000000")
    written = checkpoints.import_official(generator_file, out)
    assert [path.name for path in written] == ["config.json", "model.safetensors"]
    config = Apnet2Config()
    config.load_json(out / "config.json")
    assert config.amplitude_start == "pseudo_inverse"
    generator = Generator(config)
    checkpoints.load_strictly(generator, load_file(out / "model.safetensors"), out)
    assert audio_error(generator, "freev_forward") < 1e-4


def test_sizes_come_from_the_tensors(tmp_path, out):
    checkpoints.import_official(save(tiny.official_generator(), tmp_path / "g"), out)
    config = json.loads((out / "config.json").read_text())
    expected = tiny.config()
    assert config["amplitude"] == expected.amplitude.to_dict() and config["phase"] == expected.phase.to_dict()


def settings(**changes) -> dict:
    """An official `config.json`."""
    official = dict(sampling_rate=22050, n_fft=1024, hop_size=256, win_size=1024, num_mels=80, fmin=0, fmax=8000)
    return {**official, "segment_size": 8192, **changes}


def test_official_settings(tmp_path, out):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings(sampling_rate=24000, fmax=None, segment_size=10240)))
    checkpoints.import_official(save(tiny.official_generator(), tmp_path / "g"), out, config_path=path)
    config = Apnet2Config()
    config.load_json(out / "config.json")
    assert (config.audio.sample_rate, config.audio.mel_fmax, config.seq_len) == (24000, None, 10240)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "config.json: not a readable JSON file"),
        ("[]", "config.json: no usable"),
        ("{}", "config.json: no usable 'sampling_rate'"),
        (json.dumps(settings(fmin="low")), "config.json: no usable"),
        (json.dumps(settings(hop_size=2048)), "config.json: audio.win_length: 1024, expected more than"),
        (json.dumps(settings(win_size="long")), "config.json: "),
        (json.dumps(settings(num_mels=100)), "is (16, 80, 7), expected (16, 100, 7)"),
    ],
)
def test_official_settings_that_are_refused(text, reason, tmp_path, out):
    path = tmp_path / "config.json"
    path.write_text(text)
    refused(reason, out, save(tiny.official_generator(), tmp_path / "g"), config_path=path)


def refused(reason: str, out: Path, generator: Path, **files) -> None:
    """The import fails with one line that has `reason` in it, and writes nothing."""
    with pytest.raises(CheckpointError) as error:
        checkpoints.import_official(generator, out, **files)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not out.exists()


def remove(name):
    return lambda state: state.pop(name)


def put(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove("final_layer_norm.bias"), "phase.backbone.output_norm.bias is missing"),
        (remove("PSP_output_R_conv.weight"), "phase.real_conv.weight is missing"),
        (remove("ASP_output_conv.weight"), "amplitude.output_conv.weight is missing"),
        (remove("convnext.0.pwconv1.weight"), "phase.backbone.blocks.0.expand.weight is missing"),
        (put("surprise", 3), "surprise is unexpected"),
        (put("norm.weight", 17), "phase.backbone.input_norm.weight is (17,), expected (16,)"),
        (put("convnext2.0.pwconv1.weight", 5), "amplitude.backbone.blocks.0.expand.weight is misshapen"),
        (put("PSP_input_conv.weight", 16, 80), "phase.backbone.input_conv.weight is misshapen"),
        (lambda state: state.update({"norm.weight": "text"}), "phase.backbone.input_norm.weight is str"),
        (lambda state: state.clear(), "is missing"),
    ],
)
def test_generator_that_does_not_fit(change, reason, tmp_path, out):
    content = tiny.official_generator()
    change(content["generator"])
    refused(reason, out, save(content, tmp_path / "g_1"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weights": {}}, "g_1: no 'generator' in it"),
        ({"generator": 3}, "g_1: no 'generator' in it"),
        ([torch.zeros(3)], "g_1: holds a list"),
    ],
)
def test_file_that_is_something_else(content, reason, tmp_path, out):
    refused(reason, out, save(content, tmp_path / "g_1"))


@pytest.fixture(scope="module")
def discriminators():
    return tiny.official_discriminators()


@pytest.mark.parametrize(
    ("network", "change", "reason"),
    [
        ("mpd", remove("discriminators.0.convs.0.bias"), "parts.0.stack.convs.0.bias is missing"),
        ("mrd", put("surprise", 3), "surprise is unexpected"),
        ("mrd", put("discriminators.2.conv_post.bias", 2), "parts.2.stack.output_conv.bias is (2,), expected (1,)"),
    ],
)
def test_discriminators_that_do_not_fit(network, change, reason, discriminators, tmp_path, out):
    content = {**discriminators, network: dict(discriminators[network])}
    change(content[network])
    generator = save(tiny.official_generator(), tmp_path / "g_1")
    refused(reason, out, generator, discriminators_path=save(content, tmp_path / "do_1"))


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint as `torch.save` writes it."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint_5.pth"
    torch.save({"model": tiny.generator().state_dict(), "step": 5}, path)
    return path


def not_whole(path: Path, reason: str = "") -> None:
    with pytest.raises(CheckpointError, match=rf"{path.name}: not a whole torch file \(.+\); use another") as error:
        checkpoints.verify(path)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_verify(whole, tmp_path):
    checkpoints.verify(whole)
    save_fsspec({"step": 5}, tmp_path / "checkpoint_5.pth")  # as the Trainer writes it
    checkpoints.verify(str(tmp_path / "checkpoint_5.pth"))


def test_verify_cut_files(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "cut.pth"
    for size in [0, 1, 100, *range(5000, len(content), len(content) // 20), *range(len(content) - 30, len(content))]:
        path.write_bytes(content[:size])
        not_whole(path)


def test_verify_flipped_bits(whole, tmp_path):
    """In every file of the archive, at random places, at the first and at the last byte of it."""
    content = whole.read_bytes()
    path = tmp_path / "flipped.pth"
    dice = random.Random(0)
    with zipfile.ZipFile(whole) as archive:
        members = archive.infolist()
    for member in members:
        header = member.header_offset
        start = header + 30 + sum(struct.unpack("<HH", content[header + 26 : header + 30]))  # behind name and padding
        for place in {0, member.file_size - 1, dice.randrange(member.file_size)}:
            flipped = bytearray(content)
            flipped[start + place] ^= 1 << dice.randrange(8)
            path.write_bytes(flipped)
            not_whole(path, f"{member.filename!r} in it fails its checksum")


def test_verify_damaged_directory(whole, tmp_path):
    """Any byte may be wrong: the file is refused or, where the byte says nothing of the content, reads as before."""
    content = whole.read_bytes()
    path = tmp_path / "damaged.pth"
    expected = checkpoints.read_tensors(whole)["model"]
    start = content.rindex(b"PK\1\2")
    refused = 0
    for place in range(start, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            checkpoints.verify(path)
            found = checkpoints.read_tensors(path)["model"]
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > (len(content) - start) / 3


def test_verify_other_files(tmp_path):
    not_whole(tmp_path / "nowhere.pth", "No such file")
    not_whole(tmp_path)
    other = tmp_path / "other.pth"
    other.write_text("no zip file " * 1000)
    not_whole(other)
    torch.save({"step": 5}, other, _use_new_zipfile_serialization=False)
    not_whole(other)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "text")
    not_whole(other, "no data.pkl in it")


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


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_atomic_write(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        checkpoints.write_atomically(path, write)
    assert [path] == list(tmp_path.iterdir()) and path.read_text() == "old"
    checkpoints.write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert [path] == list(tmp_path.iterdir()) and path.read_text() == "new"


def test_atomic_write_lasts(tmp_path, monkeypatch):
    """The content reaches the disk before the file has its name, and the name after that."""
    path = tmp_path / "file"
    synced = []

    def fsync(handle):
        kind = os.fstat(handle)
        synced.append(("folder" if stat.S_ISDIR(kind.st_mode) else kind.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.write_atomically(path, lambda temporary: temporary.write_text("content"))
    assert synced == [(7, False), ("folder", True)]


def test_atomic_write_where_folders_cannot_be_synced(tmp_path, monkeypatch):
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError("not here")

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_atomic_write_to_a_full_disk(tmp_path, monkeypatch):
    """Some disks tell only when the content must be there."""

    def fsync(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoint_9.pth", "best_model_9.pth", "best_model.pth"])
def test_temporary_files_are_no_checkpoints(name, tmp_path):
    """What a killed process leaves, the Trainer must not resume from; its `*.pth` matches hidden files too."""
    whole = tmp_path / "checkpoint_5.pth"
    whole.touch()

    def write(temporary):
        assert temporary.parent == tmp_path
        assert get_last_checkpoint(tmp_path) == (str(whole), str(whole))
        assert sort_checkpoints(tmp_path, "checkpoint") == [str(whole)]
        assert list(tmp_path.glob("*.pth")) == [whole]

    checkpoints.write_atomically(tmp_path / name, write)
