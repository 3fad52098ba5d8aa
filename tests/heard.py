"""What an independent recogniser hears in a WAV file: `python tests/heard.py FILE SENTENCE` fails if it is another one.

pocketsphinx, with the English model in its package, mishears a word of ten even of good speech; that is allowed.
"""

import re
import sys

import numpy as np
import soundfile
import soxr
from pocketsphinx import Decoder

RATE = 16000


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def heard(path) -> list[str]:
    """The words in a file."""
    audio, sample_rate = soundfile.read(path)
    audio = soxr.resample(audio, sample_rate, RATE) / np.abs(audio).max() * 0.7
    decoder = Decoder(loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw((audio * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return words_of(hypothesis.hypstr) if hypothesis else []


def word_errors(expected: list[str], found: list[str]) -> int:
    """Substitutions, deletions and insertions between two lists of words (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(expected, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


if __name__ == "__main__":
    expected, found = words_of(sys.argv[2]), heard(sys.argv[1])
    print(f"{sys.argv[1]}: heard {' '.join(found)!r}")
    sys.exit(word_errors(expected, found) > 0.2 * len(expected))
