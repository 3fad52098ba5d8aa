"""Tests of the flite corpus recipe, run the way a user runs it."""

import os
import shutil
import subprocess
import sys

import pytest
import scripts
import soundfile

SCRIPT = scripts.RECIPES / "flite" / "make_corpus.py"
SENTENCES = ["The kettle is on.", "Who is at the door?"]

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the flite program is not installed")


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make(sentences, tmp_path):
    """Runs the script on two sentences and the voice slt, for a corpus in `tmp_path / "corpus"`."""
    given = ["--out", tmp_path / "corpus", "--sentences", sentences, "--voices", "slt"]

    def run(*arguments, **environment):
        command = [sys.executable, SCRIPT, *given, *arguments]
        settings = dict(capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
        return subprocess.run(list(map(str, command)), **settings)

    return run


def assert_one_line_error(result, *words, status=1):
    assert result.returncode == status
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("make_corpus.py: error: ") and all(word in line for word in words)


def metadata_rows(folder):
    return [line.split("|") for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()]


def test_shipped_sentences_are_clean():
    lines = SCRIPT.with_name("sentences.txt").read_text(encoding="ascii").splitlines()
    assert len(lines) >= 720
    assert len({line.lower() for line in lines}) == len(lines)
    assert all(4 <= len(line.split()) <= 25 and line[-1] in ".?!" and "|" not in line for line in lines)


@needs_flite
def test_corpus_shape_and_resume(make, tmp_path):
    out, voices = tmp_path / "corpus", ("--voices", "slt", "kal16", "--jobs", 2)
    first = make(*voices)
    assert first.returncode == 0 and first.stdout.startswith("4 files, "), first.stderr
    texts = {f"{index:04d}_{voice}": text for index, text in enumerate(SENTENCES, 1) for voice in ("kal16", "slt")}
    assert sorted(path.name for path in (out / "wavs").iterdir()) == [f"{name}.wav" for name in texts]
    assert metadata_rows(out) == [[name, text, text] for name, text in texts.items()]
    for name in texts:
        audio = soundfile.info(out / "wavs" / f"{name}.wav")
        assert (audio.samplerate, audio.channels, audio.subtype) == (22050, 1, "PCM_16")
        assert audio.frames > 22050 // 2

    kept, missing = out / "wavs" / "0001_slt.wav", out / "wavs" / "0002_slt.wav"
    os.utime(kept, ns=(10**18, 10**18))
    complete = missing.read_bytes()
    missing.unlink()
    second = make(*voices)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert kept.stat().st_mtime_ns == 10**18 and missing.read_bytes() == complete


@needs_flite
def test_last_keeps_the_sentence_index_and_the_rate_is_free(make, tmp_path):
    result = make("--last", 1, "--sample_rate", 16000)
    assert result.returncode == 0, result.stderr
    assert metadata_rows(tmp_path / "corpus") == [["0002_slt", SENTENCES[1], SENTENCES[1]]]
    assert soundfile.info(tmp_path / "corpus" / "wavs" / "0002_slt.wav").samplerate == 16000


@needs_flite
def test_other_sentences_are_refused(make, sentences):
    assert make().returncode == 0
    sentences.write_text("A quite different sentence.\n", encoding="utf-8")
    assert_one_line_error(make(), "other sentences", "0001_slt")


@needs_flite
def test_unknown_voice(make):
    assert_one_line_error(make("--voices", "nobody"), "nobody", "slt", status=2)


@needs_flite
def test_unwritable_output(make, tmp_path):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    assert_one_line_error(make("--out", tmp_path / "file" / "corpus"), "cannot write")


@pytest.mark.parametrize("engine", ["flite", "espeak-ng"])
def test_missing_program(make, tmp_path, engine):
    assert_one_line_error(make("--engine", engine, PATH=""), f"{engine} not found", "install")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read the sentences"),
        ("", "no sentences"),
        ("\n  \n", "no sentences"),
        ("One half | the other half.\n", "line 1"),
    ],
)
def test_unusable_sentences(make, sentences, text, words):
    sentences.unlink() if text is None else sentences.write_text(text, encoding="utf-8")
    assert_one_line_error(make(), words)
