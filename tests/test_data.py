"""Training data: which files, which segments."""

import os
from pathlib import Path

import numpy as np
import pytest
import scripts
import soundfile as sf
import tiny
import torch

from apnet2_tts_plugin.audio import find_audio, read_audio
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.training.corpus import AudioFile, split, usable
from apnet2_tts_plugin.training.data import EpochBatches, Segments, Utterances, evaluation_loader, training_loader

RATE = 22050


def write(path, n_samples=20000, value=None, nan_at=None, scale=1.0):
    """A file whose samples grow from 0 to 0.9, so that a segment tells where it was cut, or are all `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.linspace(0, 0.9, n_samples) if value is None else np.full(n_samples, value)
    if nan_at is not None:
        samples[nan_at] = np.nan
    sf.write(path, scale * samples, RATE, subtype="PCM_16" if nan_at is None and scale == 1 else "FLOAT")
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("b.wav", "a.flac", "deep/c.WAV", "d.wav"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def test_files_are_found_in_the_order_of_their_names(folder):
    (folder / "folder.wav").mkdir()
    assert [path.name for path in find_audio(folder)] == ["a.flac", "b.wav", "d.wav", "c.WAV"]


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_folders_without_audio(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=missing):
        find_audio(tmp_path / missing)


def test_split_does_not_depend_on_the_order_of_the_files(folder):
    paths = find_audio(folder)
    train, held_out = split(paths[::-1], 1)
    assert (train, held_out) == split(paths, 1)
    assert [path.name for path in held_out] == ["c.WAV"] and len(train) == 3
    with pytest.raises(DataError, match="eval_split_size: 4, expected fewer than the 4 audio files"):
        split(paths, 4)


def test_useless_files_are_named_with_the_reason_and_counted(folder, caplog):
    write(folder / "silent.wav", value=0.0)
    write(folder / "empty.wav", n_samples=0)
    write(folder / "nan.wav", n_samples=150000, nan_at=140000)
    write(folder / "integers.wav", n_samples=100000, scale=32767)
    write(folder / "loud.wav", n_samples=100000, scale=1.6)  # overdriven, but sound
    sf.write(folder / "opposite.wav", np.linspace([0, 0], [0.9, -0.9], 20000), RATE)  # channels that cancel each other
    (folder / "broken.wav").write_bytes(b"RIFF but not really")
    cut, endless = write(folder / "cut.flac", n_samples=200000), folder / "endless.flac"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    whole = (folder / "a.flac").read_bytes()
    # the number of samples is the last 36 bits before the checksum in the first metadata block
    endless.write_bytes(whole[:21] + bytes([whole[21] & 0xF0, 0, 0, 0, 0]) + whole[26:])
    files = usable(find_audio(folder))
    assert [file.path.name for file in files] == ["a.flac", "b.wav", "d.wav", "c.WAV", "loud.wav"]
    assert files[0] == AudioFile(folder / "a.flac", 20000, RATE)
    *skipped, count = caplog.messages
    reasons = {
        "broken.wav": "",
        "cut.flac": "",
        "empty.wav": "it is empty",
        "endless.flac": "it does not tell its length; writing it anew helps",
        "integers.wav": "its samples reach 4831, expected -1 to 1; divide those of 16 bit by 32768",
        "nan.wav": "it has NaN or infinite samples",
        "opposite.wav": "it is silent",
        "silent.wav": "it is silent",
    }
    for message, (name, reason) in zip(skipped, reasons.items(), strict=True):
        assert message.startswith(f"Skipped {folder / name}: ") and message.endswith(reason)
    assert count == "Skipped 8 of 13 audio files"
    with pytest.raises(DataError, match="none of 1 audio files can be used; the first one: .*silent.wav: it is silent"):
        usable([folder / "silent.wav"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_path": ""}, "no audio files are given, expected a folder of them"),
        ({"feature_path": "mels"}, "data_path: none, expected the folder of the audio that the mels"),
        ({"input_features": "latent"}, "feature_path: none, expected the folder of latents"),
    ],
)
def test_settings_without_data(settings, message):
    with pytest.raises(DataError, match=message):
        tiny.model(**settings).get_data_loader(tiny.config(**settings))


def test_stereo_is_mixed_down(tmp_path):
    samples = np.stack([np.full(100, 0.5), np.full(100, -0.1)], axis=1)
    sf.write(tmp_path / "stereo.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav", RATE), np.full(100, 0.2), atol=1e-6)


def segments(paths, n_samples=8192, seed=0):
    return Segments(usable(paths), RATE, 256, n_samples, seed)


def first_samples(dataset, epoch):
    return [float(dataset[epoch, i]["waveform"][0]) for i in range(len(dataset))]


def test_segments_are_parts_of_their_files(folder):
    item = segments(find_audio(folder))[0, 1]
    whole, segment = read_audio(folder / "b.wav", RATE), item["waveform"].numpy()
    assert set(item) == {"waveform", "path"} and item["path"] == str(folder / "b.wav")
    assert segment.shape == (8192,) and segment.dtype == np.float32
    start = int(np.abs(whole - segment[0]).argmin())
    np.testing.assert_allclose(whole[start : start + 8192], segment, atol=2e-4)


def test_a_file_that_goes_bad_is_replaced_by_the_next_one(folder, caplog):
    bad, good = write(folder / "nan.wav", nan_at=18000), write(folder / "good.wav", n_samples=8192, value=0.25)
    dataset = Segments([AudioFile(bad, 20000, RATE), *usable([good])], RATE, 256, 16384, seed=0)
    segment = dataset[0, 0]
    assert segment["waveform"].max() == pytest.approx(0.25, abs=1e-3) and segment["path"] == str(good)
    assert any("nan.wav: has NaN" in message for message in caplog.messages)


def test_draws_differ_by_item_and_epoch_and_repeat_by_seed(folder):
    paths = [write(folder / f"same{i}.wav", n_samples=60000) for i in range(4)]
    dataset = segments(paths)
    first = first_samples(dataset, epoch=0)
    assert len(set(first)) == 4
    assert first_samples(dataset, epoch=1) != first
    assert first_samples(dataset, epoch=0) == first
    assert first_samples(segments(paths, seed=1), epoch=0) != first


def test_draws_do_not_depend_on_the_workers(folder):
    paths = [write(folder / f"same{i}.wav", n_samples=60000) for i in range(6)]
    loader = training_loader(tiny.config(batch_size=4, num_loader_workers=2, training_seed=5), usable(paths))
    loader.batch_sampler.epoch = 3
    dataset = segments(paths, seed=5)
    alone = [torch.stack([dataset[item]["waveform"] for item in batch]) for batch in loader.batch_sampler]
    assert [len(batch) for batch in alone] == [4, 2]
    torch.testing.assert_close([batch["waveform"] for batch in loader], alone)


def test_all_of_a_file_is_drawn_from(folder):
    dataset = segments([write(folder / "long.wav", n_samples=8192 * 3)])
    starts = [float(dataset[epoch, 0]["waveform"][0]) / 0.9 * 3 for epoch in range(300)]
    assert min(starts) < 0.1 and max(starts) > 1.9
    assert np.histogram(starts, bins=4, range=(0, 2))[0].min() > 40


@pytest.mark.parametrize("n_samples", [1, 500, 8191, 8192])
def test_short_files_are_padded_behind(folder, n_samples):
    segment = segments([write(folder / "short.wav", n_samples=n_samples, value=0.5)])[0, 0]["waveform"]
    assert segment.shape == (8192,)
    assert (segment[:n_samples] > 0.49).all() and not segment[n_samples:].any()


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    time = np.arange(3 * rate) / rate
    sf.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, subtype="PCM_16")
    dataset = segments([tmp_path / "tone.wav"])
    for epoch in range(5):
        segment = dataset[epoch, 0]["waveform"].numpy()
        assert segment.shape == (8192,)
        spectrum = np.abs(np.fft.rfft(segment * np.hanning(8192)))
        assert np.argmax(spectrum) * RATE / 8192 == pytest.approx(440, abs=RATE / 8192)
        # no edge of the resampling filter inside the segment
        assert np.abs(segment).max() == pytest.approx(0.5, abs=0.01)


def test_utterances_are_whole_files_in_hops(folder):
    write(folder / "short.wav", n_samples=100, value=0.5)
    dataset = Utterances(usable(find_audio(folder)), RATE, 256, min_samples=8192)
    assert [len(dataset[i]["waveform"]) for i in range(len(dataset))] == [19968, 19968, 19968, 19968, 8192]
    assert dataset[4]["path"] == str(folder / "short.wav")


def test_held_out_files_that_cannot_be_read_are_left_out(folder, caplog):
    bad, good = write(folder / "nan.wav", n_samples=60000, nan_at=50000), folder / "b.wav"
    files = [AudioFile(bad, 60000, RATE), *usable([good])]
    loader = evaluation_loader(tiny.config(num_eval_loader_workers=0), files)
    assert [batch["path"] for batch in loader] == [[str(good)]]
    assert caplog.messages == [f"Left out of the evaluation: {bad}: has NaN or infinite samples"]
    with pytest.raises(DataError, match=r"none of 1 held-out files can be read; the first one: .*nan\.wav"):
        evaluation_loader(tiny.config(), files[:1])


def test_names_of_any_bytes(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.wav"))
    write(tmp_path / "Mueller.wav").rename(path)
    item = segments(find_audio(tmp_path))[0, 0]
    assert item["path"] == str(path) and item["waveform"].shape == (8192,)


def test_several_segments_of_a_file_in_an_epoch(folder):
    files = usable([write(folder / f"same{i}.wav", n_samples=60000) for i in range(3)])
    loader = training_loader(tiny.config(batch_size=4, segments_per_file=2, num_loader_workers=0), files)
    batches = list(loader)
    paths = [path for batch in batches for path in batch["path"]]
    assert len(loader) == 2 and sorted(paths) == sorted(2 * [str(file.path) for file in files])
    first = torch.cat([batch["waveform"][:, 0] for batch in batches])
    assert len(set(first.tolist())) == 6


def epoch_of(batches, epoch, start=0):
    batches.epoch, batches.start = epoch, start
    return list(batches)


SIZES = [(n, batch, world) for n in (1, 2, 5, 7, 12, 100) for batch in (1, 3, 16) for world in (1, 2, 3, 8)]


@pytest.mark.parametrize(("n_items", "batch_size", "world_size"), SIZES)
def test_processes_share_the_batches_of_one(n_items, batch_size, world_size):
    one = epoch_of(EpochBatches(n_items, batch_size * world_size, seed=1), epoch=2)
    shares = [EpochBatches(n_items, batch_size, 1, rank, world_size) for rank in range(world_size)]
    parts = [epoch_of(share, epoch=2) for share in shares]
    assert {len(part) for part in parts} == {len(share) for share in shares} == {len(one)}
    order = [item for batch in one for item in batch]
    assert sorted(order) == [(2, i) for i in range(n_items)]
    for k, whole in enumerate(one):
        batches = [part[k] for part in parts]
        assert len({len(batch) for batch in batches}) == 1
        dealt = [item for items in zip(*batches, strict=True) for item in items]
        assert dealt[: len(whole)] == whole
        added = dealt[len(whole) :]
        assert len(added) < world_size and added == [order[i % n_items] for i in range(len(added))]


def test_the_order_depends_on_seed_and_epoch():
    first, again, other_epoch, other_seed = (
        [index for batch in epoch_of(EpochBatches(50, 4, seed), epoch) for _, index in batch]
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again and first != other_epoch != other_seed != first


@pytest.mark.parametrize("start", range(5))
def test_an_epoch_goes_on_where_it_stopped(start):
    batches = EpochBatches(15, 2, seed=3, rank=1, world_size=2)
    whole = epoch_of(batches, epoch=4)
    assert epoch_of(batches, epoch=4, start=start) == whole[start:]
    assert len(batches) == len(whole) == 4


@pytest.mark.slow
def test_the_benchmark_of_a_corpus_prints_its_tables(tmp_path, monkeypatch, capsys):
    benchmark = scripts.load(scripts.BENCHMARKS / "corpus.py", monkeypatch)
    sizes = "--hours 0.01 --files 20 --few 10 --segments 32 --workers 2".split()
    scripts.run(benchmark, monkeypatch, *sizes, "--folder", tmp_path)
    printed = capsys.readouterr().out
    rows = [line.split(" | ")[0].removeprefix("| ") for line in printed.splitlines() if line.startswith("| ")]
    formats = ["WAV", "WAV, a tenth", "FLAC", "WAV of 44.1 kHz", "WAV and mels"]
    assert rows == ["Start-up", "first", "second", "Audio", *formats]
    assert not any(tmp_path.iterdir())
