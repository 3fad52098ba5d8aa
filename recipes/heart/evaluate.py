"""How well speech is understood: word errors of an independent recogniser, words left out, durations and naturalness.

    pip install pocketsphinx jiwer speechmos
    python recipes/heart/evaluate.py --references heart_corpus/wavs --texts heart_corpus/held_out.csv --speech spoken

Each line of the texts is `name|text`; `references` has the teacher's `name.wav`, `speech` another voice's. The
recogniser (pocketsphinx with the English model in its package) is weak, so its errors on the teacher are the measure;
`--teacher FILE` keeps the teacher's figures. What `words` finds left out or said twice is shown with what it finds of
words that were cut out of the teacher's speech, or doubled, one in each file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pocketsphinx import Decoder
from speechmos import dnsmos
from tqdm import tqdm
from words import SAMPLE_RATE, Slips, decode, split

from apnet2_tts_plugin.files import write_text


def read(path: Path) -> NDArray:
    """Return a mono file at 16 kHz, of shape (samples,)."""
    audio, sample_rate = soundfile.read(path)
    return soxr.resample(audio, sample_rate, SAMPLE_RATE)


def spoken(audio: NDArray) -> float:
    """Seconds from the first to the last sample within 40 dB of the peak."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    return (loud[-1] - loud[0]) / SAMPLE_RATE if len(loud) else 0.0


def measure(folder: Path, texts: dict[str, str]) -> dict:
    """Measure all files of a folder.

    Returns:
        Word error rate and its parts in percent of the words of the texts, mean DNSMOS, seconds of speech by file, what
        was heard, and the words that were left out and said twice of those that the recogniser knows.
    """
    decoder, slips = Decoder(loglevel="FATAL"), Slips()
    heard, seconds, opinions = {}, {}, []
    missing, repeated, checked = [], [], 0
    for name, text in tqdm(texts.items(), desc=str(folder)):
        audio, words = read(folder / f"{name}.wav"), split(text)
        heard[name] = " ".join(word for word, *_ in decode(decoder, audio))
        seconds[name] = spoken(audio)
        opinions.append(dnsmos.run(np.clip(audio, -1, 1), SAMPLE_RATE)["ovrl_mos"])
        if slips.knows(words):
            found = slips.find(audio, words)
            missing += [words[index] for index in found[0]]
            repeated += found[1]
            checked += len(words)
    score = jiwer.process_words([" ".join(split(text)) for text in texts.values()], [heard[name] for name in texts])
    count = score.hits + score.substitutions + score.deletions
    return {
        "word_error_rate": 100 * score.wer,
        "deletions": 100 * score.deletions / count,
        "insertions": 100 * score.insertions / count,
        "dnsmos": float(np.mean(opinions)),
        "seconds": seconds,
        "heard": heard,
        "missing": missing,
        "repeated": repeated,
        "checked": checked,
    }


def sensitivity(folder: Path, texts: dict[str, str]) -> dict:
    """How many words that are cut out of speech, and how many that are doubled, are found: one of each in each file."""
    slips, drawn = Slips(), np.random.default_rng(0)
    cut, doubled = {}, {}
    for name, text in tqdm(texts.items(), desc="sensitivity"):
        words = split(text)
        if slips.knows(words):
            index = drawn.integers(len(words))
            without, twice = slips.with_slips(read(folder / f"{name}.wav"), words, index)
            cut[name] = words[index] in [words[place] for place in slips.find(without, words)[0]]
            doubled[name] = words[index] in slips.find(twice, words)[1]
    return {"slips": len(cut), "cut_found": sum(cut.values()), "doubled_found": sum(doubled.values())}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="How well speech is understood.")
    parser.add_argument("--texts", type=Path, required=True, help="file with name|text in each line")
    parser.add_argument("--references", type=Path, required=True, help="folder with the teacher's files")
    parser.add_argument("--speech", type=Path, required=True, help="folder with the files to judge")
    parser.add_argument("--teacher", type=Path, help="file for the teacher's figures, taken from it if it is there")
    parser.add_argument("--json", type=Path, help="file for all figures and what was heard")
    args = parser.parse_args(argv)
    texts = dict(line.split("|")[:2] for line in args.texts.read_text(encoding="utf-8").splitlines())
    if args.teacher and args.teacher.is_file():
        teacher = json.loads(args.teacher.read_text(encoding="utf-8"))
    else:
        teacher = measure(args.references, texts) | sensitivity(args.references, texts)
        if args.teacher:
            write_text(args.teacher, json.dumps(teacher, indent=1))
    if teacher["heard"].keys() != texts.keys():
        print(f"error: {args.teacher}: figures of other texts than those of {args.texts}", file=sys.stderr)
        return 1
    results = {"teacher": teacher, "speech": measure(args.speech, texts)}
    for name, result in results.items():
        figures = {key: result[key] for key in ("word_error_rate", "deletions", "insertions", "dnsmos")}
        print(f"{name:8}", "  ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    for name, result in results.items():
        for slip in ("missing", "repeated"):
            print(f"{name:8} {slip} {len(result[slip])} of {result['checked']} words:", " ".join(result[slip]))
    print("of {slips} words cut out {cut_found} are found, of as many doubled {doubled_found}".format(**teacher))
    ratios = [results["speech"]["seconds"][name] / teacher["seconds"][name] for name in texts]
    within = np.mean(np.abs(np.array(ratios) - 1) <= 0.2)
    print(f"durations: {np.mean(ratios):.3f} of the teacher's on average, {100 * within:.0f} % within 20 %")
    if args.json:
        write_text(args.json, json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
