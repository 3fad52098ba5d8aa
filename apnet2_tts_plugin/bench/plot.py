"""A picture of quality against speed."""

from pathlib import Path

from apnet2_tts_plugin.bench import memory
from apnet2_tts_plugin.bench.measure import Speed
from apnet2_tts_plugin.errors import DataError, OutputError
from apnet2_tts_plugin.files import prepare_file, read_json, write_atomically

METRICS = {"pesq_wb": "PESQ-WB", "dnsmos": "DNSMOS overall"}
SUFFIXES = (".svg", ".png")


def prepare(picture: str, report: str, systems: list[str]) -> dict[str, dict[str, float]]:
    """Means of `METRICS` by system, of those among `systems` that `apnet2 evaluate` has evaluated.

    Args:
        picture: The file that is to be drawn.
        report: What `apnet2 evaluate` has written.
        systems: What is to be measured.

    Raises:
        OutputError: if the picture's suffix is not one of `SUFFIXES`, or it cannot be written.
        DataError: if there is no report in the folder, or none of the systems is in it.
    """
    if Path(picture).suffix not in SUFFIXES:
        raise OutputError(f"{picture}: expected a name that ends in {' or '.join(SUFFIXES)}")
    path = Path(report) / "summary.json"
    try:
        means = read_json(path)["means"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no summary of `apnet2 evaluate`") from error
    found = {system: means[system] for system in systems if system in means}
    if not found:
        raise DataError(f"{path}: has {', '.join(means)}, and none of {', '.join(systems)}")
    prepare_file(picture)
    return found


def write(picture: str, speeds: list[Speed], quality: dict[str, dict[str, float]]) -> None:
    """Draw a panel for each metric, with the speed at the longest single mel that is not streamed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = {name: title for name, title in METRICS.items() if any(means.get(name) for means in quality.values())}
    shown = [speed for speed in speeds if speed.batch == 1 and speed.seconds <= memory.STREAMED]
    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        for system, means in quality.items():
            own = [speed for speed in shown if speed.system == system]
            if own and means.get(name) is not None:
                axes.scatter(own[-1].times_real_time, means[name], color="C0")
                axes.annotate(system, (own[-1].times_real_time, means[name]), (4, 4), textcoords="offset points")
        axes.set(xscale="log", xlabel=f"times real time, {shown[-1].seconds:g} s", ylabel=title)
    path = Path(picture)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))
