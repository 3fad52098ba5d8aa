"""What the hook costs at every start of Python.

    python benchmarks/startup.py --runs 200

Two empty virtual environments are made, one of them with the hook. Their interpreters are started in turn, so that
other load on the machine falls on both alike; the figures are medians of the time from start to exit. Both times and
their difference grow with that load, so it is printed too.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_build"))

from backend import STARTUP_FILES  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="starts of each interpreter (default: 200)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        pythons = [make_environment(Path(folder, "without")), make_environment(Path(folder, "with"))]
        add_hook(pythons[1])
        without, with_hook = medians(pythons, runs)
    print(
        f"Python {sys.version.partition(' ')[0]}, medians of {runs} starts: "
        f"{without:.2f} ms without the hook, {with_hook:.2f} ms with it, {with_hook - without:.2f} ms more "
        f"(load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors)"
    )


def make_environment(folder: Path) -> Path:
    """Make an empty virtual environment; returns its interpreter."""
    venv.create(folder)
    return folder / "bin" / "python"


def add_hook(python: Path) -> None:
    """Install what an interpreter reads at its start: the startup files and the package."""
    site_packages = next(python.parents[1].glob("lib/python*/site-packages"))
    shutil.copytree(ROOT / "apnet2_tts_plugin", site_packages / "apnet2_tts_plugin")
    for name, text in STARTUP_FILES.items():
        (site_packages / name).write_text(text)


def medians(pythons: list[Path], runs: int) -> list[float]:
    """Median time in milliseconds of starting each interpreter, after a first start that is not counted."""
    times = [[start(python) for python in pythons] for _ in range(runs + 1)]
    return [1000 * statistics.median(column) for column in zip(*times[1:], strict=True)]


def start(python: Path) -> float:
    """Seconds from the start of an interpreter that has nothing to do to its exit."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
