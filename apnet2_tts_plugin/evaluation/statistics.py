"""Means over files, and paired differences of two systems with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
BLOCK = 100  # resamples at a time, for the memory
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of one system's values minus another's on the same files.

    Attributes:
        mean: Of the differences.
        low: Lower end of the 95 % interval of that mean.
        high: Its upper end.
        n_files: How many files both have a value for.
    """

    mean: float
    low: float
    high: float
    n_files: int


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None if none is."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def paired_difference(values: Sequence[float | None], baseline: Sequence[float | None]) -> Difference | None:
    """The mean of `values` minus `baseline`, file by file, with its percentile bootstrap interval (Efron, 1979).

    Files are drawn with replacement 10,000 times, with the same draws at every call. With few files the interval is
    too narrow, and it says nothing about other voices than those of the files.

    Args:
        values: A system's, one for each file, None or infinite where there is none.
        baseline: The other system's, for the same files.

    Returns:
        None if fewer than two files have both values.
    """
    pairs = [(ours, theirs) for ours, theirs in zip(values, baseline, strict=True) if None not in (ours, theirs)]
    finite = [pair for pair in pairs if np.isfinite(pair).all()]
    if len(finite) < 2:
        return None
    differences = np.array([ours - theirs for ours, theirs in finite])
    generator = np.random.default_rng(0)
    draws = (generator.integers(len(differences), size=(BLOCK, len(differences))) for _ in range(RESAMPLES // BLOCK))
    means = np.concatenate([differences[draw].mean(axis=1) for draw in draws])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(float(differences.mean()), float(low), float(high), len(differences))
