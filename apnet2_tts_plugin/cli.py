"""The `apnet2` command: arguments in, calls out. Whatever needs torch is imported when a command runs."""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apnet2_tts_plugin import __version__
from apnet2_tts_plugin.errors import Apnet2Error, PairingError

DESCRIPTION = """\
The APNet2 neural vocoder on the command line: vocode files, compare
vocoders, bring in official weights, and keep models under names that coqui-tts
finds too."""

EPILOG = """\
example:
  apnet2 vocode recording.wav vocoded.wav
  apnet2 vocode --help

exit status:
  0  all done
  1  something could not be done; one line on stderr says what and why
  2  wrong arguments
  130  interrupted with Ctrl-C; no partial file is left
"""

VOCODE = """\
Vocode files with a model. IN is one of:

  a .wav or .flac file  a recording, analysed to the model's mel and vocoded
                        (copy synthesis); the output has as many samples
  an .npy or .pt file   a natural-log mel (bands, frames) or (1, bands, frames)
                        with the model's analysis settings
  a folder              all such files in it and its sub-folders, which OUT
                        mirrors; files that cannot be vocoded are named and
                        skipped, and the exit status is 1 at the end

The output is 16-bit mono WAV at the model's sample rate, as loud as the model
makes it. It takes its name only when it is complete; an existing file is
replaced."""

VOCODE_EXAMPLES = """\
examples:
  apnet2 vocode recording.wav vocoded.wav
  apnet2 vocode mels/ wavs/ --model my_model --device cuda
"""

EVALUATE = """\
Compare vocoders on recordings: each gets the mel of every recording, and what it
makes of it is compared with the recording. RECORDINGS are .wav and .flac files
and folders of them. A vocoder, --system, is one of:

  NAME_OR_DIR            an APNet2: a name from `apnet2 list`, or a folder
  coqui:CONFIG_OR_DIR    any vocoder of coqui-tts: its config.json, with the
                         weights beside it, or that folder
  griffin_lim:ITERATIONS librosa's Griffin-Lim, from APNet2's mel
  wavs:DIR               .wav or .flac files that something else made, with the
                         names of the recordings; the recordings' own folder
                         shows what is the best that a metric can give

OUT gets report.html (tables, spectrograms and players, with nothing to load from
elsewhere), files.csv (every file and vocoder) and summary.json (means, and
differences to the first vocoder with 95 % bootstrap intervals). A file that
cannot be read or vocoded is named and skipped, and the exit status is 1 at the
end. A metric whose package is missing is left out; the extra `eval` has them all."""

EVALUATE_EXAMPLES = """\
examples:
  apnet2 evaluate recordings/ --out report
  apnet2 evaluate recordings/ --system apnet2 --system griffin_lim:60 \\
      --system coqui:hifigan/config.json --system wavs:others/ --out report
"""

IMPORT = """\
Turn the files of the official APNet2 (or FreeV) code into a folder that
coqui-tts can use: config.json and model.safetensors, and with the
discriminators also a checkpoint to fine-tune from. Nothing in the files is
executed, and nothing is written unless all tensors are there and fit."""

IMPORT_EXAMPLE = """\
example:
  apnet2 import g_01000000 --discriminators do_01000000 --out imported
"""

EXPORT = """\
Turn a checkpoint of coqui's Trainer, such as a run's best_model.pth, into a
model folder to use and to give away: config.json and model.safetensors, the
generator alone, with no path of this machine in it."""

EXPORT_EXAMPLE = """\
example:
  apnet2 export run/best_model.pth --out ljspeech --half
"""

INSTALL = """\
Copy a model into coqui's model folder (TTS_HOME is respected), where
`tts --vocoder_name NAME` and `apnet2 vocode --model NAME` find it. It is loaded
once to see that it works. A user's model of that name is replaced; under the
name of a bundled one it takes that one's place until it is removed."""

INSTALL_EXAMPLE = """\
example:
  apnet2 install imported --name official
  tts --text "Hello." --model_name tts_models/en/ljspeech/glow-tts \\
      --vocoder_name official --out_path hello.wav
"""

PAIR = """\
Say how well an acoustic model goes with a vocoder, setting by setting. A
setting is the same, converted exactly, converted approximately (with the mean
error of the mel in dB on a reference signal, if it alone were different), or
makes the pair impossible. Only configurations are read, and the file of
statistics that one may name; no weights."""

PAIR_EXAMPLES = """\
examples:
  apnet2 pair --tts tts_models/en/ljspeech/glow-tts
  apnet2 pair --tts my_run/config.json --vocoder ljspeech --strict

`APNET2_STRICT=1 tts ...` does for speech what --strict does here.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status; `argv` defaults to the process's arguments."""
    arguments = _parser().parse_args(argv)
    try:
        with _only_plugin_messages():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Apnet2Error as error:
        return _fail(str(error))


def _parser() -> Parser:
    parser = Parser(prog="apnet2", description=DESCRIPTION, epilog=EPILOG, formatter_class=_AsWritten)
    parser.add_argument("--version", action="version", version=f"apnet2-tts-plugin {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name, run, summary, description=None, epilog=None):
        description = description or f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(
            name, help=summary, description=description, epilog=epilog, formatter_class=_AsWritten
        )
        command.set_defaults(run=run)
        return command

    vocode = add("vocode", _vocode, "vocode a recording, a mel or a folder of them", VOCODE, VOCODE_EXAMPLES)
    vocode.add_argument("input", metavar="IN", help=".wav, .flac, .npy or .pt file, or a folder of them")
    vocode.add_argument("output", metavar="OUT", help=".wav file to write, or a folder if IN is one")
    vocode.add_argument(
        "--model", metavar="NAME_OR_DIR", default="apnet2", help="a name from `apnet2 list`, or a folder (%(default)s)"
    )
    vocode.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    vocode.add_argument(
        "--no-resample", action="store_true", help="refuse recordings of other sample rates instead of converting them"
    )
    vocode.add_argument(
        "--iterations",
        type=_natural_number,
        metavar="N",
        help="iterations of fast Griffin-Lim behind the model's phase, with its amplitude (as the model says)",
    )

    evaluate = add("evaluate", _evaluate, "compare vocoders on recordings", EVALUATE, EVALUATE_EXAMPLES)
    evaluate.add_argument("recordings", metavar="RECORDINGS", nargs="+", help=".wav or .flac files, or folders of them")
    evaluate.add_argument(
        "--system", metavar="VOCODER", action="append", help="a vocoder, may be given several times (apnet2)"
    )
    evaluate.add_argument("--out", metavar="OUT", required=True, help="folder to write to")
    evaluate.add_argument("--last", type=_positive, metavar="N", help="only the last N files of each folder by path")
    evaluate.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        default=1,
        help="processes to share the files, each with one thread (%(default)s)",
    )
    evaluate.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    evaluate.add_argument(
        "--rate", type=_positive, metavar="HZ", default=22050, help="sample rate to compare at (%(default)s)"
    )
    evaluate.add_argument(
        "--show",
        type=_positive,
        metavar="N",
        default=20,
        help="how many of the worst files to show and play (%(default)s)",
    )

    pair = add("pair", _pair, "say how well an acoustic model goes with a vocoder", PAIR, PAIR_EXAMPLES)
    pair.add_argument(
        "--tts",
        metavar="CONFIG",
        required=True,
        help="config.json of the acoustic model, its folder, or the name of a model that coqui-tts has downloaded",
    )
    pair.add_argument(
        "--vocoder",
        metavar="NAME_OR_CONFIG",
        default="apnet2",
        help="a name from `apnet2 list`, a folder or a config.json (%(default)s)",
    )
    pair.add_argument("--strict", action="store_true", help="exit with 1 if anything is only approximate")

    official = add("import", _import, "turn official checkpoints into a model folder", IMPORT, IMPORT_EXAMPLE)
    official.add_argument("generator", metavar="GENERATOR", help="official generator file, such as g_01000000")
    official.add_argument("--discriminators", metavar="DO", help="official discriminator file, such as do_01000000")
    official.add_argument("--config", help="official config.json (the LJSpeech settings)")
    official.add_argument("--out", metavar="DIR", required=True, help="folder to write to")

    export = add("export", _export, "turn a training checkpoint into a model folder", EXPORT, EXPORT_EXAMPLE)
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint of the Trainer, such as best_model.pth")
    export.add_argument("--out", metavar="DIR", required=True, help="folder to write to")
    export.add_argument("--half", action="store_true", help="store float16, half the size")

    install = add("install", _install, "give a model folder a name", INSTALL, INSTALL_EXAMPLE)
    install.add_argument("folder", metavar="DIR", help="folder with config.json and the weights")
    install.add_argument("--name", default="apnet2", help="name to install it under (%(default)s)")

    add("list", _list, "list the named models")

    remove = add("remove", _remove, "remove a model that was installed")
    remove.add_argument("name", metavar="NAME", help="a name from `apnet2 list`")
    return parser


def _natural_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of 0 or more")
    return int(text)


_AsWritten = argparse.RawDescriptionHelpFormatter


def _positive(argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument}, expected a number of at least 1")
    return int(argument)


def _vocode(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import loader, vocode

    pairs = vocode.input_output_pairs(arguments.input, arguments.output)
    model = loader.load_model(arguments.model, arguments.device)
    model.set_iterations(arguments.iterations)
    failures = vocode.vocode_files(model, pairs, not arguments.no_resample)
    if failures and len(pairs) > 1:
        _fail(f"{failures} of {len(pairs)} files could not be vocoded")
    return 1 if failures else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.evaluation import compare, report

    systems = tuple(dict.fromkeys(arguments.system or ["apnet2"]))
    recordings = compare.find_recordings(arguments.recordings, arguments.last)
    out = report.prepare(arguments.out)
    with tempfile.TemporaryDirectory(prefix="apnet2-") as waveforms:
        task = compare.Task(systems, arguments.device, arguments.rate, Path(waveforms))
        comparison = compare.compare(recordings, task, arguments.jobs)
        written = report.write(comparison, out, arguments.show)
    print(report.table(comparison))
    for path in written:
        print(f"wrote {path}")
    if comparison.skipped:
        return _fail(f"{len(comparison.skipped)} of {len(recordings)} files could not be evaluated")
    return 0


def _pair(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.pairing import convert, error, plan, report

    tts_config = loader.read_acoustic_config(arguments.tts)
    sides = tts_config, loader.audio_processor(tts_config), loader.read_vocoder_config(arguments.vocoder)
    planned = plan.make_plan(*sides)
    try:
        paired = convert.pair_configs(*sides)
    except PairingError:
        print(report.table(planned, {}))
        raise
    print(report.table(planned, error.errors_db(paired)))
    print(report.summary(paired))
    if arguments.strict and planned.verdict == plan.Verdict.APPROXIMATE:
        return _fail("approximate, and --strict allows exact pairings only")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.weights import convert, find

    out = arguments.out
    written = convert.import_official(arguments.generator, out, arguments.discriminators, arguments.config)
    _say_what_next(written, out)
    if arguments.discriminators:
        config, checkpoint = f"{out}/{find.CONFIG_NAME}", written[-1]
        command = f"python -m TTS.bin.train_vocoder --config_path {config} --restore_path {checkpoint}"
        print(f"fine-tune:  {command} --coqpit.data_path WAVS")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin.weights import convert

    _say_what_next(convert.export(arguments.checkpoint, arguments.out, arguments.half), arguments.out)
    return 0


def _say_what_next(written: list, out: str) -> None:
    for path in written:
        print(f"wrote {path}")
    print(f"try it:     apnet2 vocode IN OUT.wav --model {out}")
    print(f"name it:    apnet2 install {out} --name NAME")


def _install(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.weights import store

    model = loader.load_model(os.path.abspath(arguments.folder))  # a path, even where a model has the folder's name
    folder = store.install(arguments.folder, arguments.name)
    print(f"installed {folder}")
    file = "IN.wav" if model.config.input_features == "mel" else "LATENT.npy"
    print(f"use it:  apnet2 vocode {file} OUT.wav --model {arguments.name}")
    print(f"         tts --text TEXT --vocoder_name {arguments.name} --out_path OUT.wav")
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


@contextmanager
def _only_plugin_messages() -> Iterator[None]:
    """Show the plugin's warnings on stderr, without tearing a progress bar, and none of the libraries'."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    plugin = logging.getLogger(__package__)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("apnet2: %(message)s"))
    plugin.addHandler(handler)
    silent = logging.NullHandler()
    logging.getLogger().addHandler(silent)  # or Python prints what has no handler
    try:
        with warnings.catch_warnings(), logging_redirect_tqdm([plugin]):
            warnings.simplefilter("ignore")
            yield
    finally:
        plugin.removeHandler(handler)
        logging.getLogger().removeHandler(silent)


def _fail(message: str, status: int = 1) -> int:
    print(f"apnet2: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
