"""Files are whole or refused: checksums when they are read, and writing that leaves no half of one."""

import os
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from trainer.io import get_last_checkpoint, save_fsspec
from TTS.config import read_json_with_comments

from apnet2_tts_plugin.errors import CheckpointError, DamagedError
from apnet2_tts_plugin.files import read_json, write_atomically, write_text
from apnet2_tts_plugin.weights.checkpoints import read_tensors, verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint as `torch.save` writes it."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint_5.pth"
    torch.save({"model": tiny.generator().state_dict(), "step": 5}, path)
    return path


def not_whole(path: Path, reason: str = "") -> None:
    with pytest.raises(DamagedError, match=rf"{path.name}: not a whole torch file \(.+\); use another") as error:
        verify(path)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_verify(whole, tmp_path):
    verify(whole)
    save_fsspec({"step": 5}, tmp_path / "checkpoint_5.pth")  # as the Trainer writes it
    verify(str(tmp_path / "checkpoint_5.pth"))


def test_verify_flipped_bits(whole, tmp_path):
    """In every file of the archive, at random places, at the first and at the last byte of it."""
    content = whole.read_bytes()
    path = tmp_path / "flipped.pth"
    dice = random.Random(0)
    with zipfile.ZipFile(whole) as archive:
        members = archive.infolist()
    for member in members:
        header = member.header_offset
        start = header + 30 + sum(struct.unpack("<HH", content[header + 26 : header + 30]))  # behind name and padding
        for place in {0, member.file_size - 1, dice.randrange(member.file_size)}:
            flipped = bytearray(content)
            flipped[start + place] ^= 1 << dice.randrange(8)
            path.write_bytes(flipped)
            not_whole(path, f"{member.filename!r} in it fails its checksum")


def test_verify_damaged_directory(whole, tmp_path):
    """Any byte may be wrong: the file is refused or, where the byte says nothing of the content, reads as before."""
    content = whole.read_bytes()
    path = tmp_path / "damaged.pth"
    expected = read_tensors(whole)["model"]
    start = content.rindex(b"PK\1\2")
    refused = 0
    for place in range(start, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            verify(path)
            found = read_tensors(path)["model"]
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > (len(content) - start) / 3


def test_verify_other_files(tmp_path):
    other = tmp_path / "other.pth"
    other.write_text("no zip file " * 1000)
    not_whole(other)
    torch.save({"step": 5}, other, _use_new_zipfile_serialization=False)
    not_whole(other)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "text")
    not_whole(other, "no data.pkl in it")


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), PermissionError(13, "denied")])
def test_verify_says_nothing_of_files_that_cannot_be_read(error, whole, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: (_ for _ in ()).throw(error))
    with pytest.raises(CheckpointError, match=f"{whole.name}: cannot be read") as caught:
        verify(whole)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_atomic_write(error, tmp_path):
    path = tmp_path / "new" / "file"

    def write(temporary):
        temporary.write_text("half")
        raise error

    for before in ([], [path]):
        with pytest.raises(type(error)):
            write_atomically(path, write)
        assert before == list(path.parent.iterdir())
        write_text(path, "whole")
        assert [path] == list(path.parent.iterdir()) and path.read_text() == "whole"


@pytest.mark.parametrize(
    "text", ['{"a": 1} // b', '// {\n{"a": "//\\"//"} //', '{"a": 1}', "// a", '{"a": /* b */ 1}', "{"]
)
def test_json_is_read_as_coqui_reads_it(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    try:
        expected = read_json_with_comments(str(tmp_path / "config.json"))
    except ValueError:
        with pytest.raises(ValueError, match="line 1|char 0"):
            read_json(tmp_path / "config.json")
    else:
        assert read_json(tmp_path / "config.json") == expected


def test_atomic_write_lasts(tmp_path, monkeypatch):
    """The content reaches the disk before the file has its name, and the name after that, where the system can."""
    path = tmp_path / "file"
    synced = []

    def fsync(handle):
        kind = os.fstat(handle)
        synced.append(("folder" if stat.S_ISDIR(kind.st_mode) else kind.st_size, path.exists()))
        if stat.S_ISDIR(kind.st_mode):
            raise OSError("not here")

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "content")
    assert synced == [(7, False), ("folder", True)]
    assert [path] == list(tmp_path.iterdir())


def test_an_atomic_write_leaves_the_umask_alone(tmp_path, monkeypatch):
    """It is the whole process's: a file of another thread would get rights that it must not have."""
    umask = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask is changed"))
            write_text(tmp_path / "file", "content")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_file_that_is_replaced_while_it_is_written_has_the_same_rights(tmp_path):
    """As safetensors replaces it."""

    def replace(temporary):
        private = tmp_path / "private"
        private.touch(mode=0o600)
        private.replace(temporary)

    write_atomically(tmp_path / "replaced", replace)
    write_atomically(tmp_path / "written", lambda temporary: temporary.write_bytes(b"1"))
    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "written").stat().st_mode


def test_atomic_write_to_a_full_disk(tmp_path, monkeypatch):
    """Some disks tell only when the content must be there."""

    def fsync(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "file", "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoint_9.pth", "best_model.pth"])
def test_temporary_files_are_no_checkpoints(name, tmp_path):
    """What a killed process leaves, the Trainer must not resume from; its `*.pth` matches hidden files too."""
    whole = tmp_path / "checkpoint_5.pth"
    whole.touch()

    def write(temporary):
        assert temporary.parent == tmp_path
        assert get_last_checkpoint(tmp_path) == (str(whole), str(whole))
        assert list(tmp_path.glob("*.pth")) == [whole]

    write_atomically(tmp_path / name, write)
