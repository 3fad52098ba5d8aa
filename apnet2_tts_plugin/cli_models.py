"""The commands of `apnet2` for models: to bring them in, name them, list them and take them away."""

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

IMPORT = """\
Turn the files of the official APNet2 (or FreeV) code into a new folder that
coqui-tts can use: config.json and model.safetensors, and with the
discriminators also a checkpoint to fine-tune from. Nothing in the files is
executed, and nothing is written unless all tensors are there and fit."""

IMPORT_EXAMPLE = """\
example:
  apnet2 import g_01000000 --discriminators do_01000000 --out imported
"""

EXPORT = """\
Turn a model into one file that runs without this package, weights inside:

  OUT.onnx   an ONNX graph (onnxruntime and others)
  OUT.pt2    a program of torch.export

from the natural-log mel, or latent, to the waveform, of any length and batch.
It is compared with the model before it takes its name. Or turn a checkpoint of
coqui's Trainer, such as a run's best_model.pth, into a new model folder to use
and to give away, --out: config.json and model.safetensors, the generator alone,
with no path of this machine in it."""

EXPORT_EXAMPLE = """\
examples:
  apnet2 export apnet2 apnet2.onnx
  apnet2 export run/best_model.pth --out ljspeech --half
"""

INSTALL = """\
Bring a model into coqui's model folder (TTS_HOME is respected), where
`tts --vocoder_name NAME` and `apnet2 vocode --model NAME` find it. SOURCE is
one of:

  a folder              with config.json and the weights
  a file of weights     model.safetensors with its config.json beside it; or a
                        checkpoint of coqui's Trainer, or an official generator
                        such as g_01000000 (of APNet2 or FreeV), which are
                        converted
  https://HOST/FILE     such a file, or http://; a config.json beside it is
                        fetched too
  hf://OWNER/REPO       a model repository of Hugging Face, with @REVISION and
                        /PATH of a file or folder in it where needed

The model is loaded once to see that it works, and nothing in its files is
executed. It is there whole or not at all; what an interrupted download got so
far is kept, and the same command goes on from there. A user's model of that
name is replaced; under the name of a bundled one it takes that one's place
until it is removed."""

INSTALL_EXAMPLES = """\
examples:
  apnet2 install imported --name official
  apnet2 install https://example.org/voice/model.safetensors --name voice
  apnet2 install hf://owner/repository@v1.0/g_01000000 --name official
  tts --text "Hello." --model_name tts_models/en/ljspeech/glow-tts \\
      --vocoder_name official --out_path hello.wav
"""

LIST = """\
List the named models, one a line: name, origin (bundled or user), what it
vocodes (a mel of so many bands, or the latent of a VITS of so many channels),
sample rate, size and folder."""


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to a parser by `add(name, run, summary, description, epilog)`."""
    official = add("import", _import, "turn official checkpoints into a model folder", IMPORT, IMPORT_EXAMPLE)
    official.add_argument("generator", metavar="GENERATOR", help="official generator file, such as g_01000000")
    official.add_argument("--discriminators", metavar="DO", help="official discriminator file, such as do_01000000")
    official.add_argument("--config", help="official config.json (the LJSpeech settings)")
    official.add_argument("--out", metavar="DIR", required=True, help="folder to write to, new or empty")

    summary = "turn a model into an ONNX graph, or a training checkpoint into a model folder"
    export = add("export", _export, summary, EXPORT, EXPORT_EXAMPLE)
    export.usage = f"{export.prog} [-h] (MODEL OUT | CHECKPOINT --out DIR [--half])"
    export.add_argument(
        "source", metavar="MODEL", help="a name from `apnet2 list`, or a folder; for --out a checkpoint of the Trainer"
    )
    export.add_argument("file", metavar="OUT", nargs="?", help="file to write, .onnx or .pt2")
    export.add_argument("--out", metavar="DIR", help="folder to write to, new or empty")
    export.add_argument("--half", action="store_true", help="store float16 in DIR, half the size")

    install = add("install", _install, "bring in a model and give it a name", INSTALL, INSTALL_EXAMPLES)
    install.add_argument("source", metavar="SOURCE", help="folder, file, https:// or hf:// address of a model")
    install.add_argument("--name", default="apnet2", help="name to install it under (%(default)s)")
    install.add_argument("--config", metavar="FILE", help="its config.json (the one beside a file of weights)")
    install.add_argument(
        "--sha256", type=_sha256, metavar="HEX", help="refuse a file of weights that has another SHA-256 than this"
    )

    add("list", _list, "list the named models", LIST)

    remove = add("remove", _remove, "remove a model that was installed")
    remove.add_argument("name", metavar="NAME", help="a name from `apnet2 list`")


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9A-Fa-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected 64 hexadecimal digits")
    return text.lower()


def _import(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.weights import convert, find

    out = arguments.out
    written = convert.import_official(arguments.generator, out, arguments.discriminators, arguments.config)
    _say_what_next(written, out)
    if arguments.discriminators:
        config, checkpoint = shlex.quote(f"{out}/{find.CONFIG_NAME}"), shlex.quote(str(written[-1]))
        command = f"python -m TTS.bin.train_vocoder --config_path {config} --restore_path {checkpoint}"
        print(f"fine-tune:  {command} --coqpit.data_path WAVS")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if (arguments.file is None) == (arguments.out is None):
        arguments.command.error("expected OUT.onnx or OUT.pt2, or else --out DIR")
    if arguments.file is not None:
        return _export_graph(arguments)
    from apnet2_tts_plugin.weights import convert

    _say_what_next(convert.export(arguments.source, arguments.out, arguments.half), arguments.out)
    return 0


def _export_graph(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    if arguments.half:
        arguments.command.error("--half: leave it out, the weights in a graph are float32")
    if path.suffix not in (".onnx", ".pt2"):
        arguments.command.error(f"{path}: expected a name that ends in .onnx or .pt2; a folder is given by --out DIR")
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.export import write

    write.require_packages(path)
    error = write.write_graph(loader.load_model(arguments.source), path)
    print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB, {error:.1e} of the peak from the model")
    return 0


def _say_what_next(written: list, out: str) -> None:
    for path in written:
        print(f"wrote {path}")
    folder = shlex.quote(out)
    print(f"try it:     apnet2 vocode IN OUT.wav --model {folder}")
    print(f"name it:    apnet2 install {folder} --name NAME")


def _install(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.weights import store

    store.check_name(arguments.name)  # before anything is fetched
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.weights import sources

    with sources.model_folder(arguments.source, arguments.config, arguments.sha256) as made:
        model = loader.load_model(made)
        folder = store.install(made, arguments.name)
    print(f"installed {folder}")
    file, acoustic = "IN.wav", f"--model_name {store.ACOUSTIC_MODEL}"
    if model.config.input_features == "latent":
        file, acoustic = "LATENT.npy", "--model_path VITS/model.pth --config_path VITS/config.json"
    print(f"use it:  apnet2 vocode {file} OUT.wav --model {arguments.name}")
    print(f"         tts --text TEXT {acoustic} --vocoder_name {arguments.name} --out_path OUT.wav")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.weights import store

    for row in store.model_table():
        print(row)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.weights import store

    store.remove(arguments.name)
    print(f"removed {arguments.name}")
    return 0
