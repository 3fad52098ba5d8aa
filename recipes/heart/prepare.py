"""Turn what the teacher spoke into a dataset that coqui's FastPitch trains on.

    python recipes/heart/prepare.py --corpus heart_corpus

It writes `metadata.csv`, `held_out.csv` and `pitch` as coqui-tts reads them; `durations.json`, by file, with the frames
of each token; and `pronunciations.jsonl`, in each line a text and what each of its characters says. librosa's pYIN,
which coqui-tts would use for the pitch, takes hours; pyworld takes minutes.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyworld
import soundfile
from align import Aligner, character_boundaries, join_marks, stressed
from numpy.typing import NDArray
from tqdm import tqdm

from apnet2_tts_plugin.files import write_atomically, write_text
from apnet2_tts_plugin.training.features import write_array

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 22050
HOP_LENGTH = 256
TOKEN_SECONDS = 0.025  # the unit of the teacher's durations
PITCH_FLOOR, PITCH_CEILING = 80.0, 500.0
LONGEST = 160  # characters of a text to learn pronunciations from
ALIGNED_WITH = 3000  # texts that the aligner learns from


@dataclass(frozen=True)
class Take:
    """What the teacher said: the text, its phonemes, their durations in seconds, and the silence before them."""

    text: str
    symbols: list[str]
    times: list[float]
    lead: float


def read_take(path: Path) -> Take:
    """Read a file of `corpus/teacher`."""
    notes = json.loads(path.read_text(encoding="utf-8"))
    symbols, times = join_marks(notes["phonemes"], notes["durations"][1:-1])
    return Take(notes["text"], symbols, [time * TOKEN_SECONDS for time in times], notes["lead"])


def token_durations(boundaries: NDArray, lead: float, frames: int) -> NDArray:
    """Return how many frames each token lasts.

    Args:
        boundaries: Where the characters end, in seconds after the first one begins.
        lead: Seconds before the first one, which are the token for the beginning of a sentence.
        frames: Frames of the file; those after the last character are the token for the end.

    Returns:
        Shape (characters + 2,), of integers from 1 on whose sum is `frames`.

    Raises:
        ValueError: if there are fewer frames than tokens.
    """
    tokens = len(boundaries) + 2
    if frames < tokens:
        raise ValueError(f"{frames} frames, expected at least one for each of {tokens} tokens")
    ends = np.round((np.concatenate([[0.0], boundaries]) + lead) * SAMPLE_RATE / HOP_LENGTH).astype(int)
    # At least one frame each: not before all tokens in front had theirs, and not so late that those behind get none.
    ranks = np.arange(1, tokens)
    ends = np.maximum.accumulate(np.maximum(ends - ranks, 0)) + ranks
    ends = np.minimum(ends, frames - tokens + ranks)
    return np.diff(ends, prepend=0, append=frames)


def pitch(audio: NDArray, frames: int) -> NDArray:
    """Return the fundamental frequency at each frame in Hz, 0 where unvoiced, of shape (frames,)."""
    audio = np.pad(audio, (0, 2 * HOP_LENGTH))
    step = 1000 * HOP_LENGTH / SAMPLE_RATE
    f0, times = pyworld.dio(audio, SAMPLE_RATE, PITCH_FLOOR, PITCH_CEILING, frame_period=step)
    return pyworld.stonemask(audio, f0, times, SAMPLE_RATE)[:frames]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file that appears only once it is complete."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def as_npy(array: NDArray) -> bytes:
    """Return what a `.npy` file of an array, of objects too, has in it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pronunciations(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return for each text what each of its characters says: phonemes with their stress, or nothing.

    Args:
        lines: Texts and phonemes, with a tab between.
    """
    rows = [line.split("\t") for line in lines]
    rows = [(text, *join_stress(phonemes)) for text, phonemes in rows if phonemes and len(text) <= LONGEST]
    learned = np.random.default_rng(0).permutation(len(rows))[:ALIGNED_WITH]
    aligner = Aligner([rows[index][:2] for index in learned])
    spoken = []
    for text, symbols, labels in tqdm(rows, desc="pronunciations"):
        said = [""] * len(text)
        for place, label in zip(aligner.align(text, symbols), labels, strict=True):
            said[place] += label
        spoken.append((text, said))
    return spoken


def join_stress(phonemes: str) -> tuple[list[str], list[str]]:
    """Return the phonemes without and with their marks of stress."""
    symbols, _ = join_marks(phonemes, [0.0] * len(phonemes))
    return symbols, stressed(phonemes)


def prepare_file(corpus: Path, name: str, take: Take, aligner: Aligner) -> NDArray:
    """Write the pitch of one file and return the durations of its tokens."""
    audio, _ = soundfile.read(corpus / "wavs" / f"{name}.wav")
    frames = 1 + len(audio) // HOP_LENGTH
    boundaries = character_boundaries(take.text, aligner.align(take.text, take.symbols), take.times)
    pitch_file = corpus / "pitch" / pitch_name(name)
    if not pitch_file.exists():
        write_array(pitch_file, pitch(audio, frames))
    return token_durations(boundaries, take.lead, frames)


def unique_name(name: str) -> str:
    """Return what coqui-tts calls a file of the dataset `heart`."""
    return f"heart#wavs/{name}"


def pitch_name(name: str) -> str:
    """Return the file of its pitch that coqui-tts looks for."""
    return base64.urlsafe_b64encode(unique_name(name).encode()).decode() + "_pitch.npy"


def prepare(corpus: Path) -> list[str]:
    """Write the dataset and return the names of its files."""
    (corpus / "pitch").mkdir(exist_ok=True)
    takes = {
        path.stem: read_take(corpus / "teacher" / f"{path.stem}.json") for path in sorted(corpus.glob("wavs/*.wav"))
    }
    aligner = Aligner([(take.text, take.symbols) for take in takes.values()])
    durations = {}
    for name in tqdm(list(takes), desc="durations and pitch"):
        try:
            durations[unique_name(name)] = prepare_file(corpus, name, takes[name], aligner).tolist()
        except ValueError as error:
            print(f"{name} is left out: {error}")
            del takes[name]
    tracks = np.concatenate([np.load(corpus / "pitch" / pitch_name(name)) for name in takes])
    voiced = tracks[tracks > 0]
    statistics = np.array({"mean": voiced.mean(), "std": voiced.std()}, dtype=object)
    write_atomically(corpus / "pitch" / "pitch_stats.npy", lambda file: file.write_bytes(as_npy(statistics)))
    for file, held_out in (("metadata.csv", False), ("held_out.csv", True)):
        names = [name for name in takes if name.startswith("held_") == held_out]
        write_lines(corpus / file, [f"{name}|{takes[name].text}|{takes[name].text}" for name in names])
    write_lines(corpus / "durations.json", [json.dumps(durations)])
    said = pronunciations((corpus / "phonemes.tsv").read_text(encoding="utf-8").splitlines())
    write_lines(corpus / "pronunciations.jsonl", [json.dumps(row, ensure_ascii=False) for row in said])
    return list(takes)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Turn the corpus into a dataset for coqui's FastPitch.")
    parser.add_argument("--corpus", type=Path, default=HERE / "heart_corpus", help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        names = prepare(args.corpus)
    except OSError as error:
        print(f"prepare.py: {error}; make_corpus.py makes it", file=sys.stderr)
        return 1
    print(f"{args.corpus}: {len(names)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
