"""Write the sentences that the voice of the bundled acoustic model reads, and more that are only pronounced.

    python recipes/heart/make_sentences.py --wordnet /usr/share/wordnet --out heart_corpus

`OUT/sentences.txt`, with `name|text` in each line, are to be spoken: those of the flite recipe, examples of use from
WordNet chosen for the words in them, numbers, dates, times and amounts, and single words and letters. The first
HELD_OUT (`held_...`), of the flite recipe, share no sentence with the rest. `OUT/texts.txt` are those but the held-out
ones, and all examples of WordNet. All are as coqui's English cleaner leaves them, so that the voice reads what the
model will be given.
"""

from __future__ import annotations

import argparse
import heapq
import re
import string
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from TTS.tts.utils.text.cleaners import english_cleaners

HELD_OUT = 100
WORDNET = Path("/usr/share/wordnet")
HERE = Path(__file__).resolve().parent
FLITE = HERE.parent / "flite" / "sentences.txt"
WORDS = re.compile(r"[a-z']+")
PLAIN = re.compile(r"[A-Za-z][A-Za-z ,;:'!?-]+")
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NAMES = "Smith Brown Taylor Wilson Evans Walker White Roberts Green Hall Wood Clarke Jackson Turner Hill Moore".split()
INITIALS = "BBC USA CPU GPU FBI TV DNA PC UK EU HTML CD DVD GPS PDF USB ATM NBA CEO MRI".split()
TEMPLATES = """
In {year}, about {large} people lived in the valley.
The meeting was moved from {date} to {date}.
She was born on {date}, {year}.
Call me at {time} or at {time}, but not later.
The ticket costs {money}, and the meal {money}.
Chapter {small} begins on page {number}.
He finished {ordinal} out of {number} runners.
{number} and {small} make {number}.
{Title} {name} will see you at {time}.
{Title} {name} paid {money} for the house in {year}.
The train leaves at {time} from platform {small}.
It is {small} degrees outside, and {number} in the sun.
About {number} percent of the votes had been counted by {time}.
The {ordinal} of {month} is a {day}.
On {day}, {date}, the shop will be closed.
We need {small} eggs, {number} grams of sugar, and {decimal} liters of milk.
The war lasted from {year} to {year}.
Version {decimal} is {number} times as fast as version {decimal}.
Only {small} of {number} answers were right.
The {initials} said that the {initials} had lost {money}.
My {initials} shows {number} files, and {small} of them are new.
A distance of {decimal} miles takes {small} hours on foot.
Turn to page {number} and read line {small}.
In the year {year}, the tower was {number} feet high.
Room {number} is on the {ordinal} floor.
It happened {number} years ago, in {month} {year}.
""".split("\n")[1:-1]
SHORT = """
Hello. Hello there! Good morning. Good evening, everyone. Good night. Thank you. Thank you very much. Thanks a
lot! Yes. No. Maybe. Yes, of course. No, thank you. Please wait. One moment, please. Excuse me. I am sorry.
How are you? I am fine. What is your name? My name is Anna. Nice to meet you. See you later. See you tomorrow!
Goodbye. Bye! Welcome. Welcome back! Well done. Congratulations! Really? Why not? Who is there? Where are you?
What time is it? It works. Try again. Go ahead. Stop! Help! Hurry up! Watch out! Be careful. Never mind. I
see. I do not know. Wait a minute. Okay. All right. Ready? Hello, world! This is a test. Testing, one, two,
three. Speech synthesis. Text to speech. The end.
"""


def fill(template: str, rng: np.random.Generator) -> str:
    """Fill the slots of a template with random numbers, dates, times, amounts and names."""

    def ordinal(number: int) -> str:
        return f"{number}" + ("th" if number // 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))

    def draw(slot: str) -> str:
        number = int(rng.integers(1, 100))
        return {
            "year": lambda: str(rng.integers(1100, 2040)),
            "large": lambda: f"{int(rng.integers(1, 999)) * 10 ** int(rng.integers(2, 5)):,}",
            "date": lambda: f"{rng.choice(MONTHS)} {ordinal(number % 31 + 1)}",
            "month": lambda: str(rng.choice(MONTHS)),
            "day": lambda: str(rng.choice(DAYS)),
            "time": lambda: f"{rng.integers(1, 13)}:{rng.integers(0, 12) * 5:02d} {rng.choice(['am', 'pm'])}",
            "money": lambda: f"${number}" if number % 2 else f"${number}.{rng.integers(1, 100):02d}",
            "small": lambda: str(number % 12 + 1),
            "number": lambda: str(rng.integers(13, 1000)),
            "ordinal": lambda: ordinal(number % 40 + 1),
            "decimal": lambda: f"{number % 20}.{rng.integers(1, 10)}",
            "Title": lambda: str(rng.choice(["Mr.", "Mrs.", "Dr."])),
            "name": lambda: str(rng.choice(NAMES)),
            "initials": lambda: str(rng.choice(INITIALS)),
        }[slot]()

    return re.sub(r"\{(\w+)\}", lambda match: draw(match[1]), template)


def read_examples(folder: Path) -> list[str]:
    """Read WordNet's examples of use, as sentences with a capital and a full stop."""
    examples = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = " ".join(example.split()).strip(" ,;:-")
                if PLAIN.fullmatch(text) and 4 <= len(text.split()) <= 20:
                    examples[text[0].upper() + text[1:] + ("" if text[-1] in "!?" else ".")] = None
    return list(examples)


def choose_examples(examples: list[str], count: int, seen: Counter) -> list[str]:
    """Choose examples with many words that are not, or seldom, in those chosen before.

    Args:
        examples: Sentences.
        count: How many to choose.
        seen: How often each word is in the other sentences; counted on.
    """
    words = [WORDS.findall(text.lower()) for text in examples]
    common = Counter(word for row in words for word in set(row))

    def gain(row: list[str]) -> float:
        # Words that no other example has are mostly names and rarities.
        return sum(1 / (1 + seen[word]) ** 2 for word in set(row) if common[word] > 1) / (len(row) + 3)

    queue = [(-gain(row), index) for index, row in enumerate(words)]
    heapq.heapify(queue)
    chosen = []
    while queue and len(chosen) < count:
        before, index = heapq.heappop(queue)
        now = -gain(words[index])
        if queue and now > queue[0][0]:
            heapq.heappush(queue, (now, index))
        else:
            chosen.append(examples[index])
            seen.update(set(words[index]))
    return chosen


def make_sentences(wordnet: Path, examples: int, repeats: int, single: int) -> tuple[dict[str, str], list[str]]:
    """Return what is to be spoken, by name and in that order, and what is to be pronounced.

    Args:
        wordnet: Folder with WordNet's ``data.*`` files.
        examples: How many of its examples are spoken.
        repeats: How often each template of numbers is filled.
        single: How many of the most frequent words are read alone, too.
    """
    rng = np.random.default_rng(1)
    own = [line.strip() for line in FLITE.read_text(encoding="utf-8").splitlines() if line.strip()]
    own = [own[index] for index in rng.permutation(len(own))]
    own, held_out = own[:-HELD_OUT], own[-HELD_OUT:]
    short = [text.strip() for text in re.findall(r"[^.!?]+[.!?]", SHORT)]
    numbers = [fill(template, rng) for template in TEMPLATES for _ in range(repeats)]
    seen = Counter(word for text in own for word in set(WORDS.findall(text.lower())))
    all_examples = read_examples(wordnet)
    chosen = choose_examples(all_examples, examples, seen)
    frequent = [f"{word.capitalize()}." for word, _ in seen.most_common(single)]
    letters = [f"{letter}." for letter in string.ascii_uppercase]
    rest = own + chosen + numbers + short + frequent + letters
    rest = [rest[index] for index in rng.permutation(len(rest))]
    held_out = [english_cleaners(text) for text in held_out]
    spoken = [text for text in dict.fromkeys(english_cleaners(text) for text in rest) if text not in held_out]
    pronounced = dict.fromkeys([*spoken, *(english_cleaners(text) for text in all_examples)])
    named = {f"held_{number:04d}": text for number, text in enumerate(held_out, 1)}
    named |= {f"heart_{number:04d}": text for number, text in enumerate(spoken, 1)}
    return named, [text for text in pronounced if text not in held_out]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Write the sentences that the voice of the acoustic model reads.")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "heart_corpus", help="folder (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=3200, help="examples of WordNet (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="fillings of a template (default: %(default)s)")
    parser.add_argument("--single", type=int, default=250, help="words to read alone (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        spoken, pronounced = make_sentences(args.wordnet, args.examples, args.repeats, args.single)
        args.out.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}|{text}" for name, text in spoken.items()]
        for name, texts in (("sentences.txt", lines), ("texts.txt", pronounced)):
            (args.out / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"make_sentences.py: {error} (WordNet's files: apt install wordnet-base)", file=sys.stderr)
        return 1
    print(f"{args.out}: {len(spoken)} sentences, the first {HELD_OUT} held out, and {len(pronounced)} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
