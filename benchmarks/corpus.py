"""What the data loading of a training run takes: start-up, segments per second and memory, on a made-up corpus.

    python benchmarks/corpus.py --hours 24 --files 13000

The corpus is noise-modulated tones in 16-bit WAV files of 22.05 kHz, half as long to one and a half times as long as on
average. Some of it is written as FLAC, as WAV of 44.1 kHz, which is resampled, and with mels to learn from as well. The
first start-up finds only the names of the files in the system's cache, the second one the files too, as far as they
fit. Each measurement is made in a process of its own, after the imports, and without a model. Needs Linux.
"""

import argparse
import multiprocessing
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.training.corpus import AudioFile, usable
from apnet2_tts_plugin.training.data import evaluation_loader, find_files, training_loader

RATE, HOP, N_MELS = 22050, 256, 80
BATCH_SIZE, N_SAMPLES = 16, 8192
PARTS = 10  # folders that the files are dealt out to; one of them is the small corpus


def main() -> None:
    """Make the corpus, measure and print."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(f"`{shlex.join(['python', *sys.argv])}`, load average {os.getloadavg()[0]:.1f}\n")
        corpora = make_corpora(Path(folder), args)
        forget(find_audio(corpora["WAV"]))
        print("| Start-up | Seconds |\n|---|---|")
        for name in ("first", "second"):
            print(f"| {name} | {in_new_process(start_up, corpora['WAV'])[0]:.2f} |", flush=True)
        header = ["Audio", "Files", "Workers", "First batch, s", "Segments/s", "Loader's peak, MB"]
        print(f"\n| {' | '.join(header)} |", "|---" * len(header) + "|", sep="\n")
        for name, place in corpora.items():
            for n_workers in args.workers:
                # a process that was spawned would spawn its workers too
                start_method = multiprocessing.get_start_method()
                row = in_new_process(epoch_row, place, n_workers, args.segments, start_method)
                print(f"| {name} | {row} |", flush=True)


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


def forget(paths: list[Path]) -> None:
    """Have the system drop the files from its memory."""
    os.sync()
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_new_process(function: Callable, *args: Any) -> Any:
    """What `function` returns in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def start_up(folder: Path, n_workers: int = 0) -> tuple[float, Apnet2Config, list[AudioFile]]:
    """Look at all files as training does; the seconds it takes, its configuration, and the files to train on."""
    begin = time.perf_counter()
    config = Apnet2Config(
        data_path=str(folder),
        feature_path=str(folder) if any(folder.rglob("*.npy")) else None,
        eval_split_size=max(len(find_audio(folder)) // 100, 1),
        batch_size=BATCH_SIZE,
        seq_len=N_SAMPLES,
        num_loader_workers=n_workers,
    )
    files = find_files(config, is_eval=False)
    evaluation_loader(config, find_files(config, is_eval=True))
    return time.perf_counter() - begin, config, files


def epoch_row(folder: Path, n_workers: int, n_segments: int, start_method: str) -> str:
    """Load all batches of an epoch; what comes before the first one is not in the rate."""
    multiprocessing.set_start_method(start_method, force=True)
    _, config, files = start_up(folder, n_workers)
    loader = training_loader(config, files * -(-n_segments // len(files)))
    begin = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    n_rest = sum(len(batch["path"]) for batch in batches)
    rate = n_rest / (time.perf_counter() - first)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    return f"{len(files)} | {n_workers} | {first - begin:.2f} | {rate:.0f} | {peak:.0f}"


if __name__ == "__main__":
    main()
