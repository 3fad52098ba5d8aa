"""The `apnet2` command: arguments in, calls out. Whatever needs torch is imported when a command runs.

The commands for files are in `cli_files`, those that compare vocoders in `cli_compare`, those for models in
`cli_models`.
"""

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from apnet2_tts_plugin import __version__, cli_compare, cli_files, cli_models
from apnet2_tts_plugin.cli_shared import fail
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
  130  interrupted with Ctrl-C; no partial output is left
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
        return fail("interrupted", 130)
    except BrokenPipeError:  # as in `apnet2 list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 1
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Apnet2Error as error:
        return fail(str(error))


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

    cli_files.add_commands(add)

    cli_compare.add_commands(add)

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

    cli_models.add_commands(add)
    return parser


_AsWritten = argparse.RawDescriptionHelpFormatter


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
        return fail("approximate, and --strict allows exact pairings only")
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
