"""A Piper voice becomes a VITS, and a decoder learns from what a VITS says, without recordings."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import soundfile as sf
import tiny
import torch
from torch.nn.utils import parametrize
from TTS.config import load_config
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models.vits import Vits
from vits_models import CHANNELS, HOP, SAMPLE_RATE, make_vits, save_vits

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.finetuning import speech

SYMBOLS = ["_", "^", "$", " ", ",", ".", "a", "b", "ə", "ˈ"]
SETTINGS = {
    "audio": {"sample_rate": 22050},
    "espeak": {"voice": "en-us"},
    "phoneme_type": "espeak",
    "num_speakers": 1,
    "inference": {"noise_scale": 0.5, "noise_w": 0.25, "length_scale": 1.5},
    "phoneme_id_map": {symbol: [number] for number, symbol in enumerate(SYMBOLS)},
}
SMALL = dict(
    hidden_channels=192,  # the duration predictor is built for it
    hidden_channels_ffn_text_encoder=24,
    num_layers_text_encoder=2,
    num_layers_flow=2,
    upsample_initial_channel_decoder=16,
    upsample_rates_decoder=[8, 8, 4],
    upsample_kernel_sizes_decoder=[16, 16, 8],
    resblock_type_decoder="2",
    resblock_kernel_sizes_decoder=[3, 5],
    resblock_dilation_sizes_decoder=[[1, 2], [2, 6]],
)


@pytest.fixture(scope="module")
def converter():
    with pytest.MonkeyPatch.context() as patch:
        yield scripts.load(scripts.RECIPES / "piper" / "convert_voice.py", patch)


@pytest.fixture(autouse=True)
def no_espeak(monkeypatch):
    """A phonemizer that leaves the text as it is, so that the tests need no espeak-ng."""
    phonemizer = SimpleNamespace(
        name=lambda: "espeak", phonemize=lambda text, separator, language: text, print_logs=lambda level: None
    )
    monkeypatch.setattr("TTS.tts.utils.text.tokenizer.get_phonemizer_by_name", lambda name, **settings: phonemizer)


def piper_name(name: str) -> str:
    """Piper's name of a weight of coqui's: the other way round than the recipe, and by hand."""
    parts = name.replace("text_encoder", "enc_p").replace("waveform_decoder", "dec").replace("duration_predictor", "dp")
    parts = parts.split(".")
    if parts[:2] == ["flow", "flows"]:
        parts[2] = str(2 * int(parts[2]))
    if parts[:2] == ["dp", "flows"] and parts[2] != "0":
        parts[2] = str(2 * int(parts[2]) - 1)
    return ".".join(parts).replace("flows.0.translation", "flows.0.m")


def exported(vits: Vits) -> tuple[dict[str, np.ndarray], list[SimpleNamespace]]:
    """Initializers and nodes as PyTorch's exporter writes them: fused weights and the flow's scale without a name."""
    tensors, nodes = {}, []

    def node(kind: str, name: str, *inputs: str, **sizes: list[int]) -> None:
        attributes = [SimpleNamespace(name=key, ints=value) for key, value in sizes.items()]
        nodes.append(SimpleNamespace(op_type=kind, name=name, input=["x", *inputs], attribute=attributes))

    for path, module in vits.named_modules():
        if path.startswith(("posterior", "disc", "duration_predictor.post", "duration_predictor.flows.1.")):
            continue
        own = {} if "parametrizations" in path else dict(module.named_parameters(recurse=False))
        if parametrize.is_parametrized(module):
            own["weight"] = module.weight
        names = {name: piper_name(f"{path}.{name}") for name in own}
        if "enc.in_layers" in path or "enc.res_skip" in path:
            names["weight"] = f"onnx::Conv_{len(nodes)}"
        if path == "text_encoder.emb":
            names["weight"] = "sid"
        for name, value in own.items():
            if name != "log_scale":
                tensors[names[name]] = value.detach().numpy()
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            kind = "Conv" if isinstance(module, torch.nn.Conv1d) else "ConvTranspose"
            place = piper_name(f"{path}.weight").removesuffix(".weight").replace(".", "/")
            node(kind, f"/{place}/{kind}", names["weight"], strides=[*module.stride], dilations=[*module.dilation])
    nodes.append(SimpleNamespace(op_type="Gather", name="/enc_p/emb/Gather", input=["sid", "input"], attribute=[]))
    tensors["scale"] = (-vits.duration_predictor.flows[0].log_scale).exp().detach().numpy()
    node("Mul", "/dp/flows.0/Mul", "scale")
    return tensors, nodes


def random_vits() -> Vits:
    """A VITS of Piper's kind, every weight random: at their start whole layers are zero."""
    torch.manual_seed(3)
    args = VitsArgs(num_chars=len(SYMBOLS), init_discriminator=False, **SMALL)
    vits = Vits(VitsConfig(model_args=args, characters=None, use_phonemes=False)).eval()
    with torch.no_grad():
        vits.text_encoder.emb = torch.nn.Embedding(len(SYMBOLS), 192)
        for parameter in vits.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vits


def converted(converter, vits: Vits, folder, monkeypatch, settings=SETTINGS) -> Vits:
    """The VITS converted from the export of `vits`, loaded as coqui loads it."""
    tensors, nodes = exported(vits)
    voice = converter.Voice(converter.name_weights(tensors, nodes), converter.find_layers(nodes))
    monkeypatch.setattr(converter, "read_voice", lambda path: voice)
    (folder / "voice.json").write_text(json.dumps(settings))
    converter.convert(folder / "voice.onnx", folder / "voice.json", folder / "out")
    config = load_config(folder / "out" / "config.json")
    loaded = Vits(config)
    loaded.load_checkpoint(config, folder / "out" / "model.pth", eval=True)
    return loaded


def test_a_converted_voice_speaks_as_the_voice(converter, tmp_path, monkeypatch):
    vits = random_vits()
    loaded = converted(converter, vits, tmp_path, monkeypatch)
    assert loaded.args.resblock_dilation_sizes_decoder == SMALL["resblock_dilation_sizes_decoder"]
    assert (loaded.inference_noise_scale, loaded.inference_noise_scale_dp, loaded.length_scale) == (0.5, 0.25, 1.5)
    tokens = loaded.tokenizer.text_to_ids("a bə.", language="en-us")
    piper = [SYMBOLS.index(loaded.tokenizer.characters.id_to_char(token)) for token in tokens]
    assert piper == [1, 0, 6, 0, 3, 0, 7, 0, 8, 0, 5, 0, 2]  # as Piper has it: ^ _ a _ ... . _ $
    for model in (vits, loaded):
        model.inference_noise_scale = model.inference_noise_scale_dp = 0.0
        model.length_scale = 1.0
    expected = vits.inference(torch.tensor([piper]))["model_outputs"]
    found = loaded.inference(torch.tensor([tokens]))["model_outputs"]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_speakers": 3}, "a voice of 3 speakers, expected one speaker"),
        ({"phoneme_type": "text"}, "phoneme_type: 'text', expected 'espeak'"),
        ({"espeak": None}, "voice.json: not the settings of a Piper voice"),
    ],
)
def test_a_voice_that_cannot_be_converted(converter, tmp_path, monkeypatch, changes, message):
    with pytest.raises(converter.VoiceError, match=message):
        converted(converter, random_vits(), tmp_path, monkeypatch, SETTINGS | changes)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_missing_is_named(converter):
    tensors, nodes = exported(random_vits())
    del tensors["enc_p.proj.bias"]
    voice = converter.Voice(converter.name_weights(tensors, nodes), converter.find_layers(nodes))
    vits = Vits(converter.make_config(voice, SETTINGS))
    with pytest.raises(converter.VoiceError, match="text_encoder.proj.bias: missing"):
        converter.load(vits, voice, SETTINGS["phoneme_id_map"])


@pytest.mark.parametrize(
    ("lacks", "message"),
    [("dec.ups.", "its decoder has no upsampling layers"), ("flow.flows.0.enc.in_layers.1", "'flow.+' is missing")],
)
def test_layers_that_are_missing_are_named(converter, lacks, message):
    tensors, nodes = exported(random_vits())
    layers = {name: layer for name, layer in converter.find_layers(nodes).items() if not name.startswith(lacks)}
    voice = converter.Voice(converter.name_weights(tensors, nodes), layers)
    with pytest.raises(converter.VoiceError, match=f"^no VITS as Piper exports it: {message}$"):
        converter.make_config(voice, SETTINGS)


def test_a_missing_file_ends_in_one_line(converter, tmp_path, capsys):
    assert converter.main([str(tmp_path / "none.onnx"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "none.onnx.json" in line


def test_a_vits_speaks_pairs_of_latent_and_waveform(tmp_path):
    vits = make_vits()
    speech.write_speech(vits, ["some words", "\u4e2d", "more words here"], tmp_path)
    wavs, latents = speech.folders(tmp_path)
    assert [path.name for path in sorted(wavs.iterdir())] == ["00001.wav", "00003.wav"]
    waveform, rate = sf.read(wavs / "00003.wav", dtype="float32")
    latent = torch.from_numpy(np.load(latents / "00003.npy"))[None]
    assert rate == SAMPLE_RATE and latent.shape == (1, CHANNELS, len(waveform) // HOP + 1)
    with torch.inference_mode():
        decoded = vits.waveform_decoder(latent[:, :, :-1]).flatten()
    torch.testing.assert_close(torch.from_numpy(waveform), decoded, atol=1 / 32768, rtol=0)


def test_what_is_said_depends_on_the_sentence_alone():
    vits = make_vits()
    vits.inference_noise_scale = 0.667
    latent, waveform = speech.speak(vits, "some words")
    torch.manual_seed(9)
    again = speech.speak(vits, "some words")
    drawn = torch.randn(1)
    assert np.array_equal(latent, again[0]) and np.array_equal(waveform, again[1])
    torch.manual_seed(9)
    assert drawn == torch.randn(1)  # the global generator is left as it was


def test_speech_of_another_vits_is_refused(tmp_path):
    speech.write_speech(make_vits(), ["some words"], tmp_path)
    with pytest.raises(DataError, match="latents of another weights"):
        speech.write_speech(make_vits(seed=6), ["more words"], tmp_path)


@pytest.fixture(params=["piper/apnet2", "ljspeech/apnet2_vits"])
def recipe(request):
    """Both recipes that can do without recordings, but that they make small networks."""
    with pytest.MonkeyPatch.context() as patch:
        module = scripts.load(scripts.RECIPES / request.param / "train_apnet2.py", patch)
        make_config = module.make_config

        def make_small_config(*args) -> Apnet2Config:
            config, small = make_config(*args), tiny.config(mpd_periods=[2], mrd_resolutions=[[512, 128, 512]])
            names = ["mpd_periods", "mpd_channels", "mrd_resolutions", "mrd_channels"]
            if config.phase_start == "none":  # the other one starts from a bundled vocoder
                names += ["amplitude", "phase"]
            for name in names:
                config[name] = small[name]
            config.eval_metrics, config.num_eval_loader_workers = [], 0
            return config

        patch.setattr(module, "make_config", make_small_config)
        yield module


def test_a_decoder_is_distilled_without_recordings(recipe, tmp_path):
    save_vits(make_vits(), tmp_path / "vits")
    (tmp_path / "text.txt").write_text("some words to say\n\nmore words than before\nand the last ones\n")
    places = {"vits_path": "vits", "text_path": "text.txt", "speech_path": "speech", "output_path": "out"}
    paths = [f"--{name}={tmp_path / place}" for name, place in places.items()]
    recipe.main([*paths, "--eval_split_size=1", "--batch_size=2", "--num_loader_workers=0", "--steps=1"])
    (run,) = (tmp_path / "out").glob("apnet2*")
    assert (run / "best_model.pth").is_file()
    assert len(list(speech.folders(tmp_path / "speech")[1].glob("*.npy"))) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--vits_path="], "--vits_path: none, expected the folder of a trained VITS"),
        (["--text_path=nowhere.txt"], "[Errno 2] No such file or directory: 'nowhere.txt'"),
    ],
)
def test_what_is_missing_is_named_in_one_line(recipe, tmp_path, settings, message):
    save_vits(make_vits(), tmp_path / "vits")
    given = [f"--vits_path={tmp_path / 'vits'}", f"--speech_path={tmp_path / 'speech'}", "--text_path=x"]
    assert scripts.refusal(recipe.main, *given, f"--output_path={tmp_path}", *settings) == f"error: {message}"
