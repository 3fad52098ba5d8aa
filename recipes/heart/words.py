"""Which words of a text were left out or said twice: the recogniser chooses how often each was said.

It is given a grammar of the text alone in which every word may be missing or come twice, at a price. So what it
mishears does not count, which in free recognition hides what is missing.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder

SAMPLE_RATE = 16000
SILENCE = np.zeros(SAMPLE_RATE // 4)
SLIP = 1e-4  # the grammar's probability that a word is missing, and that it comes twice
FRAME = SAMPLE_RATE // 100  # of the recogniser, samples


def split(text: str) -> list[str]:
    """Lower-case words without punctuation, as the recogniser writes them."""
    return re.findall(r"[a-z']+", text.lower().replace("-", " "))


def decode(decoder: Decoder, audio: NDArray) -> list[tuple[str, int, int]]:
    """Each word that is heard in 16 kHz audio (samples,), and the samples from which and to which it goes."""
    padded = np.concatenate([SILENCE, audio / max(np.abs(audio).max(), 1e-3) * 0.7, SILENCE])
    decoder.start_utt()
    decoder.process_raw((padded * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    segments = [(segment.word, segment.start_frame, segment.end_frame + 1) for segment in decoder.seg() or ()]
    return [
        (re.sub(r"\(\d+\)$", "", word), *(max(frame * FRAME - len(SILENCE), 0) for frame in frames))  # "the(2)"
        for word, *frames in segments
        if not re.match(r"[<\[(]", word)  # silence and noise
    ]


class Slips:
    """Finds words that were left out or said twice.

    Example:

        >>> Slips().find(audio, ["the", "lighthouse", "blinks"])
        ([1], [])
    """

    def __init__(self) -> None:
        self.decoder = Decoder(loglevel="FATAL")

    def knows(self, words: list[str]) -> bool:
        """Whether the recogniser can pronounce all the words."""
        return all(self.decoder.lookup_word(word) for word in words)

    def find(self, audio: NDArray, words: list[str]) -> tuple[list[int], list[str]]:
        """Compare 16 kHz audio (samples,) with the words that it should say, all of them known.

        Returns:
            The indices of the words that are missing, and the words that are said once more than they should.
        """
        choices = (f"(/{1 - 2 * SLIP}/ {word} | /{SLIP}/ <NULL> | /{SLIP}/ {word} {word})" for word in words)
        self.decoder.add_jsgf_string("slips", f"#JSGF V1.0; grammar slips; public <text> = {' '.join(choices)};")
        self.decoder.activate_search("slips")
        heard = [word for word, *_ in decode(self.decoder, audio)]
        edits = SequenceMatcher(None, words, heard, autojunk=False).get_opcodes()
        missing = [i for kind, first, last, *_ in edits if kind != "equal" for i in range(first, last)]
        repeated = [word for kind, *_, first, last in edits if kind != "equal" for word in heard[first:last]]
        return missing, repeated

    def align(self, audio: NDArray, words: list[str]) -> list[tuple[int, int]]:
        """The samples of 16 kHz audio (samples,) from which and to which each of the known words goes."""
        self.decoder.set_align_text(" ".join(words))
        return [samples for _, *samples in decode(self.decoder, audio)]

    def with_slips(self, audio: NDArray, words: list[str], index: int) -> tuple[NDArray, NDArray]:
        """The audio without one of its words, and with that word twice."""
        start, end = self.align(audio, words)[index]
        return np.delete(audio, slice(start, end)), np.insert(audio, end, audio[start:end])
