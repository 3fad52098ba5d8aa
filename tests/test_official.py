"""Official files come in with the tensors and sizes that `test_golden` tries, and each one that must be refused."""

import json

import golden
import pytest
import tiny
from safetensors.torch import load_file
from trainer.io import load_fsspec
from weight_files import is_same, put, refused, remove, save

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.errors import OutputError
from apnet2_tts_plugin.loader import load_model, read_config
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.weights.convert import import_official
from apnet2_tts_plugin.weights.official import rename_official


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_official_files(tmp_path, out):
    """Also as a checkpoint for the Trainer's `--restore_path`."""
    generator = save({"generator": golden.official_state("generator")}, tmp_path / "g_01000000")
    networks = {name: golden.official_state(name) for name in ("mpd", "mrd")}
    others = {"optim_g": {}, "optim_d": {}, "steps": 1_000_000, "epoch": 1234}
    written = import_official(generator, out, save({**networks, **others}, tmp_path / "do_01000000"))
    assert [path.name for path in written] == ["config.json", "model.safetensors", "checkpoint_1000000.pth"]
    assert sorted(out.iterdir()) == sorted(written)
    assert read_config(written[0]) == Apnet2Config()
    expected = Apnet2(Apnet2Config())
    golden.load_official(expected)
    assert is_same(expected.generator, load_file(written[1]))
    checkpoint = load_fsspec(written[2], map_location="cpu")
    assert (checkpoint["step"], checkpoint["epoch"]) == (1_000_000, 0)
    assert is_same(expected, checkpoint["model"])


def test_folder_is_written_whole_or_refused(tmp_path, out, monkeypatch):
    """Discriminators of one import must not lie beside the generator of another; a failure leaves nothing."""
    generator = save(tiny.official_generator(), tmp_path / "g_1")
    written = import_official(generator, out, save(tiny.official_discriminators(), tmp_path / "do_1"))
    before = {path: path.read_bytes() for path in written}
    with pytest.raises(OutputError, match="out: not empty \\(checkpoint_7.pth is in it\\); name a new folder"):
        import_official(generator, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    for empty in (tmp_path / "new" / "folder", tmp_path / "empty"):
        empty.mkdir(parents=True)
        assert sorted(path.name for path in import_official(generator, empty)) == ["config.json", "model.safetensors"]

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("apnet2_tts_plugin.weights.convert.save_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        import_official(generator, tmp_path / "failed")
    assert not (tmp_path / "failed").exists()


def test_official_freev(tmp_path, out):
    written = import_official(save({"generator": golden.freev_state()}, tmp_path / "g_01000000"), out)
    assert [path.name for path in written] == ["config.json", "model.safetensors"]
    amplitude = PredictorConfig(channels=513, blocks=1)
    assert read_config(written[0]) == Apnet2Config(amplitude_start="pseudo_inverse", amplitude=amplitude)
    assert is_same(load_model(out).generator, rename_official("generator", golden.freev_state()))


def test_sizes_come_from_the_tensors(tmp_path, out):
    import_official(save(tiny.official_generator(), tmp_path / "g"), out)
    expected, found = tiny.config(), read_config(out / "config.json")
    assert (found.amplitude, found.phase) == (expected.amplitude, expected.phase)


def settings(**changes) -> dict:
    """An official `config.json`."""
    official = dict(sampling_rate=22050, n_fft=1024, hop_size=256, win_size=1024, num_mels=80, fmin=0, fmax=8000)
    return {**official, "segment_size": 8192, **changes}


def test_official_settings(tmp_path, out):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings(sampling_rate=24000, fmax=None, segment_size=10240)))
    import_official(save(tiny.official_generator(), tmp_path / "g"), out, config_path=path)
    config = read_config(out / "config.json")
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
        ([3], "g_1: holds a list"),
    ],
)
def test_file_that_is_something_else(content, reason, tmp_path, out):
    refused(reason, out, save(content, tmp_path / "g_1"))


@pytest.mark.parametrize(
    ("network", "change", "reason"),
    [
        ("mpd", remove("discriminators.0.convs.0.bias"), "parts.0.stack.convs.0.bias is missing"),
        ("mrd", put("surprise", 3), "surprise is unexpected"),
        ("mrd", put("discriminators.2.conv_post.bias", 2), "parts.2.stack.output_conv.bias is (2,), expected (1,)"),
    ],
)
def test_discriminators_that_do_not_fit(network, change, reason, tmp_path, out):
    content = tiny.official_discriminators()
    change(content[network])
    generator = save(tiny.official_generator(), tmp_path / "g_1")
    refused(reason, out, generator, discriminators_path=save(content, tmp_path / "do_1"))
