"""Make an LJSpeech-shaped speech corpus with a classic synthesizer, flite or espeak-ng.

    python recipes/flite/make_corpus.py --out flite_corpus
    python recipes/flite/make_corpus.py --engine espeak-ng --voices en-us --last 20 --out unseen_corpus

The corpus is `OUT/wavs/<sentence index>_<voice>.wav` (16-bit mono) and `OUT/metadata.csv` with a line `id|text|text`
for each file. The sentence index (its line number, from 1) comes first in the name, so a split by sorted name holds out
whole sentences with all their voices. Files that are there already are kept: an interrupted run is just started again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import soundfile
import soxr
from tqdm import tqdm

from apnet2_tts_plugin.files import write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from corpora import CorpusError, read_sentences  # noqa: E402

DEFAULT_VOICES = {"flite": ["slt", "rms", "awb", "kal16"], "espeak-ng": ["en-us"]}


def run_engine(command: list[str]) -> str:
    """Run the synthesizer and return what it printed, or raise CorpusError with what it complained about."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise CorpusError(f"{command[0]} failed with exit status {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def check_engine(engine: str, voices: list[str]) -> None:
    """Raise CorpusError if the synthesizer is not installed or does not have one of the voices."""
    if shutil.which(engine) is None:
        raise CorpusError(f"{engine} not found; install it, for example with: apt-get install {engine}")
    if engine == "flite":
        known = run_engine(["flite", "-lv"]).partition(":")[2].split()
    else:
        known = [line.split()[1] for line in run_engine(["espeak-ng", "--voices"]).splitlines()[1:] if line.strip()]
    for voice in voices:
        if voice not in known:
            some = " ".join(known) if len(known) < 20 else f"see {engine} --voices"
            raise CorpusError(f"{engine} has no voice {voice!r} (voices: {some})", code=2)


def make_file(engine: str, voice: str, text: str, target: Path, sample_rate: int) -> float:
    """Speak one sentence into a WAV file, whole or not at all, unless it is there already; returns its seconds."""
    if target.exists():
        info = soundfile.info(target)
        if info.samplerate != sample_rate:
            raise CorpusError(f"{target} has {info.samplerate} Hz, not {sample_rate} Hz; choose another --out")
        return info.duration
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if engine == "flite":
            run_engine(["flite", "-voice", voice, "-t", text, "-o", str(temporary)])
        else:
            run_engine(["espeak-ng", "-v", voice, "-w", str(temporary), "--", text])
        audio, engine_rate = soundfile.read(temporary, dtype="float32", always_2d=True)
        audio = soxr.resample(audio[:, 0], engine_rate, sample_rate)
        soundfile.write(temporary, audio, sample_rate, subtype="PCM_16", format="WAV")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(audio) / sample_rate


def make_corpus(args: argparse.Namespace) -> tuple[int, float]:
    """Make the corpus and return its number of files and its duration in seconds."""
    voices = list(dict.fromkeys(args.voices or DEFAULT_VOICES[args.engine]))
    chosen = list(read_sentences(args.sentences).items())[-args.last if args.last else 0 :]
    check_engine(args.engine, voices)
    texts = {f"{number:04d}_{voice}": (voice, text) for number, text in chosen for voice in voices}
    wavs, metadata = args.out / "wavs", args.out / "metadata.csv"
    try:
        wavs.mkdir(parents=True, exist_ok=True)
        rows = {}
        if metadata.exists():
            fields = (line.partition("|") for line in metadata.read_text(encoding="utf-8").splitlines())
            rows = {name: text.partition("|")[0] for name, _, text in fields}
        for name, (_, text) in texts.items():
            if rows.get(name, text) != text:
                raise CorpusError(f"{args.out} was made from other sentences (see {name}); choose another --out")
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [
                pool.submit(make_file, args.engine, voice, text, wavs / f"{name}.wav", args.sample_rate)
                for name, (voice, text) in texts.items()
            ]
            try:
                seconds = sum(job.result() for job in tqdm(as_completed(jobs), total=len(jobs), unit="file"))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        rows.update({name: text for name, (_, text) in texts.items()})
        write_text(metadata, "".join(f"{name}|{rows[name]}|{rows[name]}\n" for name in sorted(rows)))
    except (OSError, soundfile.SoundFileError) as error:
        raise CorpusError(f"cannot write the corpus to {args.out}: {error}") from None
    return len(texts), seconds


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Make an LJSpeech-shaped speech corpus with flite or espeak-ng.")
    parser.add_argument("--out", type=Path, default=HERE / "flite_corpus", help="folder to make (default: %(default)s)")
    parser.add_argument("--sentences", type=Path, default=HERE / "sentences.txt", help="text file, one sentence a line")
    parser.add_argument("--engine", choices=sorted(DEFAULT_VOICES), default="flite", help="default: %(default)s")
    parser.add_argument("--voices", nargs="+", help="default: slt rms awb kal16 for flite, en-us for espeak-ng")
    parser.add_argument("--sample_rate", type=positive, default=22050, help="in Hz (default: %(default)s)")
    parser.add_argument("--last", type=positive, help="use only this many sentences from the end of the file")
    parser.add_argument("--jobs", type=positive, default=1, help="files made at the same time (default: %(default)s)")
    args = parser.parse_args()
    try:
        files, seconds = make_corpus(args)
    except CorpusError as error:
        print(f"make_corpus.py: error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("make_corpus.py: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"{files} files, {seconds / 3600:.2f} hours in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
