"""A comparison as files: `files.csv` (a row per file and system), `summary.json`, `report.html`; and as a table."""

import csv
import io
import json
import math
from pathlib import Path

from apnet2_tts_plugin.evaluation import page
from apnet2_tts_plugin.evaluation.compare import SPEED, Comparison, readable
from apnet2_tts_plugin.evaluation.summary import columns, summarise
from apnet2_tts_plugin.files import write_text


def write(comparison: Comparison, folder: Path, shown: int) -> list[Path]:
    """Write the three files.

    Args:
        comparison: What was measured, with its waveforms still there.
        folder: Where to.
        shown: How many of the worst files the HTML shows and plays.

    Returns:
        What was written.
    """
    contents = {
        "files.csv": csv_text(comparison),
        "summary.json": json_text(comparison),
        "report.html": page.html_text(comparison, shown),
    }
    for name, text in contents.items():
        write_text(folder / name, text)
    return [folder / name for name in contents]


def csv_text(comparison: Comparison) -> str:
    """A header, then a row for each file and system: path, system, length in s, all metrics, times real time."""
    names = [*(metric.name for metric in comparison.metrics), SPEED]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "system", "seconds", *names])
    for scores in comparison.scores:
        for system, values in scores.values.items():
            cells = ("" if values[name] is None else f"{values[name]:.6g}" for name in names)
            writer.writerow([readable(scores.recording.path), system, f"{scores.seconds:.3f}", *cells])
    return file.getvalue()


def json_text(comparison: Comparison) -> str:
    """Means of each system, differences to the first with their intervals, and what was skipped and why.

    What is not there, or is infinite, is null.
    """
    summary = summarise(comparison)
    differences = {
        system: {
            name: item and {"mean": item.mean, "low": item.low, "high": item.high, "files": item.n_files}
            for name, item in row.items()
        }
        for system, row in summary.differences.items()
    }
    content = {
        "files": len(comparison.scores),
        "seconds": sum(scores.seconds for scores in comparison.scores),
        "sample_rate": comparison.sample_rate,
        "speed": comparison.conditions,
        "means": {
            system: {name: _finite(value) for name, value in row.items()} for system, row in summary.means.items()
        },
        "baseline": comparison.systems[0],
        "differences_to_baseline": differences,
        "skipped": [{"file": readable(item.recording.path), "reason": item.error} for item in comparison.skipped],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def table(comparison: Comparison) -> str:
    """Lines with the mean of each metric and system, and the differences to the first system with their intervals."""
    summary = summarise(comparison)
    seconds = sum(scores.seconds for scores in comparison.scores)
    first, *others = comparison.systems
    rows = [["", *comparison.systems, *(f"{system} - {first}" for system in others)]]
    for column in columns(comparison):
        means = [column.shown(summary.means[system][column.name]) for system in comparison.systems]
        rows.append(
            [column.title, *means, *(column.shown_difference(summary.differences[s][column.name]) for s in others)]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([f"{len(comparison.scores)} files, {seconds:.1f} s of audio", *lines])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
