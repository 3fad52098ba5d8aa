"""A corpus of seconds laid out as LJSpeech is: four sentences with silence around them."""

from pathlib import Path

import numpy as np
import soundfile as sf
from golden_weights import golden_waveform

RATE = 22050
TEXTS = ("hello there, you.", "good morning, my friend.", "one two three", "this is the longest of them all, by far")


def make_ljspeech(folder: Path, rate: int = RATE) -> Path:
    """Write `wavs/LJ0.wav` and so on, and `metadata.csv`; no length is a multiple of any hop."""
    (folder / "wavs").mkdir(parents=True)
    for i in range(len(TEXTS)):
        sound = 0.5 * golden_waveform(9000 + 4321 * i, seed=i, sample_rate=rate)
        padded = np.concatenate([np.zeros(3000), sound, np.zeros(2000)])
        sf.write(folder / "wavs" / f"LJ{i}.wav", padded, rate, subtype="PCM_16")
    lines = [f"LJ{i}|{text.upper()}|{text}\n" for i, text in enumerate(TEXTS)]
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder
