"""The figures as Markdown and as JSON, with all that they hold for."""

import json
import platform
import shlex
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from apnet2_tts_plugin.bench import measure
from apnet2_tts_plugin.bench.speech import Stages
from apnet2_tts_plugin.files import write_text


def text(plan: measure.Plan, speeds: list[measure.Speed], figures: list[measure.Figures], stages: list[Stages]) -> str:
    """What was measured with, and a table of speeds, one of the other figures, and one of speech if it was measured."""
    about = conditions(plan.device, plan.threads)
    about += f" Medians of {plan.rounds} rounds: `{command()}`. In brackets the ratio to the speed of "
    about += f"`{plan.reference}`, with its quartiles."
    tables = [_speed_table(plan, speeds), _figure_table(speeds, figures)]
    return "\n\n".join([about, *tables, *([_speech_table(stages)] if stages else [])])


def write_json(
    path: Path, plan: measure.Plan, speeds: list[measure.Speed], figures: list[measure.Figures], stages: list[Stages]
) -> None:
    """Write all figures, unrounded, to a file."""
    content = {"conditions": conditions(plan.device, plan.threads), "command": command()}
    content |= {"speeds": [asdict(speed) for speed in speeds], "figures": [asdict(figure) for figure in figures]}
    content |= {"speech": [asdict(item) for item in stages]}
    write_text(path, json.dumps(content, indent=2) + "\n")


def conditions(device: str, threads: int) -> str:
    """The day, the machine and the libraries."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{_processor()}, {threads} threads ({torch.backends.cpu.get_cpu_capability()})"
    return f"{date.today()}, {name}, torch {torch.__version__}, Python {platform.python_version()}."


def command() -> str:
    """The command that is running."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _speed_table(plan: measure.Plan, speeds: list[measure.Speed]) -> str:
    lengths = sorted(set(plan.lengths), key=lambda length: (length[1], length[0]))
    known = {(speed.system, speed.seconds, speed.batch): speed for speed in speeds}
    titles = [f"{seconds:g} s" + (f" x {batch}" if batch > 1 else "") for seconds, batch in lengths]
    rows = [[system, *(_speed(known.get((system, *length))) for length in lengths)] for system in plan.systems]
    return markdown(["Times real time", *titles], rows)


def _speed(speed: measure.Speed | None) -> str:
    if speed is None:
        return "-"
    if speed.ratio is None:
        return f"{speed.times_real_time:.1f}"
    low, middle, high = speed.ratio
    return f"{speed.times_real_time:.1f} ({middle:.2f}, {low:.2f} to {high:.2f})"


def _figure_table(speeds: list[measure.Speed], figures: list[measure.Figures]) -> str:
    """One row per system; memory and share are those of its longest single mel, streams apart."""
    header = [
        "System",
        "First sample, ms",
        "Loads in s",
        "Peak MB",
        "in pieces",
        "GFLOP per s",
        "Matrix rate",
        "SNR, dB",
    ]
    rows = []
    for figure in figures:
        own = [speed for speed in speeds if speed.system == figure.system and speed.batch == 1]
        single = [speed for speed in own if speed.seconds <= measure.memory.STREAMED]
        long = [speed for speed in own if speed.seconds > measure.memory.STREAMED]
        share = single[-1].matrix_rate_share if single else None
        rows.append(
            [
                figure.system,
                "-" if figure.first_sample_seconds is None else f"{1e3 * figure.first_sample_seconds:.0f}",
                "-" if figure.load_seconds is None else f"{figure.load_seconds:.2f}",
                f"{single[-1].peak_mb:.0f}" if single else "-",
                f"{long[-1].peak_mb:.0f}" if long else "-",
                f"{figure.gflop_per_second:.2f}" if figure.gflop_per_second else "-",
                "-" if share is None else f"{share:.0%}",
                "-" if figure.snr_db is None else f"{figure.snr_db:.1f}",
            ]
        )
    return markdown(header, rows)


def _speech_table(stages: list[Stages]) -> str:
    header = ["Speech", "Audio, s", "Text to mel, ms", "Mel to waveform, ms", "Times real time"]
    rows = [
        [
            item.system,
            f"{item.audio_seconds:.2f}",
            f"{1e3 * item.acoustic_seconds:.0f}",
            f"{1e3 * item.vocoder_seconds:.0f}",
            f"{item.audio_seconds / (item.acoustic_seconds + item.vocoder_seconds):.1f}",
        ]
        for item in stages
    ]
    return markdown(header, rows)
