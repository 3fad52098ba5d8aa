"""Runtimes: the same vocoder by other code and in other arithmetic, each as near to the trained one as it can be."""

import json
import re
from pathlib import Path

import command_line
import pytest
import soundfile
import tiny
import torch
from command_line import an_npy
from test_pitch_start import pitch_config
from torch import nn

from apnet2_tts_plugin import cli_files, load_model
from apnet2_tts_plugin.errors import ConfigError
from apnet2_tts_plugin.loader import load_with_runtime
from apnet2_tts_plugin.network import runtime
from apnet2_tts_plugin.network.packed import Int8Linear, PackedLinear
from apnet2_tts_plugin.network.precision import emulates_bf16
from apnet2_tts_plugin.weights import store

SAMPLE = Path(__file__).parents[1] / "recipes" / "ljspeech" / "sample.flac"
BUNDLED = store.BUNDLED / "apnet2"
SNR = {  # in dB, of the trained bundled model on a recording: what it had, and some dB less
    "packed": 100.0,
    "bfloat16": 40.0,
    "int8": 33.0,
}

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures

needs_bf16 = pytest.mark.skipif(emulates_bf16("cpu"), reason="the processor has no instructions for bfloat16")
ARITHMETICS = ["packed", pytest.param("bfloat16", marks=needs_bf16), "int8"]


def snr(expected: torch.Tensor, got: torch.Tensor) -> float:
    return (10 * (expected.square().sum() / (got - expected).square().sum()).log10()).item()


@pytest.fixture(scope="module")
def recording():
    return soundfile.read(SAMPLE, dtype="float32")


@pytest.mark.parametrize("name", ARITHMETICS)
def test_the_bundled_model_sounds_the_same(name, recording):
    expected = load_model(BUNDLED).copy_synthesis(*recording)
    got = load_model(BUNDLED, runtime=name).copy_synthesis(*recording)
    assert snr(expected, got) > SNR[name]


@pytest.mark.parametrize("name", ARITHMETICS)
@pytest.mark.parametrize("kind", ["published", "freev", "pitch"])
def test_padded_batches_are_as_single_runs(name, kind):
    """Of the same runtime; and all of it is near to the model as it was made."""
    settings = {"published": {}, "freev": {"amplitude_start": "pseudo_inverse"}, "pitch": pitch_config()}[kind]
    eager, model = (tiny.model(pools=True, **settings) for _ in range(2))
    assert model.use_runtime(name) == name
    mel = torch.randn(2, 80, 30, generator=torch.Generator().manual_seed(1)) - 4
    batch = model.inference(mel, torch.tensor([30, 21]))
    alone = model.inference(mel[1:, :, :21])
    least = {"packed": 100, "bfloat16": 20, "int8": 20}[name]
    assert snr(alone, batch[1:, :, : alone.shape[2]]) > least
    assert snr(eager.inference(mel), model.inference(mel)) > least


@pytest.mark.parametrize("name", ARITHMETICS)
def test_a_stream_is_the_whole(name, recording):
    model = load_model(BUNDLED, runtime=name)
    mel = model.log_mel(torch.from_numpy(recording[0][None]))[:, :, :150]
    streamed = torch.cat(list(model.stream(mel.split(37, dim=2))), dim=2)
    assert snr(model.inference(mel), streamed) > SNR[name]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(64, 96), (513, 100), (7, 513)])
@pytest.mark.parametrize(("kind", "least"), [(PackedLinear, 110), (Int8Linear, 35)])
def test_layers(kind, least, n_inputs, n_outputs, gelu):
    torch.manual_seed(0)
    linear, x = nn.Linear(n_inputs, n_outputs), torch.randn(2, 5, n_inputs)
    with torch.no_grad():
        expected = nn.functional.gelu(linear(x)) if gelu else linear(x)
        got = kind(linear.weight, linear.bias, gelu)(x)
    assert got.shape == expected.shape and got.dtype == torch.float32
    assert snr(expected, got) > least


def test_weights_of_zeros_are_no_matter():
    layer = Int8Linear(torch.zeros(8, 4), torch.ones(8))
    assert torch.equal(layer(torch.randn(1, 3, 4)), torch.ones(1, 3, 8))


@pytest.mark.parametrize(("capability", "name"), [("AVX512", "packed"), ("AVX2", "eager")])
def test_auto_is_packed_where_that_pays(capability, name, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert tiny.model().use_runtime("auto") == name


def layers_in_use(model, kind) -> bool:
    model.inference(torch.zeros(1, 80, 5))
    return any(isinstance(module, kind) for module in model.modules())


def test_it_is_chosen_by_the_name_the_environment_or_the_configuration(tmp_path, monkeypatch):
    folder = tiny.save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"runtime": "int8"}), encoding="utf-8")
    assert layers_in_use(load_model(folder), Int8Linear)
    monkeypatch.setenv("APNET2_RUNTIME", "packed")
    assert layers_in_use(load_model(folder), PackedLinear)
    assert layers_in_use(load_with_runtime(f"{folder}@int8"), Int8Linear)
    monkeypatch.setenv("APNET2_RUNTIME", "fast")
    with pytest.raises(ConfigError, match="runtime: 'fast', expected auto, eager, packed, bfloat16, int8"):
        load_model(BUNDLED)


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    generator = tiny.model().generator
    monkeypatch.setattr(runtime, "emulates_bf16", lambda device: True)
    with pytest.raises(ConfigError, match="runtime bfloat16: this cpu has no instructions for it"):
        runtime.use_runtime(generator, "bfloat16")
    with pytest.raises(ConfigError, match="runtime packed: it is for processors, and the model is on meta"):
        runtime.use_runtime(generator.to("meta"), "packed")
    assert runtime.use_runtime(generator, "auto") == "eager"


@pytest.mark.parametrize("name", ["packed", "int8"])
def test_one_follows_no_other(name):
    model = tiny.model()
    model.use_runtime(name)
    with pytest.raises(ConfigError, match="runtime int8: the model is in another one already; load it anew"):
        model.use_runtime("int8")


def test_bf16_leaves_a_model_as_it_is_where_it_cannot_be(monkeypatch):
    model = tiny.model()
    monkeypatch.setattr(runtime, "emulates_bf16", lambda device: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="runtime bfloat16: torch has no oneDNN here"):
        model.use_runtime("bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_vocode_takes_one_and_says_so(apnet2, workplace, model, monkeypatch):
    def runtime_of(*options):
        status, _, err = apnet2("vocode", an_npy(), "out.wav", *options)
        assert status == 0, err
        return re.search(r", runtime (\w+)\n$", err)[1]

    assert cli_files.RUNTIMES == (runtime.AUTO, *runtime.RUNTIMES)
    assert runtime_of() in ("packed", "eager")
    monkeypatch.setenv("APNET2_RUNTIME", "int8")
    assert [runtime_of(), runtime_of("--runtime", "eager")] == ["int8", "eager"]
    assert apnet2("vocode", an_npy(), "out.wav", "--runtime", "fast")[0] == 2
