"""How well speech is understood: an independent recogniser's word error rate, durations and naturalness.

    pip install pocketsphinx jiwer speechmos
    python recipes/heart/evaluate.py --references heart_corpus/wavs --texts heart_corpus/held_out.csv --speech spoken

Each line of the texts is `name|text`; `references` has the teacher's `name.wav`, `speech` another voice's. The
recogniser (pocketsphinx with the English model in its package) is weak, so its errors on the teacher are the measure.
"""

from __future__ import annotations

import argparse
import json
import re
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

SAMPLE_RATE = 16000
SILENCE = np.zeros(SAMPLE_RATE // 4)


def words(text: str) -> str:
    """Lower-case words without punctuation, as the recogniser writes them."""
    return " ".join(re.findall(r"[a-z']+", text.lower().replace("-", " ")))


def recognise(decoder: Decoder, audio: NDArray) -> str:
    """Return the words heard in 16 kHz audio of shape (samples,)."""
    audio = np.concatenate([SILENCE, audio / max(np.abs(audio).max(), 1e-3) * 0.7, SILENCE])
    decoder.start_utt()
    decoder.process_raw((audio * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""


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
        Word error rate and its parts in percent of the words of the texts, mean DNSMOS, seconds of speech by file, and
        what was heard.
    """
    decoder = Decoder(loglevel="FATAL")
    heard, seconds, opinions = {}, {}, []
    for name in tqdm(texts, desc=str(folder)):
        audio = read(folder / f"{name}.wav")
        heard[name] = recognise(decoder, audio)
        seconds[name] = spoken(audio)
        opinions.append(dnsmos.run(np.clip(audio, -1, 1), SAMPLE_RATE)["ovrl_mos"])
    score = jiwer.process_words([words(text) for text in texts.values()], [words(heard[name]) for name in texts])
    count = score.hits + score.substitutions + score.deletions
    return {
        "word_error_rate": 100 * score.wer,
        "deletions": 100 * score.deletions / count,
        "insertions": 100 * score.insertions / count,
        "dnsmos": float(np.mean(opinions)),
        "seconds": seconds,
        "heard": heard,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="How well speech is understood.")
    parser.add_argument("--texts", type=Path, required=True, help="file with name|text in each line")
    parser.add_argument("--references", type=Path, required=True, help="folder with the teacher's files")
    parser.add_argument("--speech", type=Path, required=True, help="folder with the files to judge")
    parser.add_argument("--json", type=Path, help="file for all figures and what was heard")
    args = parser.parse_args(argv)
    texts = dict(line.split("|")[:2] for line in args.texts.read_text(encoding="utf-8").splitlines())
    results = {"teacher": measure(args.references, texts), "speech": measure(args.speech, texts)}
    for name, result in results.items():
        figures = {key: result[key] for key in ("word_error_rate", "deletions", "insertions", "dnsmos")}
        print(f"{name:8}", "  ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    ratios = [results["speech"]["seconds"][name] / results["teacher"]["seconds"][name] for name in texts]
    within = np.mean(np.abs(np.array(ratios) - 1) <= 0.2)
    print(f"durations: {np.mean(ratios):.3f} of the teacher's on average, {100 * within:.0f} % within 20 %")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
