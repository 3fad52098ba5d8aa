"""The `apnet2` command: arguments in, calls out. Whatever needs torch is imported when a command runs."""

import argparse
import io
import logging
import os
import shlex
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
Vocode files with a model. Each IN is one of:

  a recording           analysed to the model's mel and vocoded (copy
                        synthesis); the output has as many samples. All formats
                        that libsndfile reads will do, such as WAV, FLAC, MP3,
                        Ogg and AIFF, and those of FFmpeg where it is installed
  an .npy or .pt file   a natural-log mel (bands, frames) or (1, bands, frames)
                        with the model's analysis settings, its frames centred
                        at multiples of the hop (see --framing for others); with
                        --tts, a mel as that acoustic model has it
  a folder              all such files in it and its sub-folders, which OUT
                        mirrors
  -                     standard input: any of these files

OUT is the file to write, in the format of its name: .wav, .flac, .mp3, .ogg,
.opus, .aiff and others. It is a folder if it exists as one, ends in /, or there
are several inputs; or - for standard output. The output is mono, of 16 bits, at
the model's sample rate, as loud as the model makes it, but scaled down where
its peak would be cut. It takes its name only when it is complete; an existing
file is replaced. Files that cannot be vocoded are named and skipped, and the
exit status is 1 at the end."""

VOCODE_EXAMPLES = """\
examples:
  apnet2 vocode recording.wav vocoded.flac
  apnet2 vocode *.wav vocoded/ --format mp3 --skip-existing
  apnet2 vocode mels/ wavs/ --model my_model --tts my_tts/config.json
  ffmpeg -i film.mkv -f wav - | apnet2 vocode - - | sox - -n stats
"""

MEL = """\
Write the natural-log mels of recordings, as a model analyses them, to .npy
files of shape (bands, frames) in float32: what `apnet2 vocode` makes of such a
file is what it makes of the recording. IN and OUT are as for `apnet2 vocode`.
"""

MEL_EXAMPLES = """\
examples:
  apnet2 mel recording.wav recording.npy
  apnet2 mel recordings/ mels/ --model my_model
"""

EVALUATE = """\
Compare vocoders on recordings: each gets the mel of every recording, and what
it makes of it is compared with the recording. RECORDINGS are audio files and
folders of them. A vocoder, --system, is one of:

  NAME_OR_DIR            an APNet2: a name from `apnet2 list`, or a folder
  coqui:CONFIG_OR_DIR    any vocoder of coqui-tts: its config.json, with the
                         weights beside it, or that folder
  griffin_lim:ITERATIONS librosa's Griffin-Lim, from APNet2's mel
  wavs:DIR               audio files that something else made, with the names
                         of the recordings; the recordings' own folder shows
                         what is the best that a metric can give

OUT gets report.html (tables, spectrograms and players, with nothing to load
from elsewhere), files.csv (every file and vocoder) and summary.json (means, and
differences to the first vocoder with 95 % bootstrap intervals). A file that
cannot be read or vocoded is named and skipped, and the exit status is 1 at the
end. A metric whose package is missing is left out; the extra `eval` has all."""

EVALUATE_EXAMPLES = """\
examples:
  apnet2 evaluate recordings/ --out report
  apnet2 evaluate recordings/ --system apnet2 --system griffin_lim:60 \\
      --system coqui:hifigan/config.json --system wavs:others/ --out report
"""

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

DEVICE = "auto, cpu, cuda, cuda:1, ... (%(default)s: CUDA if it is there)"

LIST = """\
List the named models, one a line: name, origin (bundled or user), what it
vocodes (a mel of so many bands, or the latent of a VITS of so many channels),
sample rate, size and folder."""

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not what a program has put in its place
            stream.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
    arguments = _parse(argv)
    try:
        with _only_plugin_messages():
            status = arguments.run(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # as in `apnet2 list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Apnet2Error as error:
        return _fail(str(error))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; those of IN ... OUT may stand on either side of an option, which argparse alone does not take."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("paths" not in arguments or any(word.startswith("-") and word != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.paths += rest
    return arguments


def _parser() -> Parser:
    parser = Parser(prog="apnet2", description=DESCRIPTION, epilog=EPILOG, formatter_class=_AsWritten)
    parser.add_argument("--version", action="version", version=f"apnet2-tts-plugin {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name, run, summary, description=None, epilog=None):
        description = description or f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(
            name, help=summary, description=description, epilog=epilog, formatter_class=_AsWritten
        )
        command.set_defaults(run=run, command=command)
        return command

    vocode = add("vocode", _vocode, "vocode recordings, mels or folders of them", VOCODE, VOCODE_EXAMPLES)
    _add_files(vocode, "recordings, .npy or .pt files, folders of them, or - for standard input")
    vocode.add_argument("--device", default="auto", help=DEVICE)
    vocode.add_argument(
        "--tts",
        metavar="CONFIG",
        help="the mels are in this acoustic model's scale, and converted: its config.json, its folder, or the name of "
        "a model that coqui-tts has downloaded",
    )
    vocode.add_argument(
        "--iterations",
        type=_natural_number,
        metavar="N",
        help="iterations of fast Griffin-Lim behind the model's phase, with its amplitude (as the model says)",
    )
    vocode.add_argument(
        "--framing",
        choices=("centred", "hifigan"),
        default="centred",
        help="frames of mels are centred at multiples of the hop, or as in HiFi-GAN and Matcha-TTS (%(default)s)",
    )
    vocode.add_argument("--normalize", action="store_true", help="scale each output to a peak of 1 dB below full scale")
    vocode.add_argument(
        "--format",
        type=_suffix,
        metavar="SUFFIX",
        help="format of the files in a folder and of standard output: wav, flac, mp3, ogg, opus, ... (wav)",
    )

    mel = add("mel", _mel, "write the mels of recordings", MEL, MEL_EXAMPLES)
    _add_files(mel, "recordings, folders of them, or - for standard input")

    evaluate = add("evaluate", _evaluate, "compare vocoders on recordings", EVALUATE, EVALUATE_EXAMPLES)
    evaluate.add_argument("recordings", metavar="RECORDINGS", nargs="+", help="audio files, or folders of them")
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
    evaluate.add_argument("--device", default="auto", help=DEVICE)
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

    install = add("install", _install, "give a model folder a name", INSTALL, INSTALL_EXAMPLE)
    install.add_argument("folder", metavar="DIR", help="folder with config.json and the weights")
    install.add_argument("--name", default="apnet2", help="name to install it under (%(default)s)")

    add("list", _list, "list the named models", LIST)

    remove = add("remove", _remove, "remove a model that was installed")
    remove.add_argument("name", metavar="NAME", help="a name from `apnet2 list`")
    return parser


def _add_files(command: Parser, inputs: str) -> None:
    """The arguments of a command that turns recordings into files."""
    command.usage = f"{command.prog} [options] IN [IN ...] OUT"
    command.add_argument("paths", metavar="IN ... OUT", nargs="+", help=f"{inputs}; last, the file or folder to write")
    command.add_argument(
        "--model", metavar="NAME_OR_DIR", default="apnet2", help="a name from `apnet2 list`, or a folder (%(default)s)"
    )
    command.add_argument(
        "--no-resample", action="store_true", help="refuse recordings of other sample rates instead of converting them"
    )
    command.add_argument("--skip-existing", action="store_true", help="leave files alone that are there already")


def _suffix(text: str) -> str:
    from apnet2_tts_plugin.audio import FORMATS

    suffix = f".{text.lower().removeprefix('.')}"
    if suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r}, expected one of {', '.join(FORMATS)}")
    return suffix


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
    from apnet2_tts_plugin import audio, batch, loader, vocode

    if arguments.tts and arguments.framing != "centred":
        arguments.command.error("--framing hifigan: leave it out, frames of mels for --tts are centred")
    readable = (*audio.SUFFIXES, *vocode.FEATURE_SUFFIXES)
    jobs = _jobs(arguments, readable, tuple(audio.FORMATS), arguments.format)
    if not jobs:
        return 0
    model = loader.load_model(arguments.model, arguments.device)
    model.set_iterations(arguments.iterations)
    if arguments.framing != "centred" and model.config.input_features != "mel":
        return _fail("--framing hifigan is for mels, and this model vocodes the latents of a VITS", 2)
    rate, pairing = model.config.audio.sample_rate, None
    if arguments.tts:
        tts_config = loader.read_acoustic_config(arguments.tts)
        pairing = vocode.pairing_for_mels(tts_config, loader.audio_processor(tts_config), model.config)

    def do(job):
        resample, framing = not arguments.no_resample, arguments.framing
        normalize, progress = arguments.normalize, len(jobs) == 1
        waveform = vocode.vocode_file(model, job.source, resample, pairing, framing, normalize, progress)
        batch.write(job, lambda file: audio.encode(file, waveform.numpy(), rate, job.suffix))
        return len(waveform) / rate

    return _report(batch.run(jobs, do), "vocoded")


def _mel(arguments: argparse.Namespace) -> int:
    import numpy as np

    from apnet2_tts_plugin import audio, batch, loader, vocode

    jobs = _jobs(arguments, audio.SUFFIXES, (".npy",))
    if not jobs:
        return 0
    config = loader.read_vocoder_config(arguments.model)
    log_mel = vocode.mel_analysis(config)

    def do(job):
        mel = vocode.analyse_file(log_mel, config.audio, job.source, not arguments.no_resample)
        batch.write(job, lambda file: np.save(file, mel))
        return (mel.shape[1] - 1) * config.audio.hop_length / config.audio.sample_rate

    return _report(batch.run(jobs, do), "analysed")


def _jobs(arguments: argparse.Namespace, readable: tuple, writable: tuple, suffix: str | None = None) -> list:
    """What is to be done for the arguments of `_add_files`."""
    from apnet2_tts_plugin import batch

    *inputs, output = arguments.paths
    if not inputs:
        arguments.command.error("expected IN and OUT")
    jobs = batch.plan(inputs, output, readable, writable, suffix)
    return batch.without_existing(jobs) if arguments.skip_existing else jobs


def _report(done, verb: str) -> int:
    """Say how it went, and return the exit status."""
    if done.n_files:
        print(f"apnet2: {verb} {done}", file=sys.stderr)
    n_jobs = done.n_files + done.n_failed
    if done.n_failed and n_jobs > 1:
        _fail(f"{done.n_failed} of {n_jobs} files could not be {verb}")
    return 1 if done.n_failed else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.evaluation import compare, report

    systems = tuple(dict.fromkeys(arguments.system or ["apnet2"]))
    recordings = compare.find_recordings(arguments.recordings, arguments.last)
    out = report.prepare(arguments.out)
    with tempfile.TemporaryDirectory(prefix="apnet2-") as waveforms:
        task = compare.Task(systems, str(loader.usable_device(arguments.device)), arguments.rate, Path(waveforms))
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
