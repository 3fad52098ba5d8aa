"""Time, on a machine that other work shares."""

import random
import statistics
import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from tqdm import tqdm

PAUSE = 0.05  # seconds in which the threads of the library before stop waiting for more work


class MatrixProduct:
    """A large square matrix product, the fastest thing that the machine computes in `dtype`."""

    def __init__(self, dtype: torch.dtype, device: str):
        size = 8192 if device == "cuda" else 2048
        self.flop = 2 * size**3
        self.factors = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]

    def __call__(self) -> Tensor:
        return torch.mm(*self.factors)


def interleave(runs: dict[Hashable, Callable], rounds: int, title: str, device: str) -> dict[Hashable, list[float]]:
    """Seconds that each of `runs` took in each round, in an order that changes with the round.

    Before each there is a pause, and before the first round one that does not count.
    """
    times, order = {name: [] for name in runs}, list(runs)
    shuffle = random.Random(0).shuffle
    for i in tqdm(range(rounds + 1), desc=title, unit="round"):
        for name in order:
            time.sleep(PAUSE)
            seconds = timed(runs[name], device)
            if i:
                times[name].append(seconds)
        shuffle(order)
    return times


def timed(run: Callable, device: str) -> float:
    """Seconds that one call takes."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(reference: list[float], times: list[float]) -> tuple[float, float, float]:
    """How many times as fast as the reference, round by round: lower quartile, median, upper quartile."""
    quotients = [a / b for a, b in zip(reference, times, strict=True)]
    if len(quotients) == 1:
        return (quotients[0],) * 3
    return tuple(statistics.quantiles(quotients, n=4, method="inclusive"))
