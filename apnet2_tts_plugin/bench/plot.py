"""A picture of quality against speed."""

import logging
from pathlib import Path

from apnet2_tts_plugin.bench import memory
from apnet2_tts_plugin.bench.measure import Speed
from apnet2_tts_plugin.errors import ConfigError, DataError, OutputError
from apnet2_tts_plugin.files import prepare_file, read_json, write_atomically

logger = logging.getLogger(__name__)

METRICS = {"pesq_wb": "PESQ-WB", "dnsmos": "DNSMOS overall"}
SUFFIXES = (".svg", ".png")


def prepare(
    picture: str, report: str, systems: list[str], lengths: list[tuple[float, int]]
) -> dict[str, dict[str, float]]:
    """Means of `METRICS` by system, of those among `systems` that `apnet2 evaluate` has evaluated.

    Args:
        picture: The file that is to be drawn.
        report: What `apnet2 evaluate` has written.
        systems: What is to be measured.
        lengths: Seconds and batch of each mel.

    Raises:
        OutputError: if the picture's suffix is not one of `SUFFIXES`, or it cannot be written.
        ConfigError: if none of the lengths can be drawn.
        DataError: if there is no report in the folder, or none of the systems, or of the metrics, is in it.
    """
    if Path(picture).suffix not in SUFFIXES:
        raise OutputError(f"{picture}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not any(is_drawn(*length) for length in lengths):
        raise ConfigError(f"--plot: expected --seconds up to {memory.STREAMED:g}, and --batch 1")
    path = Path(report) / "summary.json"
    try:
        means = read_json(path)["means"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no summary of `apnet2 evaluate`") from error
    found = {system: means[system] for system in systems if system in means}
    if not found:
        raise DataError(f"{path}: has {', '.join(means)}, and none of {', '.join(systems)}")
    if not any(_has(found, metric) for metric in METRICS):
        raise DataError(f"{path}: has no {' or '.join(METRICS.values())} of {', '.join(found)}")
    prepare_file(picture)
    return found


def write(picture: str, speeds: list[Speed], quality: dict[str, dict[str, float]]) -> None:
    """Draw a panel for each metric, with all speeds at one length; a system without one there is named and left out.

    Raises:
        DataError: if there is no such length.
        OSError: if the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seconds, shown = _at_one_length([speed for speed in speeds if speed.system in quality])
    if left_out := [system for system in quality if system not in shown]:
        logger.warning("%s: without %s, not measured at %g s", picture, ", ".join(left_out), seconds)
    metrics = {name: title for name, title in METRICS.items() if _has(quality, name)}
    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        for system, times_real_time in shown.items():
            if (mean := quality[system].get(name)) is not None:
                axes.scatter(times_real_time, mean, color="C0")
                axes.annotate(system, (times_real_time, mean), (4, 4), textcoords="offset points")
        axes.margins(x=0.4, y=0.2)  # room for the names
        axes.set(xscale="log", xlabel=f"times real time, {seconds:g} s", ylabel=title)
    path = Path(picture)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))


def _has(quality: dict[str, dict[str, float]], metric: str) -> bool:
    return any(means.get(metric) is not None for means in quality.values())


def _at_one_length(speeds: list[Speed]) -> tuple[float, dict[str, float]]:
    """A length in seconds, and speeds by system, of single mels at once; the longest length that most systems have."""
    lengths: dict[float, dict[str, float]] = {}
    for speed in speeds:
        if is_drawn(speed.seconds, speed.batch):
            lengths.setdefault(speed.seconds, {})[speed.system] = speed.times_real_time
    if not lengths:
        raise DataError("--plot: no vocoder was measured at a single length, for --limit")
    seconds = max(lengths, key=lambda seconds: (len(lengths[seconds]), seconds))
    return seconds, lengths[seconds]


def is_drawn(seconds: float, batch: int) -> bool:
    """Whether speeds of mels of this length can be drawn: single ones that are not streamed."""
    return batch == 1 and seconds <= memory.STREAMED
