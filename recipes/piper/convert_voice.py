"""Convert a Piper voice to a VITS of coqui-tts.

    python recipes/piper/convert_voice.py en_US-joe-medium.onnx joe

A Piper voice is a VITS, exported to ONNX for use alone. All weights that speaking needs are in the file, and become
those of a checkpoint of coqui's, which gives the same waveforms. The posterior encoder and the discriminators, which
only training needs, are not in the file: theirs are random, so that the VITS cannot encode recordings.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from TTS.config import BaseAudioConfig
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models.vits import Vits

from apnet2_tts_plugin.errors import Apnet2Error, MissingPackageError, one_line
from apnet2_tts_plugin.files import fill_folder, read_json

PAD, BOS, EOS = "_", "^", "$"
EMBEDDING = "enc_p.emb.weight"
NAMES = (  # of Piper's modules and of coqui's, the longer ones of the same beginning first
    ("enc_p.", "text_encoder."),
    ("dec.", "waveform_decoder."),
    ("dp.flows.0.m", "duration_predictor.flows.0.translation"),
    ("dp.flows.0.logs", "duration_predictor.flows.0.log_scale"),
    ("dp.", "duration_predictor."),
    ("flow.", "flow."),
)
TRAINING_ONLY = ("posterior_encoder.", "disc.", "duration_predictor.post_", "duration_predictor.flows.1.")


class VoiceError(Apnet2Error, ValueError):
    """A Piper voice that cannot be converted."""


class Layer(NamedTuple):
    """A convolution of the graph: its name in PyTorch, as "dec.ups.0", its stride and its dilation."""

    name: str
    stride: int
    dilation: int


class Voice(NamedTuple):
    """What a voice's file has: weights by their names in Piper's PyTorch code, and its convolutions."""

    weights: dict[str, np.ndarray]
    layers: dict[str, Layer]


def read_voice(path: Path) -> Voice:
    """Read a voice's ONNX file.

    Raises:
        MissingPackageError: if the package onnx is not installed.
        VoiceError: if it is no such file.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError("the package onnx is not installed; pip install onnx") from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's own, of no common base
        raise VoiceError(f"{path}: cannot be read as an ONNX file ({one_line(error)})") from error
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return Voice(name_weights(tensors, graph.node), find_layers(graph.node))


def name_weights(tensors: dict[str, np.ndarray], nodes: Iterable[Any]) -> dict[str, np.ndarray]:
    """Weights by their names in Piper's PyTorch code.

    The exporter keeps the names of tensors that it takes as they are. Those that it computes have none: weights with
    their norm (weight normalisation) fused, and the scale of a flow. The node that uses them knows whose they are, by a
    name like "/flow/flows.6/enc/in_layers.0/Conv".

    Args:
        tensors: Initializers of the graph by their names there.
        nodes: Nodes of the graph.
    """
    weights = dict(tensors)
    for node in nodes:
        module, inputs = _module(node), list(node.input)
        if node.op_type in ("Conv", "ConvTranspose") and inputs[1] in tensors:
            weights[f"{module}.weight"] = tensors[inputs[1]]
        elif node.op_type == "Gather" and module == "enc_p.emb" and inputs[0] in tensors:
            weights[EMBEDDING] = tensors[inputs[0]]
        elif node.op_type == "Mul" and module == "dp.flows.0" and inputs[1] in tensors:
            weights["dp.flows.0.logs"] = -np.log(tensors[inputs[1]])
    return {name: weight for name, weight in weights.items() if name.startswith(tuple(old for old, _ in NAMES))}


def find_layers(nodes: Iterable[Any]) -> dict[str, Layer]:
    """The convolutions among the nodes of the graph, by their names in PyTorch."""
    layers = {}
    for node in nodes:
        if node.op_type in ("Conv", "ConvTranspose"):
            sizes = {attribute.name: attribute.ints for attribute in node.attribute}
            layers[_module(node)] = Layer(_module(node), sizes["strides"][0], sizes["dilations"][0])
    return layers


def _module(node: Any) -> str:
    """The PyTorch module that a node is of: "flow.flows.6.pre" for the node "/flow/flows.6/pre/Conv"."""
    return ".".join(node.name.split("/")[1:-1])


def coqui_name(name: str) -> str:
    """coqui's name of a weight of Piper's; it counts the layers of a flow without those that only flip channels."""
    for old, new in NAMES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    parts = name.split(".")
    if parts[:2] == ["flow", "flows"]:
        parts[2] = str(int(parts[2]) // 2)
    elif parts[:2] == ["duration_predictor", "flows"]:
        parts[2] = str((int(parts[2]) + 1) // 2)
    return ".".join(parts)


def model_args(voice: Voice, settings: dict[str, Any]) -> VitsArgs:
    """The sizes of the VITS, which the shapes of the weights and the convolutions tell.

    Raises:
        VoiceError: if it is no VITS of one speaker with a stochastic duration predictor.
    """
    weights, layers, inference = voice.weights, voice.layers, settings.get("inference", {})
    n_ups = _count(layers, "dec.ups.{}")
    if not n_ups:
        raise VoiceError("no VITS as Piper exports it: its decoder has no upsampling layers")
    try:
        _, hidden_channels = weights[EMBEDDING].shape
        feed_forward = weights["enc_p.encoder.ffn_layers.0.conv_1.weight"]
        relative = weights["enc_p.encoder.attn_layers.0.emb_rel_k"]
        flow = weights["flow.flows.0.enc.in_layers.0.weight"]
        weights["dp.flows.0.logs"]
        n_kernels = _count(layers, "dec.resblocks.{}.convs.0") // n_ups
        kind = "2"
        if not n_kernels:
            kind, n_kernels = "1", _count(layers, "dec.resblocks.{}.convs1.0") // n_ups
        convs = "dec.resblocks.{}.convs.{}" if kind == "2" else "dec.resblocks.{}.convs1.{}"
        n_dilations = _count(layers, convs.format(0, "{}"))
        return VitsArgs(
            hidden_channels=hidden_channels,
            hidden_channels_ffn_text_encoder=feed_forward.shape[0],
            num_heads_text_encoder=hidden_channels // relative.shape[2],
            num_layers_text_encoder=_count(layers, "enc_p.encoder.attn_layers.{}.conv_q"),
            kernel_size_text_encoder=feed_forward.shape[2],
            kernel_size_flow=flow.shape[2],
            dilation_rate_flow=layers["flow.flows.0.enc.in_layers.1"].dilation,
            num_layers_flow=_count(layers, "flow.flows.0.enc.in_layers.{}"),
            resblock_type_decoder=kind,
            resblock_kernel_sizes_decoder=[weights[f"{convs.format(i, 0)}.weight"].shape[2] for i in range(n_kernels)],
            resblock_dilation_sizes_decoder=[
                [layers[convs.format(i, j)].dilation for j in range(n_dilations)] for i in range(n_kernels)
            ],
            upsample_rates_decoder=[layers[f"dec.ups.{i}"].stride for i in range(n_ups)],
            upsample_kernel_sizes_decoder=[weights[f"dec.ups.{i}.weight"].shape[2] for i in range(n_ups)],
            upsample_initial_channel_decoder=weights["dec.conv_pre.weight"].shape[0],
            inference_noise_scale=inference.get("noise_scale", 0.667),
            inference_noise_scale_dp=inference.get("noise_w", 0.8),
            length_scale=inference.get("length_scale", 1.0),
            init_discriminator=False,
        )
    except KeyError as error:
        raise VoiceError(f"no VITS as Piper exports it: {one_line(error)} is missing") from error
    except (ZeroDivisionError, ValueError) as error:
        raise VoiceError(f"no VITS as Piper exports it: its weights have other shapes ({one_line(error)})") from error


def _count(layers: dict[str, Layer], pattern: str) -> int:
    """How many of the layers `pattern` with 0, 1, 2 ... in it there are."""
    number = 0
    while pattern.format(number) in layers:
        number += 1
    return number


def make_config(voice: Voice, settings: dict[str, Any]) -> VitsConfig:
    """The configuration of the VITS: Piper's phonemes, which espeak-ng finds, with its blanks, beginning and end.

    Args:
        voice: The voice.
        settings: What its `.onnx.json` file has.

    Raises:
        VoiceError: if it speaks letters instead of espeak-ng's phonemes, or has several speakers.
    """
    if settings.get("num_speakers", 1) > 1:
        raise VoiceError(f"a voice of {settings['num_speakers']} speakers, expected one speaker")
    if settings.get("phoneme_type", "espeak") != "espeak":
        raise VoiceError(f"phoneme_type: {settings['phoneme_type']!r}, expected 'espeak'")
    args, language = model_args(voice, settings), settings["espeak"]["voice"]
    symbols = [symbol for symbol in settings["phoneme_id_map"] if len(symbol) == 1]
    return VitsConfig(
        model_args=args,
        audio=BaseAudioConfig(
            sample_rate=settings["audio"]["sample_rate"],
            hop_length=int(np.prod(args.upsample_rates_decoder)),
            mel_fmin=0.0,
            mel_fmax=None,
        ),
        use_phonemes=True,
        phonemizer="espeak",
        phoneme_language=language,
        # its numbers are words in English, whatever the language
        text_cleaner="phoneme_cleaners" if language.startswith("en") else "multilingual_phoneme_cleaners",
        add_blank=True,
        enable_eos_bos_chars=True,
        characters=CharactersConfig(
            characters_class="TTS.tts.utils.text.characters.IPAPhonemes",
            characters="".join(symbol for symbol in symbols if symbol not in (PAD, BOS, EOS)),
            punctuations="",
            pad=PAD,
            blank=PAD,
            bos=BOS,
            eos=EOS,
            is_unique=False,
            is_sorted=False,
        ),
        test_sentences=[],
    )


@torch.no_grad()
def load(vits: Vits, voice: Voice, ids: dict[str, list[int]]) -> None:
    """Give a VITS the weights of a voice.

    coqui has an order of its own for a vocabulary, so the embeddings are put in that order.

    Args:
        vits: The VITS, of the voice's sizes.
        voice: The voice.
        ids: Its symbols' numbers.

    Raises:
        VoiceError: if a weight is missing or has another shape.
    """
    state = {coqui_name(name): torch.from_numpy(np.array(weight)) for name, weight in voice.weights.items()}
    embedding = coqui_name(EMBEDDING)
    state[embedding] = state[embedding][[ids[symbol][0] for symbol in vits.tokenizer.characters.vocab]]
    given = set()
    for name, weight in state.items():
        path, _, leaf = name.rpartition(".")
        try:
            given |= assign(vits.get_submodule(path), leaf, weight, path)
        except (AttributeError, RuntimeError) as error:
            raise VoiceError(f"{name}: does not fit a VITS of coqui's ({one_line(error)})") from error
    missing = [name for name, _ in vits.named_parameters() if name not in given and not name.startswith(TRAINING_ONLY)]
    if missing:
        raise VoiceError(f"{missing[0]}: missing in the voice, and {len(missing) - 1} more")


def assign(module: nn.Module, leaf: str, weight: Tensor, path: str) -> set[str]:
    """Set a weight, of which a weight-normalised module keeps norm and direction; returns the parameters' names."""
    parameter = getattr(module, leaf)
    if parameter.shape != weight.shape:
        raise RuntimeError(f"shape {tuple(weight.shape)}, expected {tuple(parameter.shape)}")
    if parametrize.is_parametrized(module, leaf):
        setattr(module, leaf, weight)
        return {f"{path}.parametrizations.{leaf}.original{i}" for i in (0, 1)}
    parameter.copy_(weight)
    return {f"{path}.{leaf}"}


def convert(onnx_path: Path, config_path: Path, out: Path) -> Vits:
    """Write `config.json` and `model.pth` of a voice into a new folder; returns the VITS.

    Raises:
        VoiceError: if the voice is none that can be converted.
        OutputError: if the folder is not empty.
        OSError: if a file cannot be read or written.
    """
    try:
        settings = read_json(config_path)
    except ValueError as error:
        raise VoiceError(f"{config_path}: not JSON ({one_line(error)})") from error
    voice = read_voice(onnx_path)
    try:
        config = make_config(voice, settings)
        vits = Vits(config)
        load(vits, voice, settings["phoneme_id_map"])
    except (KeyError, TypeError) as error:
        raise VoiceError(f"{config_path}: not the settings of a Piper voice ({one_line(error)})") from error
    with fill_folder(out, last="config.json") as folder:
        torch.save({"model": vits.state_dict()}, folder / "model.pth")
        config.save_json(str(folder / "config.json"))
    return vits


def main(argv: list[str] | None = None) -> int:
    """Convert the voice that the command line names."""
    parser = argparse.ArgumentParser(description="Convert a Piper voice to a VITS of coqui-tts.")
    parser.add_argument("voice", type=Path, help="The voice's .onnx file.")
    parser.add_argument("out", type=Path, help="New folder for the VITS: model.pth and config.json.")
    parser.add_argument("--config", type=Path, help="Its settings. Defaults to the voice's file with .json behind.")
    args = parser.parse_args(argv)
    try:
        convert(args.voice, args.config or Path(f"{args.voice}.json"), args.out)
    except (Apnet2Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f'tts --model_path {args.out}/model.pth --config_path {args.out}/config.json --text "..."')
    return 0


if __name__ == "__main__":
    sys.exit(main())
