"""The index of a corpus: audio files are inspected once, and again after a change."""

import json
import os

import numpy as np
import pytest
import soundfile as sf

from apnet2_tts_plugin import corpus as corpus_module
from apnet2_tts_plugin.corpus import AudioFile, find_audio, usable

RATE = 22050


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    for name in ("a/1.wav", "a/2.wav", "b/3.wav"):
        write(folder / name)
    return folder


@pytest.fixture(autouse=True)
def index_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "apnet2" / "audio_index"


@pytest.fixture
def inspected(monkeypatch):
    """The names of the files that were opened, in order."""
    names = []
    inspect = corpus_module._inspect
    monkeypatch.setattr(corpus_module, "_inspect", lambda path: names.append(path.name) or inspect(path))
    return names


def write(path, n_samples=1000, value=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.full(n_samples, value), RATE, subtype="PCM_16")


def test_files_are_inspected_once(corpus, inspected, monkeypatch):
    first = usable(find_audio(corpus))
    assert inspected == ["1.wav", "2.wav", "3.wav"]
    assert usable(find_audio(corpus)) == first
    monkeypatch.chdir(corpus.parent)
    assert usable(find_audio("corpus")) == [AudioFile(path, 1000, RATE) for path in find_audio("corpus")]
    assert len(inspected) == 3


def test_changed_and_new_files_are_inspected_anew(corpus, inspected):
    usable(find_audio(corpus))
    write(corpus / "a/2.wav", n_samples=2000)
    write(corpus / "b/4.wav")
    touched = corpus / "b/3.wav"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    inspected.clear()
    assert [file.n_samples for file in usable(find_audio(corpus))] == [1000, 2000, 1000, 1000]
    assert inspected == ["2.wav", "3.wav", "4.wav"]


def test_parts_of_a_corpus_keep_each_others_entries(corpus, inspected, index_folder):
    write(corpus / "b/4.wav")
    paths = find_audio(corpus)
    train, held_out = paths[::2], paths[1::2]
    for _ in range(2):
        assert [file.path for file in usable(train)] == train
        assert [file.path for file in usable(held_out)] == held_out
    assert sorted(inspected) == ["1.wav", "2.wav", "3.wav", "4.wav"]
    assert len(list(index_folder.iterdir())) == 1


def test_files_that_are_gone_are_forgotten(corpus, index_folder):
    usable(find_audio(corpus))
    (corpus / "a/1.wav").unlink()
    write(corpus / "b/4.wav")
    usable(find_audio(corpus))
    (path,) = index_folder.iterdir()
    assert sorted(json.loads(path.read_text())["files"]) == ["a/2.wav", "b/3.wav", "b/4.wav"]


def test_useless_files_are_named_from_the_index_too(corpus, inspected, caplog):
    write(corpus / "a/silent.wav", value=0.0)
    (corpus / "b/broken.wav").write_bytes(b"RIFF but not really")
    messages = []
    for _ in range(2):
        caplog.clear()
        usable(find_audio(corpus))
        messages.append(caplog.messages)
    assert len(inspected) == 5
    assert messages[0] == messages[1]
    silent, broken, count = messages[1]
    assert silent == f"Skipped {corpus / 'a/silent.wav'}: it is silent"
    assert broken.startswith(f"Skipped {corpus / 'b/broken.wav'}: ")
    assert count == "Skipped 2 of 5 audio files"


def test_files_that_could_not_be_opened_are_tried_again(corpus, inspected, caplog, monkeypatch):
    refused = [corpus / "a/1.wav", corpus / "gone.wav"]

    def fail(path):
        raise sf.LibsndfileError(corpus_module.SYSTEM_ERROR, f"Error opening {path}: ")

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module.sf, "SoundFile", fail)
        with pytest.raises(corpus_module.DataError, match="none of 2 audio files can be used"):
            usable(refused)
    assert "System error" in caplog.messages[0] and "No such file" in caplog.messages[1]
    assert [file.path for file in usable(refused)] == refused[:1]
    assert inspected == ["1.wav", "1.wav"]


@pytest.mark.parametrize(
    "garbled",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b'{"version": "0", "files": {}}',
        b'{"files": 3}',
        json.dumps(
            {"version": corpus_module.INDEX_VERSION, "files": {"a/1.wav": [1, 2], "a/2.wav": "x", "b/3.wav": {}}}
        ).encode(),
    ],
)
def test_an_index_that_cannot_be_read_is_made_anew(corpus, inspected, index_folder, garbled):
    first = usable(find_audio(corpus))
    (path,) = index_folder.iterdir()
    path.write_bytes(garbled)
    assert usable(find_audio(corpus)) == first
    assert usable(find_audio(corpus)) == first
    assert len(inspected) == 6


def test_an_index_of_another_version_is_not_used(corpus, inspected, monkeypatch):
    usable(find_audio(corpus))
    monkeypatch.setattr(corpus_module, "INDEX_VERSION", "another")
    usable(find_audio(corpus))
    assert len(inspected) == 6


def test_an_index_that_cannot_be_written_is_no_error(corpus, index_folder, caplog):
    index_folder.parent.mkdir(parents=True)
    index_folder.write_text("in the way")
    assert len(usable(find_audio(corpus))) == 3
    (message,) = caplog.messages
    assert (
        message.startswith("All audio files will be inspected at the next start again") and str(index_folder) in message
    )


def test_nothing_is_left_beside_the_index(corpus, index_folder):
    usable(find_audio(corpus))
    assert [path.suffix for path in index_folder.iterdir()] == [".json"]
