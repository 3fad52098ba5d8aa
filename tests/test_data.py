"""Training data: which files, which segments."""

import logging

import numpy as np
import pytest
import soundfile as sf
import torch
from torch.utils.data import DataLoader

from apnet2_tts_plugin.data import AudioFile, DataError, Segments, Utterances, find_audio, read_audio, split, usable

RATE = 22050


def write(path, n_samples=20000, rate=RATE, channels=1, value=None):
    """A file whose samples grow from 0 to 0.9, so that a segment tells where it was cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 0.9, n_samples) if value is None else np.full(n_samples, value)
    sf.write(path, np.repeat(ramp[:, None], channels, axis=1), rate, subtype="PCM_16")
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("b.wav", "a.flac", "deep/c.WAV", "d.wav"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def test_files_are_found_in_the_order_of_their_names(folder):
    assert [path.name for path in find_audio(folder)] == ["a.flac", "b.wav", "d.wav", "c.WAV"]


def test_split_does_not_depend_on_the_order_of_the_files(folder):
    paths = find_audio(folder)
    train, held_out = split(paths[::-1], 1)
    assert (train, held_out) == split(paths, 1)
    assert [path.name for path in held_out] == ["c.WAV"] and len(train) == 3


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_folders_without_audio(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=missing):
        find_audio(tmp_path / missing)


def test_split_that_leaves_nothing(folder):
    with pytest.raises(DataError, match="eval_split_size: 4, expected fewer than the 4 audio files"):
        split(find_audio(folder), 4)


def test_useless_files_are_named_skipped_and_counted(folder, caplog):
    write(folder / "e_silent.wav", value=0.0)
    write(folder / "f_empty.wav", n_samples=0)
    (folder / "g_broken.wav").write_bytes(b"RIFF but not really")
    with caplog.at_level(logging.WARNING, "apnet2_tts_plugin.data"):
        files = usable(find_audio(folder))
    assert [file.path.name for file in files] == ["a.flac", "b.wav", "d.wav", "c.WAV"]
    assert files[0] == AudioFile(folder / "a.flac", 20000, RATE)
    for name, reason in (("e_silent", "silent"), ("f_empty", "empty"), ("g_broken", "")):
        assert any(name in message and reason in message for message in caplog.messages)
    assert caplog.messages[-1] == "Skipped 3 of 7 audio files"


def test_no_file_left_is_an_error(tmp_path):
    path = write(tmp_path / "silent.wav", value=0.0)
    with pytest.raises(DataError, match="none of 1 audio files can be used.*silent.wav"):
        usable([path])


def test_flac_files_without_their_end_or_length_are_skipped(folder):
    whole = (folder / "a.flac").read_bytes()
    cut, endless = folder / "cut.flac", folder / "endless.flac"
    write(cut, n_samples=200000)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    # the number of samples is the last 36 bits before the checksum in the first metadata block
    endless.write_bytes(whole[:21] + bytes([whole[21] & 0xF0, 0, 0, 0, 0]) + whole[26:])
    assert [file.path.name for file in usable([cut, endless, folder / "b.wav"])] == ["b.wav"]


def test_a_file_that_goes_bad_is_replaced_by_the_next_one(folder, caplog):
    bad = folder / "nan.wav"
    samples = np.full(20000, 0.5)
    samples[10000] = np.nan
    sf.write(bad, samples, RATE, subtype="FLOAT")
    dataset = segments([bad, write(folder / "good.wav", n_samples=8192, value=0.25)], n_samples=16384)
    with caplog.at_level(logging.WARNING, "apnet2_tts_plugin.data"):
        assert dataset[0]["waveform"].max() == pytest.approx(0.25, abs=1e-3)
    assert any("nan.wav: has NaN" in message for message in caplog.messages)


def test_stereo_is_mixed_down(tmp_path):
    samples = np.stack([np.full(100, 0.5), np.full(100, -0.1)], axis=1)
    sf.write(tmp_path / "stereo.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav", RATE), np.full(100, 0.2), atol=1e-6)


def segments(paths, n_samples=8192, seed=0):
    return Segments(usable(paths), RATE, n_samples, seed)


def test_segments_are_parts_of_their_files(folder):
    dataset = segments(find_audio(folder))
    whole = read_audio(folder / "b.wav", RATE)
    segment = dataset[1]["waveform"].numpy()
    assert segment.shape == (8192,) and segment.dtype == np.float32
    start = int(np.abs(whole - segment[0]).argmin())
    np.testing.assert_allclose(whole[start : start + 8192], segment, atol=2e-4)


def test_draws_differ_by_item_and_epoch_and_repeat_by_seed(folder):
    paths = [write(folder / f"same{i}.wav", n_samples=60000) for i in range(4)]
    dataset = segments(paths)
    firsts = {}
    for epoch in (0, 1, 0):
        dataset.epoch = epoch
        drawn = [float(dataset[i]["waveform"][0]) for i in range(4)]
        assert len(set(drawn)) == 4
        assert firsts.setdefault(epoch, drawn) == drawn
    assert firsts[0] != firsts[1]
    assert [float(segments(paths, seed=1)[i]["waveform"][0]) for i in range(4)] != firsts[0]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_draws_do_not_depend_on_the_workers(folder, n_workers):
    paths = [write(folder / f"same{i}.wav", n_samples=60000) for i in range(6)]
    dataset = segments(paths)
    dataset.epoch = 3
    alone = torch.stack([dataset[i]["waveform"] for i in range(6)])
    loaded = torch.cat([batch["waveform"] for batch in DataLoader(dataset, 2, num_workers=n_workers)])
    torch.testing.assert_close(loaded, alone)


def test_all_of_a_file_is_drawn_from(folder):
    path = write(folder / "long.wav", n_samples=8192 * 3)
    dataset = segments([path])
    starts = []
    for epoch in range(300):
        dataset.epoch = epoch
        starts.append(float(dataset[0]["waveform"][0]) / 0.9 * 3)
    assert min(starts) < 0.1 and max(starts) > 1.9
    assert np.histogram(starts, bins=4, range=(0, 2))[0].min() > 40


@pytest.mark.parametrize("n_samples", [1, 500, 8191, 8192])
def test_short_files_are_padded_behind(folder, n_samples):
    path = write(folder / "short.wav", n_samples=n_samples, value=0.5)
    segment = segments([path])[0]["waveform"]
    assert segment.shape == (8192,)
    assert (segment[:n_samples] > 0.49).all() and not segment[n_samples:].any()


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    time = np.arange(3 * rate) / rate
    sf.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, subtype="PCM_16")
    dataset = segments([tmp_path / "tone.wav"])
    for epoch in range(5):
        dataset.epoch = epoch
        segment = dataset[0]["waveform"].numpy()
        assert segment.shape == (8192,)
        spectrum = np.abs(np.fft.rfft(segment * np.hanning(8192)))
        assert np.argmax(spectrum) * RATE / 8192 == pytest.approx(440, abs=RATE / 8192)
        # no edge of the resampling filter inside the segment
        assert np.abs(segment).max() == pytest.approx(0.5, abs=0.01)


def test_utterances_are_whole_files_in_hops(folder):
    write(folder / "short.wav", n_samples=100, value=0.5)
    dataset = Utterances(usable(find_audio(folder)), RATE, 256, min_samples=8192)
    assert [len(dataset[i]["waveform"]) for i in range(len(dataset))] == [19968, 19968, 19968, 19968, 8192]
