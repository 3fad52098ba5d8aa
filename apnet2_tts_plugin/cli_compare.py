"""The commands of `apnet2` that compare vocoders: by what they sound like, and by how fast they are."""

import argparse
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from apnet2_tts_plugin.cli_shared import DEVICE, fail, positive

logger = logging.getLogger(__name__)

EVALUATE = """\
Compare vocoders on recordings: each gets the mel of every recording, and what
it makes of it is compared with the recording. RECORDINGS are audio files and
folders of them. A vocoder, --system, is one of:

  NAME_OR_DIR            an APNet2: a name from `apnet2 list`, or a folder; with
                         @RUNTIME behind it in that one (docs/runtimes.md)
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

BENCH = """\
Measure vocoders side by side, all in turn, in several rounds: times real time
at several lengths and batches, the time to the first sample, peak memory, load
time, and how near they are to the machine's rate of matrix products. A
vocoder, --system, is one of:

  NAME_OR_DIR            an APNet2: a name from `apnet2 list`, or a folder
  preset:NAME            base, freev, pitch or tiny, with random weights
    either with @RUNTIME behind it: packed, bfloat16, int8 (docs/runtimes.md)
  plain                  the official code, transcribed as it is
  hifigan_v1, hifigan_v2, univnet, multiband_melgan
                         of coqui-tts, at their released sizes, random weights
  vocos                  if installed (pip install vocos), random weights
  griffin_lim:ITERATIONS librosa's
  all                    all of these

Speeds are also shown as ratios to `plain`, or to the first vocoder if that is
not measured, with the quartiles of the rounds. Lengths over 60 seconds are
measured once, in pieces, for what can vocode pieces."""

BENCH_EXAMPLES = """\
examples:
  apnet2 bench
  apnet2 bench --system all --seconds 0.25 1 5 20 600 --batch 1 16 --json bench.json
  apnet2 bench --system apnet2 --system apnet2@bfloat16 --text "Hello there."
  apnet2 bench --system apnet2 --system griffin_lim:60 --plot speed.svg --report report
"""


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands, by the function that makes a command of a name, what runs it, and its help."""
    evaluate = add("evaluate", _evaluate, "compare vocoders on recordings", EVALUATE, EVALUATE_EXAMPLES)
    evaluate.add_argument("recordings", metavar="RECORDINGS", nargs="+", help="audio files, or folders of them")
    evaluate.add_argument(
        "--system", metavar="VOCODER", action="append", help="a vocoder, may be given several times (apnet2)"
    )
    evaluate.add_argument("--out", metavar="OUT", required=True, help="folder to write to")
    evaluate.add_argument("--last", type=positive, metavar="N", help="only the last N files of each folder by path")
    evaluate.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        default=1,
        help="processes to share the files, each with one thread (%(default)s)",
    )
    evaluate.add_argument("--device", default="auto", help=DEVICE)
    evaluate.add_argument(
        "--rate", type=positive, metavar="HZ", default=22050, help="sample rate to compare at (%(default)s)"
    )
    evaluate.add_argument(
        "--show",
        type=positive,
        metavar="N",
        default=20,
        help="how many of the worst files to show and play (%(default)s)",
    )

    bench = add("bench", _bench, "measure how fast vocoders are", BENCH, BENCH_EXAMPLES)
    bench.add_argument(
        "--system",
        metavar="VOCODER",
        action="append",
        help="a vocoder, may be given several times (plain, preset:base, apnet2, apnet2-tiny, hifigan_v1)",
    )
    bench.add_argument(
        "--seconds",
        metavar="S",
        type=_seconds,
        nargs="+",
        default=[0.25, 1.0, 5.0],
        help="lengths of what is vocoded (0.25 1 5)",
    )
    bench.add_argument(
        "--batch",
        metavar="N",
        type=positive,
        nargs="+",
        default=[1],
        help="how many at once; above 1 up to 5 s each (1)",
    )
    bench.add_argument(
        "--rounds", metavar="N", type=positive, default=5, help="runs to take the median of (%(default)s)"
    )
    bench.add_argument(
        "--limit",
        metavar="S",
        type=_seconds,
        default=10.0,
        help="leave a vocoder out where one run would take longer than this (%(default)s)",
    )
    bench.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        default=os.cpu_count(),
        help="of the processor (%(default)s, all of them)",
    )
    bench.add_argument("--device", type=_unnumbered, default="cpu", help="cpu or cuda (%(default)s)")
    bench.add_argument("--text", help="also measure speech of this text, stage by stage, with the bundled voice")
    bench.add_argument("--json", metavar="FILE", help="file to write the figures to")
    bench.add_argument("--plot", metavar="FILE", help="picture (.svg or .png) of quality against speed, with --report")
    bench.add_argument("--report", metavar="DIR", help="what `apnet2 evaluate` wrote of the same vocoders")


def _seconds(argument: str) -> float:
    try:
        seconds = float(argument)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{argument}, expected a number of seconds from 0.05 to 3600")
    return seconds


def _unnumbered(device: str) -> str:
    if ":" in device:
        raise argparse.ArgumentTypeError(f"{device}, expected cpu or cuda; CUDA_VISIBLE_DEVICES chooses another GPU")
    return device


def _evaluate(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.evaluation import compare, report
    from apnet2_tts_plugin.files import prepare_folder, removed_if_empty

    systems = tuple(dict.fromkeys(arguments.system or ["apnet2"]))
    recordings = compare.find_recordings(arguments.recordings, arguments.last)
    out = prepare_folder(arguments.out)
    with removed_if_empty(out), tempfile.TemporaryDirectory(prefix="apnet2-") as waveforms:
        task = compare.Task(systems, str(loader.usable_device(arguments.device)), arguments.rate, Path(waveforms))
        comparison = compare.compare(recordings, task, arguments.jobs)
        written = report.write(comparison, out, arguments.show)
    print(report.table(comparison))
    for path in written:
        print(f"wrote {path}")
    if comparison.skipped:
        return fail(f"{len(comparison.skipped)} of {len(recordings)} files could not be evaluated")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if bool(arguments.plot) != bool(arguments.report):
        arguments.command.error("--plot and --report: give both, or none")
    from apnet2_tts_plugin import loader
    from apnet2_tts_plugin.bench import measure, plot, report, speech, systems
    from apnet2_tts_plugin.files import prepare_file

    device = loader.usable_device(arguments.device).type
    words = arguments.system or ["plain", "preset:base", *systems.BUNDLED, "hifigan_v1"]
    expanded = [systems.all_systems(device) if word == "all" else [word] for word in words]
    words = list(dict.fromkeys(name for names in expanded for name in names))
    lengths = _lengths(arguments, systems.LONGEST_IN_BATCH)
    quality = plot.prepare(arguments.plot, arguments.report, words, lengths) if arguments.plot else None
    if arguments.json:
        prepare_file(arguments.json)
    plan = measure.Plan(words, lengths, arguments.rounds, arguments.limit, arguments.threads, device)
    speeds, figures = measure.measure(plan)
    stages = speech.measure(words, arguments.text, plan) if arguments.text else []
    print(report.text(plan, speeds, figures, stages))
    if arguments.json:
        report.write_json(Path(arguments.json), plan, speeds, figures, stages)
    if quality:
        plot.write(arguments.plot, speeds, quality)
    return 0


def _lengths(arguments: argparse.Namespace, longest: float) -> list[tuple[float, int]]:
    """Seconds and batch of each mel; those above `longest` seconds in a batch are named and left out."""
    asked = [(seconds, batch) for batch in sorted(set(arguments.batch)) for seconds in sorted(set(arguments.seconds))]
    lengths = [(seconds, batch) for seconds, batch in asked if batch == 1 or seconds <= longest]
    too_long = ", ".join(f"{seconds:g} s x {batch}" for seconds, batch in asked if (seconds, batch) not in lengths)
    expected = f"expected --seconds up to {longest:g} with --batch above 1"
    if not lengths:
        arguments.command.error(f"nothing to measure without {too_long}, {expected}")
    if too_long:
        logger.warning("left out: %s, %s", too_long, expected)
    return lengths
