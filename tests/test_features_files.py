"""Features of a corpus in files: where they go, that an interrupted run goes on, and what happens to bad files."""

import os

import numpy as np
import pytest
import soundfile as sf

from apnet2_tts_plugin.audio import find_audio, read_audio
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.training.corpus import usable
from apnet2_tts_plugin.training.features import skip_unusable, with_features, write_array, write_features

RATE, HOP, CHANNELS = 22050, 256, 5


def make_wavs(folder, *names):
    for name in names:
        path = folder / "wavs" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.full(1000, 0.5), RATE)
    return find_audio(folder / "wavs")


def frames(path):
    """Features as float64 (CHANNELS, T), all of them the file's first sample."""
    waveform = read_audio(path, RATE)
    return np.full((CHANNELS, len(waveform) // HOP + 1), waveform[0], dtype=np.float64)


def write(folder, compute=frames):
    """Write what `compute` makes of each file; returns the names of those that it got, and of those left out."""
    wavs, seen = folder / "wavs", []

    def compute_all(paths):
        for path in paths:
            seen.append(path.stem)
            if (features := skip_unusable(path, compute, path)) is not None:
                yield path, features

    left_out = write_features(find_audio(wavs), wavs, folder / "mels", compute_all)
    return seen, [path.stem for path in left_out]


def test_features_are_where_training_looks_for_them(tmp_path):
    paths = make_wavs(tmp_path, "deep/a", "deep/b.c", "d")
    assert write(tmp_path) == (["d", "a", "b.c"], [])
    files = with_features(usable(paths), tmp_path / "wavs", tmp_path / "mels", CHANNELS, RATE, HOP)
    names = [str(file.features.relative_to(tmp_path / "mels")) for file in files]
    assert names == ["d.npy", "deep/a.npy", "deep/b.c.npy"]
    features = np.load(files[0].features)
    assert features.dtype == np.float32 and features.shape == (CHANNELS, 4) and (features == 0.5).all()


def test_an_interrupted_run_goes_on(tmp_path):
    make_wavs(tmp_path, "a", "b", "c")

    def interrupted(path):
        if path.stem == "b":
            raise KeyboardInterrupt
        return frames(path)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, interrupted)
    assert write(tmp_path) == (["b", "c"], [])
    assert write(tmp_path) == ([], [])


def test_features_older_than_their_audio_are_made_anew(tmp_path):
    changed, spoilt, _ = make_wavs(tmp_path, "a", "b", "c")
    write(tmp_path)
    sf.write(changed, np.full(1000, 0.25), RATE)
    spoilt.write_bytes(b"no sound")
    for path in (changed, spoilt):
        later = path.stat().st_mtime + 1
        os.utime(path, (later, later))
    assert write(tmp_path) == (["a", "b"], ["b"])
    assert (np.load(tmp_path / "mels" / "a.npy") == 0.25).all()
    assert sorted(path.name for path in (tmp_path / "mels").iterdir()) == ["a.npy", "c.npy"]  # nothing of before


def test_bad_files_are_named_and_left_out(tmp_path, caplog):
    make_wavs(tmp_path, "a", "c", "d")
    (tmp_path / "wavs" / "b.wav").write_bytes(b"no sound")

    def compute(path):
        if path.stem == "c":
            raise DataError("too short")
        return frames(path)

    assert write(tmp_path, compute) == (["a", "b", "c", "d"], ["b", "c"])
    assert sorted(path.name for path in (tmp_path / "mels").iterdir()) == ["a.npy", "d.npy"]
    first, second, count = caplog.messages
    assert first.startswith(f"Left out {tmp_path / 'wavs' / 'b.wav'}: cannot be read")
    assert second == f"Left out {tmp_path / 'wavs' / 'c.wav'}: too short"
    assert count == "Left out 2 of 4 audio files"


@pytest.mark.parametrize("fault", [ValueError("a mistake"), OSError(28, "No space left on device")])
def test_other_errors_are_not_the_files(tmp_path, fault):
    make_wavs(tmp_path, "a")

    def compute(path):
        raise fault

    with pytest.raises(type(fault), match=str(fault.args[-1])):
        write(tmp_path, compute)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), OSError("9 requested and 0 written")])
def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch, fault):
    make_wavs(tmp_path, "a")

    def full(file, _):
        file.write(b"\x93NUMPY")
        raise fault

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=rf"a\.npy: cannot be written \({fault.args[-1]}\)$"):
        write(tmp_path)
    assert list((tmp_path / "mels").iterdir()) == []


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "mels").write_text("a file")
    with pytest.raises(OSError, match=r"mels/a\.npy: cannot be written \(File exists\)$"):
        write_array(tmp_path / "mels" / "a.npy", np.zeros((CHANNELS, 4)))
