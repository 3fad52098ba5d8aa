"""Make an LJSpeech-shaped speech corpus with natural synthetic voices.

    python recipes/natural/make_corpus.py --minutes 60 --out natural_corpus
    python recipes/natural/make_corpus.py --minutes 10 --voices joe am_onyx am_onyx+bf_emma --out small_corpus

The corpus is ``OUT/wavs/<sentence>_<round>_<voice>.wav`` (22.05 kHz, 16-bit mono) and ``OUT/metadata.csv`` with one
line ``id|text|text`` per file. Each round speaks every sentence once, with the voices in turn and each file varied in
pitch, tempo, room and level. The last sentences come first, so a split by sorted name holds out unseen sentences at any
length of the corpus. Files that are already there are kept, so an interrupted run can simply be started again, and
with more minutes it goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from augment import Variation
from tqdm import tqdm
from voices import STYLES, Voice, load_voices

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from corpora import CorpusError, read_sentences  # noqa: E402

SAMPLE_RATE = 22050
HELD_OUT = 20
DEFAULT_VOICES = """
    af_heart am_onyx bm_lewis bf_emma am_michael am_puck
    af_bella bm_fable am_adam ff_siwis am_fenrir jm_kumo
    af_sarah am_echo im_nicola bf_isabella bm_george em_alex
    af_nicole am_onyx+bm_lewis am_michael+bm_fable af_aoede am_adam+am_echo jf_gongitsune
""".split()


@dataclass(frozen=True)
class Take:
    """One file to make: who speaks which sentence, and the seed of its variation."""

    name: str
    voice: str
    text: str
    seed: tuple[int, ...]


def plan_takes(sentences: dict[int, str], voices: list[str], seed: int) -> Iterator[Take]:
    """Yield takes without end, in rounds over all sentences, with the voices in turn.

    Each round begins with the voice after those that spoke the last one's held-out sentences.

    Args:
        sentences: Sentences by line number; the last HELD_OUT of them come first in each round, the rest shuffled.
        voices: Names of voices; one that occurs twice speaks twice as often.
        seed: Of the shuffling and of the variations.
    """
    numbers = sorted(sentences)
    for round_number in itertools.count(1):
        shuffled = np.random.default_rng([seed, round_number]).permutation(numbers[:-HELD_OUT]).tolist()
        for turn, number in enumerate(numbers[-HELD_OUT:] + shuffled, start=HELD_OUT * (round_number - 1)):
            voice = voices[turn % len(voices)]
            name = f"{number:04d}_{round_number}_{voice}"
            yield Take(name, voice, sentences[number], (seed, round_number, number))


def make_file(take: Take, voice: Voice, target: Path) -> float:
    """Speak and vary one sentence into a file, unless that is there already.

    Args:
        take: What to speak and how.
        voice: Voice that speaks.
        target: WAV file to make; it appears under this name only once it is complete.

    Returns:
        Duration of the file in seconds.
    """
    if target.exists():
        return soundfile.info(target).duration
    rng = np.random.default_rng(take.seed)
    variation = Variation.draw(rng, voice.male)
    speech = voice.speak(take.text, variation.speaking_speed)
    audio = variation.apply(speech, voice.sample_rate, voice.bandwidth, SAMPLE_RATE, rng)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(temporary, audio, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(audio) / SAMPLE_RATE


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that appears only once it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def check_settings(path: Path, settings: dict) -> None:
    """Note the settings of a corpus in its folder, or raise CorpusError if it was begun with others."""
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise CorpusError(f"{path} is not readable; remove it or choose another --out") from None
        for key, value in settings.items():
            if before.get(key) != value:
                raise CorpusError(f"{path.parent} was begun with other {key}; choose another --out")
    else:
        write_atomically(path, json.dumps(settings, indent=2) + "\n")


def make_takes(takes: Iterator[Take], voices: dict[str, Voice], out: Path, seconds: float, jobs: int) -> float:
    """Make takes until they last long enough, and return how long they last in seconds.

    The metadata are complete after each file, so a corpus can be used while it grows.
    """
    metadata = out / "metadata.csv"
    rows = set(metadata.read_text(encoding="utf-8").splitlines()) if metadata.exists() else set()
    total, waiting = 0.0, deque()
    bar = tqdm(total=seconds, bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s of speech [{elapsed}<{remaining}]")
    with ThreadPoolExecutor(jobs) as pool, bar:
        try:
            while total < seconds or waiting:
                while total < seconds and len(waiting) < jobs:
                    take = next(takes)
                    target = out / "wavs" / f"{take.name}.wav"
                    waiting.append((take, pool.submit(make_file, take, voices[take.voice], target)))
                take, job = waiting.popleft()
                duration = job.result()
                total += duration
                bar.update(min(duration, seconds - bar.n))
                row = f"{take.name}|{take.text}|{take.text}"
                if row not in rows:
                    rows.add(row)
                    write_atomically(metadata, "".join(f"{row}\n" for row in sorted(rows)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return total


def make_corpus(args: argparse.Namespace) -> float:
    """Make the corpus and return its duration in seconds."""
    sentences = read_sentences(args.sentences)
    voices = load_voices(sorted(set(args.voices)), args.styles)
    digest = hashlib.sha256("\n".join(sentences.values()).encode()).hexdigest()
    try:
        (args.out / "wavs").mkdir(parents=True, exist_ok=True)
        settings = {"voices": args.voices, "seed": args.seed, "sentences": digest}
        check_settings(args.out / "corpus.json", settings)
        takes = plan_takes(sentences, args.voices, args.seed)
        return make_takes(takes, voices, args.out, args.minutes * 60, args.jobs)
    except (OSError, soundfile.SoundFileError) as error:
        raise CorpusError(f"cannot write the corpus to {args.out}: {error}") from None


def positive(text: str) -> float:
    """Parse a number above 0 for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def count(text: str) -> int:
    """Parse a whole number of at least 1 for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Make an LJSpeech-shaped corpus with natural synthetic voices.")
    parser.add_argument("--out", type=Path, default=HERE / "natural_corpus", help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=positive, default=60, help="length of the corpus (default: %(default)s)")
    parser.add_argument("--sentences", type=Path, default=HERE.parent / "flite" / "sentences.txt", help="one a line")
    parser.add_argument("--voices", nargs="+", default=DEFAULT_VOICES, help=f"default: {' '.join(DEFAULT_VOICES)}")
    parser.add_argument("--styles", type=Path, default=STYLES, help="npm package of styles (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the variations (default: %(default)s)")
    parser.add_argument("--jobs", type=count, default=1, help="files made at the same time (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        seconds = make_corpus(args)
    except CorpusError as error:
        print(f"make_corpus.py: error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("make_corpus.py: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"{seconds / 60:.1f} minutes in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
