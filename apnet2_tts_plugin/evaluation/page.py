"""The HTML report: one file that opens offline, with tables, and of the worst files spectrograms and players."""

import base64
import html
from pathlib import Path

import soundfile

from apnet2_tts_plugin.evaluation import pictures
from apnet2_tts_plugin.evaluation.compare import Comparison, Scores
from apnet2_tts_plugin.evaluation.summary import Column, Summary, columns, summarise

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-top: 1px solid #ccc; padding-top: .8em; }
p { max-width: 60em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
.files { font-size: .8em; } .files th, .files td { padding: .25em .5em; } .files th { white-space: normal; }
.files th:nth-child(2) { text-align: left; }
th { background: #f4f4f4; } td.best { font-weight: bold; } td.text { color: #666; }
td.better { background: #e2f3e2; } td.worse { background: #fbe5e1; }
.panels { display: grid; grid-template-columns: 1fr 1fr; gap: .6em 2.2em; align-items: start; }
figure { margin: 0; min-width: 0; } figcaption { margin-bottom: .2em; overflow-wrap: anywhere; }
.picture { position: relative; margin-left: 3.2em; } .picture img { display: block; width: 100%; height: 160px; }
.picture span { position: absolute; right: 100%; margin-right: .4em; transform: translateY(50%);
  font-size: .75em; color: #555; white-space: nowrap; }
audio { width: 100%; height: 34px; margin-top: .3em; }
.scale { display: inline-block; width: 9em; height: .8em; vertical-align: middle; margin: 0 .3em;
  border: 1px solid #bbb; }
.magma { background: linear-gradient(90deg, #000004, #3b0f70, #8c2981, #de4968, #fe9f6d, #fcfdbf); }
.redblue { background: linear-gradient(90deg, #053061, #4393c3, #f7f7f7, #d6604d, #67001f); }
@media (max-width: 700px) { .panels { grid-template-columns: 1fr; } }
"""


def html_text(comparison: Comparison, shown: int) -> str:
    """The whole page.

    Args:
        comparison: What was measured, with its waveforms still there.
        shown: How many of the worst files have spectrograms and players.
    """
    summary, heads = summarise(comparison), columns(comparison)
    ranked = worst_first(comparison)
    seconds = sum(scores.seconds for scores in comparison.scores)
    judge = _judge(comparison)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Vocoders on {len(ranked)} recordings</title><style>{STYLE}</style></head><body>",
        f"<h1>Vocoders on {len(ranked)} recordings</h1>",
        f"<p>{seconds:.1f} s of audio, compared at {comparison.sample_rate} Hz. Each vocoder got the mel of every "
        "recording, or its waveforms were there already; the figures are means over all recordings.</p>",
        _means(comparison, summary, heads),
        _differences(comparison, summary, heads),
        _skipped(comparison),
        f"<h2>All files, worst first</h2><p>Sorted by {html.escape(judge.title)}, the mean of all vocoders.</p>",
        _all_files(comparison, ranked, heads),
        f"<h2>The {min(shown, len(ranked))} worst to see and hear</h2>",
        "<p>Spectrograms, up a mel scale:"
        f'<span class="scale magma"></span>from {pictures.RANGE_DB:g} dB below the loudest point of the recording. '
        f'Differences:<span class="scale redblue"></span>from {pictures.DIFFERENCE_DB:g} dB softer than the recording '
        f"to {pictures.DIFFERENCE_DB:g} dB louder.</p>",
    ]
    drawing = pictures.Spectrograms(comparison.sample_rate)
    parts += [_file(scores, comparison, heads, drawing) for scores in ranked[:shown]]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def worst_first(comparison: Comparison) -> list[Scores]:
    """The files, those first on which the vocoders do worst in the first metric there is; those without it last."""
    judge = _judge(comparison)

    def badness(scores: Scores) -> float:
        values = [row[judge.name] for row in scores.values.values() if row[judge.name] is not None]
        return judge.better * sum(values) / len(values) if values else float("inf")

    return sorted(comparison.scores, key=badness)


def _judge(comparison: Comparison) -> Column:
    return columns(comparison)[0]


def _means(comparison: Comparison, summary: Summary, heads: list[Column]) -> str:
    rows = []
    for head in heads:
        values = {system: summary.means[system][head.name] for system in comparison.systems}
        best = max((head.better * value for value in values.values() if value is not None), default=None)
        cells = [
            _cell(head.shown(value), "best" if value is not None and head.better * value == best else "")
            for value in values.values()
        ]
        rows.append([_cell(_with_arrow(head)), *cells, _cell(head.source, "text")])
    return "<h2>Means</h2>" + _table(["", *comparison.systems, ""], rows)


def _differences(comparison: Comparison, summary: Summary, heads: list[Column]) -> str:
    first, *others = comparison.systems
    if not others:
        return ""
    rows = [[_cell(_with_arrow(head)), *(_difference(head, summary, system) for system in others)] for head in heads]
    return (
        f"<h2>Differences to {html.escape(first)}</h2><p>Means of the differences file by file, with 95 % bootstrap "
        "intervals. Green is better, red is worse, where the interval leaves zero out.</p>"
        + _table(["", *others], rows)
    )


def _difference(head: Column, summary: Summary, system: str) -> str:
    item = summary.differences[system][head.name]
    if item is None or item.low <= 0 <= item.high:
        verdict = ""
    else:
        verdict = "better" if head.better * item.mean > 0 else "worse"
    return _cell(head.shown_difference(item), verdict)


def _skipped(comparison: Comparison) -> str:
    if not comparison.skipped:
        return ""
    items = "".join(f"<li>{_escaped(scores.error)}</li>" for scores in comparison.skipped)
    return f"<h2>{len(comparison.skipped)} skipped</h2><ul>{items}</ul>"


def _all_files(comparison: Comparison, ranked: list[Scores], heads: list[Column]) -> str:
    rows = []
    for scores in ranked:
        for number, system in enumerate(comparison.systems):
            name = scores.recording.name if number == 0 else ""
            cells = [_cell(head.shown(scores.values[system][head.name])) for head in heads]
            rows.append([_cell(name), _cell(system, "text"), *cells])
    return _table(["File", "Vocoder", *(head.title for head in heads)], rows, "files")


def _file(scores: Scores, comparison: Comparison, heads: list[Column], drawing: pictures.Spectrograms) -> str:
    recording, _ = soundfile.read(scores.waveforms[""])
    reference = drawing.decibels(recording)
    loudest = float(reference.max())
    ticks = drawing.ticks()
    title = f"recording, {scores.seconds:.1f} s"
    panels = [_panel(title, pictures.spectrogram(reference, loudest), ticks, scores.waveforms[""]), "<figure></figure>"]
    for system in comparison.systems:
        waveform, _ = soundfile.read(scores.waveforms[system])
        decibels = drawing.decibels(waveform)
        values = scores.values[system]
        facts = ", ".join(f"{head.title} {head.shown(values[head.name])}" for head in heads[:2])
        image = pictures.spectrogram(decibels, loudest)
        panels.append(_panel(f"{system}: {facts}", image, ticks, scores.waveforms[system]))
        panels.append(_panel(f"{system} minus recording", pictures.difference(decibels, reference, loudest), ticks))
    return f'<h2>{_escaped(scores.recording.name)}</h2><div class="panels">{"".join(panels)}</div>'


def _panel(title: str, png: str, ticks: list[tuple[str, float]], waveform: Path | None = None) -> str:
    marks = "".join(f'<span style="bottom:{100 * height:.1f}%">{text}</span>' for text, height in ticks)
    image = f'<div class="picture">{marks}<img alt="{_escaped(title)}" src="data:image/png;base64,{png}"></div>'
    player = ""
    if waveform:
        audio = base64.b64encode(waveform.read_bytes()).decode("ascii")
        player = f'<audio controls preload="none" src="data:audio/flac;base64,{audio}"></audio>'
    return f"<figure><figcaption>{_escaped(title)}</figcaption>{image}{player}</figure>"


def _table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    heads = "".join(f"<th>{_escaped(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide {kind}"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{_escaped(text)}</td>' if kind else f"<td>{_escaped(text)}</td>"


def _with_arrow(head: Column) -> str:
    return f"{head.title} {'↑' if head.better > 0 else '↓'}"


def _escaped(text: str) -> str:
    """Text for HTML; what is no character in a file's name becomes a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
