"""What the data loading of a training run takes: start-up, segments per second and memory, on a made-up corpus.

    python benchmarks/corpus.py --hours 24 --files 13000

The corpus is noise-modulated tones in 16-bit WAV files of 22.05 kHz, half as long to one and a half times as long as on
average. Some of it is written as FLAC, as WAV of 44.1 kHz, which is resampled, and with mels to learn from as well. The
first start-up finds no index, and only the names of the files in the system's cache; later the files are there, as far
as they fit. Each measurement is made in a process of its own, after the imports, and without a model. The memory of a
worker is what it does not share with the loading process, after the first and after the last batch. Needs Linux.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context, get_start_method
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from torch.utils.data import DataLoader

from apnet2_tts_plugin import checkpoints  # noqa: F401  training has imported it before it looks at audio
from apnet2_tts_plugin.corpus import find_audio, split, usable, with_features
from apnet2_tts_plugin.data import EpochBatches, Segments

RATE, HOP, N_MELS = 22050, 256, 80
BATCH_SIZE, N_SAMPLES = 16, 8192
PARTS = 10  # folders that the files are dealt out to; one of them is the small corpus


@dataclass
class Epoch:
    """Times in seconds and memory in MB of one epoch without a model."""

    n_files: int
    first_batch: float
    batches_per_second: float
    segments_per_second: float
    peak: float
    worker_first: float
    worker_last: float


def main() -> None:
    """Make the corpus, measure and print."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        os.environ["TTS_HOME"] = folder  # the index is there
        print(f"`{shlex.join(['python', *sys.argv])}`, load average {os.getloadavg()[0]:.1f}\n")
        corpora = make_corpora(Path(folder), args)
        print(start_up_table(corpora["WAV"]), flush=True)
        print(epoch_table(corpora, args.workers, args.segments))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=24, help="length of the corpus (default: 24)")
    parser.add_argument("--files", type=int, default=13000, help="number of its files, at least 20 (default: 13000)")
    parser.add_argument("--few", type=int, default=400, help="files of each other format (default: 400)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="worker processes (default: 0 1 2)")
    parser.add_argument(
        "--segments",
        type=int,
        default=4000,
        help="least segments of an epoch; the files of a small corpus are taken several times (default: 4000)",
    )
    parser.add_argument("--folder", type=Path, help="place for the corpus, 160 MB an hour (default: that of tempfile)")
    args = parser.parse_args()
    if args.files < 2 * PARTS:
        parser.error(f"--files {args.files}: expected at least {2 * PARTS}")
    if args.hours * 3600 * RATE < args.files * 2 * N_SAMPLES:
        parser.error(f"--hours {args.hours}: expected files of at least {2 * N_SAMPLES / RATE:.1f} seconds")
    return args


def make_corpora(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Write all audio; returns the folders by the names they have in the tables."""
    seconds, few = args.hours * 3600 / args.files, min(args.few, args.files)
    names = {"WAV": "wav", "WAV, a tenth": "wav/0", "FLAC": "flac", "WAV of 44.1 kHz": "high", "WAV and mels": "both"}
    corpora = {name: folder / place for name, place in names.items()}
    write_audio(corpora["WAV"], args.files, seconds)
    write_audio(corpora["FLAC"], few, seconds, suffix=".flac")
    write_audio(corpora["WAV of 44.1 kHz"], few, seconds, rate=2 * RATE)
    write_audio(corpora["WAV and mels"], few, seconds)
    for file in usable(find_audio(corpora["WAV and mels"])):
        np.save(file.path.with_suffix(".npy"), np.zeros((N_MELS, file.n_samples // HOP + 1), np.float32))
    return corpora


def write_audio(folder: Path, n_files: int, seconds: float, rate: int = RATE, suffix: str = ".wav") -> None:
    """Write `n_files` files of `seconds` on average, dealt out to the folders `0` to `9`."""
    rng = np.random.default_rng(0)
    buffer = tones(rng, round(3 * seconds * rate), rate)
    for part in range(PARTS):
        (folder / str(part)).mkdir(parents=True)
    for i in range(n_files):
        n_samples = round(rng.uniform(0.5, 1.5) * seconds * rate)
        start = rng.integers(0, len(buffer) - n_samples)
        sf.write(folder / str(i % PARTS) / f"{i:06}{suffix}", buffer[start : start + n_samples], rate, subtype="PCM_16")


def tones(rng: np.random.Generator, n_samples: int, rate: int) -> np.ndarray:
    """Ten tones, the loudness of each of which changes at random every 50 ms, in 16 bits; never silent."""
    time_ = np.arange(n_samples) / rate
    changes = np.arange(0, n_samples / rate + 0.05, 0.05)
    loudness = [np.interp(time_, changes, rng.uniform(0.01, 0.09, len(changes))) for _ in range(10)]
    waveform = sum(envelope * np.sin(2 * np.pi * 170 * (i + 1) * time_) for i, envelope in enumerate(loudness))
    return (32767 * (waveform + 0.002 * rng.standard_normal(n_samples))).astype(np.int16)


def in_new_process(function: Callable, *args: Any) -> Any:
    """What `function` returns in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def start_up_table(folder: Path) -> str:
    paths = find_audio(folder)
    forget(paths)
    lines = ["| Start-up | Seconds |", "|---|---|"]
    for name in ("first", "second", f"{len(paths[::100])} of {len(paths)} files changed"):
        if name.endswith("changed"):
            change(paths[::100])
        lines.append(f"| {name} | {in_new_process(start_up_seconds, folder):.2f} |")
    return "\n".join([*lines, ""])


def forget(paths: list[Path]) -> None:
    """Have the system drop the files from its memory."""
    os.sync()
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def change(paths: list[Path]) -> None:
    """Write the files anew."""
    for path in paths:
        samples, rate = sf.read(path, dtype="int16")
        sf.write(path, samples[:-1], rate)


def start_up_seconds(folder: Path) -> float:
    begin = time.perf_counter()
    make_training_data(folder)
    return time.perf_counter() - begin


def make_training_data(folder: Path) -> Segments:
    """The segments to train on, after all files have been looked at as in training."""
    paths = find_audio(folder)
    train, held_out = split(paths, n_eval=max(len(paths) // 100, 1))
    files = usable(train)
    usable(held_out)
    if any(folder.rglob("*.npy")):
        files = with_features(files, folder, folder, N_MELS, RATE, HOP)
    return Segments(files, RATE, HOP, N_SAMPLES, seed=0)


def epoch_table(corpora: dict[str, Path], workers: list[int], n_segments: int) -> str:
    lines = [
        "| Audio | Files | Workers | First batch, s | Batches/s | Segments/s | Loader's peak, MB | Each worker, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, folder in corpora.items():
        for n_workers in workers:
            # A process that was spawned would spawn its workers too.
            epoch = in_new_process(measure_epoch, folder, n_workers, n_segments, get_start_method())
            memory = f"{epoch.worker_first:.1f}, {epoch.worker_last:.1f}" if n_workers else ""
            rates = f"{epoch.first_batch:.2f} | {epoch.batches_per_second:.0f} | {epoch.segments_per_second:.0f}"
            lines.append(f"| {name} | {epoch.n_files} | {n_workers} | {rates} | {epoch.peak:.0f} | {memory} |")
    return "\n".join(lines)


def measure_epoch(folder: Path, n_workers: int, n_segments: int, start_method: str) -> Epoch:
    """Load all batches of an epoch; what comes before the first one is not in the rates."""
    dataset = make_training_data(folder)
    n_files = len(dataset)
    dataset.files = dataset.files * -(-n_segments // n_files)
    sampler = EpochBatches(len(dataset), BATCH_SIZE, seed=0)
    context = start_method if n_workers else None
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=n_workers, multiprocessing_context=context)
    begin = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    worker_first = workers_memory()
    begin_rest = time.perf_counter()
    for _ in range(len(loader) - 1):
        next(batches)
    seconds = time.perf_counter() - begin_rest
    return Epoch(
        n_files=n_files,
        first_batch=first - begin,
        batches_per_second=(len(loader) - 1) / seconds,
        segments_per_second=(len(dataset) - BATCH_SIZE) / seconds,
        peak=proc_figure("self/status", "VmHWM"),
        worker_first=worker_first,
        worker_last=workers_memory(),
    )


def workers_memory() -> float:
    """Mean of the memory in MB that the workers have for themselves; 0 without workers."""
    rollups = [f"{process.pid}/smaps_rollup" for process in active_children()]
    private = [proc_figure(rollup, "Private_Clean") + proc_figure(rollup, "Private_Dirty") for rollup in rollups]
    return sum(private) / len(private) if private else 0.0


def proc_figure(file: str, field: str) -> float:
    """A figure in MB from a file below /proc that has it in units of 1024 bytes."""
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(f"/proc/{file}: no {field}")


if __name__ == "__main__":
    main()
