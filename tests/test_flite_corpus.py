"""Tests of the flite corpus recipe, run the way a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "recipes" / "flite" / "make_corpus.py"
SENTENCES = ["The kettle is on.", "Who is at the door?"]

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the flite program is not installed")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def assert_one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def metadata_rows(folder: Path) -> list[list[str]]:
    return [line.split("|") for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()]


def test_shipped_sentences_are_clean() -> None:
    lines = SCRIPT.with_name("sentences.txt").read_text(encoding="ascii").splitlines()
    assert len(lines) >= 720
    assert len({line.lower() for line in lines}) == len(lines)
    assert all(4 <= len(line.split()) <= 25 and line[-1] in ".?!" and "|" not in line for line in lines)


@needs_flite
def test_corpus_shape_and_resume(tmp_path: Path, sentences: Path) -> None:
    out = tmp_path / "corpus"
    arguments = ("--out", out, "--sentences", sentences, "--voices", "slt", "kal16", "--jobs", 2)
    first = run_script(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("4 files, ")
    texts = {f"{index:04d}_{voice}": text for index, text in enumerate(SENTENCES, 1) for voice in ("kal16", "slt")}
    assert sorted(path.name for path in (out / "wavs").iterdir()) == [f"{name}.wav" for name in texts]
    assert metadata_rows(out) == [[name, text, text] for name, text in texts.items()]
    for name in texts:
        with wave.open(str(out / "wavs" / f"{name}.wav")) as audio:
            assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (22050, 1, 2)
            assert audio.getnframes() > 22050 // 2

    kept, missing = out / "wavs" / "0001_slt.wav", out / "wavs" / "0002_slt.wav"
    os.utime(kept, ns=(10**18, 10**18))
    complete = missing.read_bytes()
    missing.unlink()
    second = run_script(*arguments)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert kept.stat().st_mtime_ns == 10**18
    assert missing.read_bytes() == complete


@needs_flite
def test_last_keeps_the_sentence_index_and_the_rate_is_free(tmp_path: Path, sentences: Path) -> None:
    out = tmp_path / "corpus"
    arguments = ("--out", out, "--sentences", sentences, "--voices", "slt", "--last", 1)
    result = run_script(*arguments, "--sample_rate", 16000)
    assert result.returncode == 0, result.stderr
    assert metadata_rows(out) == [["0002_slt", SENTENCES[1], SENTENCES[1]]]
    with wave.open(str(out / "wavs" / "0002_slt.wav")) as audio:
        assert audio.getframerate() == 16000


@needs_flite
def test_other_sentences_are_refused(tmp_path: Path, sentences: Path) -> None:
    out = tmp_path / "corpus"
    arguments = ("--out", out, "--sentences", sentences, "--voices", "slt")
    assert run_script(*arguments).returncode == 0
    sentences.write_text("A quite different sentence.\n", encoding="utf-8")
    assert_one_line_error(run_script(*arguments), "other sentences", "0001_slt")


@needs_flite
def test_unknown_voice(tmp_path: Path, sentences: Path) -> None:
    result = run_script("--out", tmp_path / "corpus", "--sentences", sentences, "--voices", "nobody")
    assert_one_line_error(result, "nobody", "slt")
    assert result.returncode == 2


@needs_flite
def test_unwritable_output(tmp_path: Path, sentences: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    assert_one_line_error(run_script("--out", blocked / "corpus", "--sentences", sentences), "cannot write")


@pytest.mark.parametrize("engine", ["flite", "espeak-ng"])
def test_missing_program(tmp_path: Path, sentences: Path, engine: str) -> None:
    out = tmp_path / "corpus"
    result = run_script("--out", out, "--sentences", sentences, "--engine", engine, PATH="")
    assert_one_line_error(result, f"{engine} not found", "install")
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_empty_sentence_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(text, encoding="utf-8")
    assert_one_line_error(run_script("--out", tmp_path / "corpus", "--sentences", path), "no sentences")


def test_missing_sentence_file(tmp_path: Path) -> None:
    result = run_script("--out", tmp_path / "corpus", "--sentences", tmp_path / "nowhere.txt")
    assert_one_line_error(result, "cannot read the sentences")


def test_separator_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("One half | the other half.\n", encoding="utf-8")
    assert_one_line_error(run_script("--out", tmp_path / "corpus", "--sentences", path), "line 1")
