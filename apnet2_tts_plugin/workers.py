"""Work that several threads share, and the processors with it.

Threads, as torch and libsndfile leave Python to the others while they work: processes would take a second each to
import torch, and one that is forked may not use OpenMP.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from apnet2_tts_plugin.errors import Apnet2Error, OutputError

Task = TypeVar("Task")
Result = TypeVar("Result")
Check = Callable[[], None]


class Stopped(Exception):
    """Nobody waits for the result any more."""


def go_on() -> None:
    """The `Check` of work that nothing stops."""


def attempt(do: Callable[..., Result], *args: Any) -> Result | Apnet2Error:
    """What `do` makes of the arguments, or why it cannot; but that there is nowhere to write ends all.

    Raises:
        OutputError: if `do` raises one.
    """
    try:
        return do(*args)
    except OutputError:
        raise
    except Apnet2Error as error:
        return error


def in_threads(
    do: Callable[[Task, Check], Result],
    tasks: Iterable[tuple[Task, float]],
    n_threads: int,
    most: float,
) -> Iterator[Result]:
    """What `do` makes of each task, whichever is done first. torch's own threads are divided among these.

    Where it ends early, because a task fails or by Ctrl-C, no other task is begun, and those that run are waited for.

    Args:
        do: Does a task in one of the threads. It may call its second argument between any two steps, which raises
            `Stopped` when the result is of no use any more.
        tasks: What is to be done, taken as threads become free, and how large it is.
        n_threads: Number of threads.
        most: How large all tasks may be that are done at the same time; one that is larger is done alone.
    """
    stop, running = threading.Event(), {}

    def check() -> None:
        if stop.is_set():
            raise Stopped

    with _torch_threads_divided(n_threads), ThreadPoolExecutor(n_threads) as pool:
        try:
            for task, size in tasks:
                while running and (len(running) > n_threads or sum(running.values()) + size > most):
                    yield from _finished(running)
                running[pool.submit(do, task, check)] = size
            while running:
                yield from _finished(running)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(running: dict[Future, float]) -> Iterator[Result]:
    """Wait until one or more are done, and take them out."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        del running[future]
        yield future.result()


@contextmanager
def _torch_threads_divided(n_sharing: int) -> Iterator[None]:
    """Give each of the threads that are started now its share of torch's own."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(max(n_threads // n_sharing, 1))
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
