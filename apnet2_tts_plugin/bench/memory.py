"""Peak memory and load time of one system, in a process of its own."""

import ctypes
import multiprocessing
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch

from apnet2_tts_plugin.bench.systems import System, make_system
from apnet2_tts_plugin.errors import DataError


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """What `function` returns, called in a new process.

    Raises:
        DataError: if the process does not live to return it.
    """
    context = multiprocessing.get_context("spawn")
    # by Ctrl-C it ends without a traceback of its own
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process ended unexpectedly, perhaps for want of memory; try shorter --seconds"
            ) from error


def load_and_peaks(
    words: str, lengths: list[tuple[float, int]], threads: int, device: str
) -> tuple[float, list[float]]:
    """Seconds that making a system takes, and MB that it takes at most at each length and batch, weights included.

    Libraries that are loaded, and their first call, count for neither.
    """
    torch.set_num_threads(threads)
    start = 0.0

    def make() -> System:
        nonlocal start
        start = time.perf_counter()
        system = make_system(words, device)
        start = time.perf_counter() - start
        return system

    def prepare(system: System, length: tuple[float, int]) -> Callable:
        return partial(vocode, system, system.mel(*length, device))

    found = peaks(make, prepare, lengths, device)
    return start, found


def vocode(system: System, mel: torch.Tensor) -> int:
    """Let a system vocode a mel, as a stream if it is longer than `STREAMED`; how many samples came."""
    seconds = mel.shape[2] * system.audio.hop_length / system.audio.sample_rate
    with torch.inference_mode():
        if seconds > STREAMED and system.stream is not None:
            return sum(piece.numel() for piece in system.stream(mel))
        return system.run(mel).numel()


STREAMED = 60.0  # seconds; longer ones are vocoded in pieces, and only by what can


def peaks(make: Callable, prepare: Callable, lengths: list, device: str) -> list[float]:
    """MB that what `make` makes takes at most in the runs that `prepare` makes ready, one for each of `lengths`."""
    prepare(make(), lengths[0])()  # have the libraries loaded whose code would else count as the system's memory
    reset_peak(device)
    before = memory("now", device)
    system, found = make(), []
    for length in lengths:
        run_once = prepare(system, length)
        reset_peak(device)
        run_once()
        found.append(memory("peak", device) - before)
    return found


def memory(which: str, device: str) -> float:
    """MB that this process holds "now", or held at its "peak"; on CUDA what its tensors hold."""
    if device == "cuda":
        return (torch.cuda.memory_allocated() if which == "now" else torch.cuda.max_memory_allocated()) / 1e6
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[which]
    status = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(status[status.index(field) + 1]) * 1024 / 1e6


def reset_peak(device: str) -> None:
    """Let the peak begin at what is held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what building left behind is not the run's
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
