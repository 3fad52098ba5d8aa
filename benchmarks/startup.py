"""What the hook costs at every start of Python, and how long commands take until they are done.

    python benchmarks/startup.py --runs 200 --rounds 5

For the hook, two empty virtual environments are made, one of them with it. Their interpreters are started in turn, so
that other load on the machine falls on both alike; the figures are medians of the time from start to exit. Both times
and their difference grow with that load, so it is printed too. The commands are started in turn as well, by this
interpreter; the time that they have the processors for says more where other programs run.
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

APNET2 = ["-m", "apnet2_tts_plugin.cli"]
COMMANDS = {
    "Python alone": ["-c", "pass"],
    "`import apnet2_tts_plugin`": ["-c", "import apnet2_tts_plugin"],
    "`import torch`": ["-c", "import torch"],
    "`apnet2 --help`": [*APNET2, "--help"],
    "`apnet2 list`": [*APNET2, "list"],
    "`apnet2 vocode`, one second of audio": [*APNET2, "vocode", "in.wav", "out.wav"],
}
LOADING = "loading a model of the official size, with torch imported"
PREPARE = """
import numpy, soundfile
from pathlib import Path
from apnet2_tts_plugin import Apnet2Config
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.weights.checkpoints import save_config, save_weights
soundfile.write("in.wav", 0.1 * numpy.sin(0.06 * numpy.arange(22050)), 22050)
save_config(Apnet2Config(), Path("official"))
save_weights(Generator(Apnet2Config()), Path("official"))
"""
LOAD = """
import time
from apnet2_tts_plugin import load_model
begin = time.perf_counter(), time.process_time()
load_model("official")
print(time.perf_counter() - begin[0], time.process_time() - begin[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="starts of each interpreter (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (default: 5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pythons = [make_environment(Path(folder, "without")), make_environment(Path(folder, "with"))]
        add_hook(pythons[1])
        without, with_hook = medians(pythons, args.runs)
        rows = measure_commands(Path(folder), args.rounds)
    print(
        f"Python {sys.version.partition(' ')[0]}, medians of {args.runs} starts: "
        f"{without:.2f} ms without the hook, {with_hook:.2f} ms with it, {with_hook - without:.2f} ms more "
        f"(load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors)\n"
    )
    print("| Command | s | s of processors |\n|---|---|---|")
    for name, (seconds, processors) in rows.items():
        print(f"| {name} | {seconds:.2f} | {processors:.2f} |")


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


def measure_commands(folder: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds, by the clock and of the processors, of each command and of loading a model; a first run of each
    is not counted."""
    python(["-c", PREPARE], folder)
    times = {name: [] for name in (*COMMANDS, LOADING)}
    for _ in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            begin, before = time.perf_counter(), os.times()
            python(arguments, folder)
            clock, after = time.perf_counter() - begin, os.times()
            processors = after.children_user + after.children_system - before.children_user - before.children_system
            times[name].append((clock, processors))
        times[LOADING].append(tuple(map(float, python(["-c", LOAD], folder).split())))
    return {name: tuple(map(statistics.median, zip(*runs[1:], strict=True))) for name, runs in times.items()}


def python(arguments: list[str], folder: Path) -> str:
    """Run this interpreter with this source tree in `folder`; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
