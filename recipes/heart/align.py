"""Durations of characters, from those that the teacher gave its phonemes.

Spelling and phonemes run in parallel, so a hidden Markov model aligns them: each phoneme belongs to one character, the
characters never go back, and which character says which phoneme is learned from the corpus itself (Viterbi training).
Silent characters share the time of the ones before them, or behind them at the start of a word.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

JUMPS = np.log([0.08, 0.7, 0.15, 0.05, 0.015, 0.005])  # by how many characters a phoneme is behind the last one
MARKS = "ˈˌ"  # stress, part of the phoneme behind
FLOOR = 1e-4


class Aligner:
    """Which characters say which phonemes.

    Args:
        pairs: Texts with their phonemes, both as sequences of symbols; spaces and punctuation in both.
        rounds: How often the whole corpus is aligned and counted.
    """

    def __init__(self, pairs: Sequence[tuple[str, Sequence[str]]], rounds: int = 5) -> None:
        self.emissions: dict[str, dict[str, float]] = {}
        self._count((text, phonemes, _diagonal(len(text), len(phonemes))) for text, phonemes in pairs)
        for _ in range(rounds):
            self._count([(text, phonemes, self.align(text, phonemes)) for text, phonemes in pairs])

    def _count(self, aligned) -> None:
        counts = defaultdict(Counter)
        for text, phonemes, places in aligned:
            for phoneme, place in zip(phonemes, places, strict=True):
                counts[text[place]][phoneme] += 1
        self.emissions = {
            character: {phoneme: np.log(count / row.total()) for phoneme, count in row.items()}
            for character, row in counts.items()
        }

    def align(self, text: str, phonemes: Sequence[str]) -> NDArray:
        """Return the index of each phoneme's character, of shape (phonemes,); it never decreases."""
        floor = np.log(FLOOR)
        scores = np.array([[self._emission(character, phoneme, floor) for character in text] for phoneme in phonemes])
        best = np.full(len(text), -np.inf)
        starts = min(len(JUMPS) - 1, len(text))
        best[:starts] = scores[0, :starts] + JUMPS[1 : 1 + starts]
        back = np.zeros(scores.shape, dtype=int)
        for step in range(1, len(phonemes)):
            came = np.full((len(JUMPS), len(text)), -np.inf)
            for jump, cost in enumerate(JUMPS[: len(text)]):
                came[jump, jump:] = best[: len(text) - jump] + cost
            back[step] = came.argmax(0)
            best = came.max(0) + scores[step]
        places = [int((best + JUMPS[1] * (np.arange(len(text))[::-1] / len(text))).argmax())]
        for step in range(len(phonemes) - 1, 0, -1):
            places.append(places[-1] - back[step, places[-1]])
        return np.array(places[::-1])

    def _emission(self, character: str, phoneme: str, floor: float) -> float:
        if (character == " ") != (phoneme == " "):
            return 2 * floor
        return max(self.emissions.get(character, {}).get(phoneme, floor), floor)


def _diagonal(characters: int, phonemes: int) -> NDArray:
    return np.minimum(np.arange(phonemes) * characters // max(phonemes, 1), characters - 1)


def join_marks(phonemes: str, durations: Sequence[float]) -> tuple[list[str], list[float]]:
    """Join stress marks, and their time, to the phoneme behind them."""
    symbols, times, waiting = [], [], 0.0
    for symbol, duration in zip(phonemes, durations, strict=True):
        if symbol in MARKS:
            waiting += duration
        else:
            symbols.append(symbol)
            times.append(duration + waiting)
            waiting = 0.0
    if times:
        times[-1] += waiting
    return symbols, times


def stressed(phonemes: str) -> list[str]:
    """Return phonemes, each with the stress mark before it."""
    symbols, mark = [], ""
    for symbol in phonemes:
        if symbol in MARKS:
            mark = symbol
        else:
            symbols.append(mark + symbol)
            mark = ""
    return symbols


def character_boundaries(text: str, places: NDArray, times: Sequence[float]) -> NDArray:
    """Return where characters end, of shape (characters,), in the unit of `times`.

    Args:
        text: Characters.
        places: Of each phoneme, the index of its character.
        times: Durations of the phonemes.
    """
    own = np.zeros(len(text))
    np.add.at(own, places, times)
    spoken = np.zeros(len(text), dtype=bool)
    spoken[places] = True
    owner = np.zeros(len(text), dtype=int)
    for index, character in enumerate(text):
        if spoken[index]:
            owner[index] = index
        elif index > 0 and (character == " " or text[index - 1] != " "):
            owner[index] = owner[index - 1]
        else:
            behind = np.flatnonzero(spoken[index:])
            owner[index] = index + behind[0] if len(behind) else owner[index - 1]
    shares = np.bincount(owner, minlength=len(text))
    return np.cumsum(own[owner] / shares[owner])
