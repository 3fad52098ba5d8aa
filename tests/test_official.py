"""Official files come in: against golden audio, and each one that must be refused."""

import json

import golden
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from trainer.io import load_fsspec
from weight_files import put, refused, remove, save

from apnet2_tts_plugin import checkpoints
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.generator import Generator
from apnet2_tts_plugin.model import Apnet2


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
def out(tmp_path):
    return tmp_path / "out"


def audio_error(generator: Generator, name: str) -> float:
    """Largest error of the generated golden audio, as a share of its peak."""
    expected = golden.arrays(name)
    audio = generator.inference(torch.from_numpy(expected["mel"])).numpy()
    return np.abs(audio - expected["audio_g"][:, 0]).max() / np.abs(expected["audio_g"]).max()


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
