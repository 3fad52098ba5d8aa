"""Files that several threads share: what comes out is what one by one gives, in bounded memory, and can be ended."""

import itertools
import threading
import time
from pathlib import Path

import command_line
import numpy as np
import pytest
import soundfile
import tiny
import torch
from command_line import RATE, SAMPLE, a_file, a_wav, an_npy, files, is_done, one_line, random_mel, tone

from apnet2_tts_plugin import batch, loader, vocode
from apnet2_tts_plugin.audio import StandardInput
from apnet2_tts_plugin.errors import OutputError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.vocode import FileVocoder
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.workers import Stopped, go_on, in_threads

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures
BUNDLED = store.BUNDLED / "apnet2"  # which the fixture hides


def samples(folder: str) -> dict[str, np.ndarray]:
    return {name: soundfile.read(f"{folder}/{name}")[0] for name in files(Path(folder))}


def test_the_samples_of_one_by_one(apnet2):
    speech, analysis = soundfile.read(SAMPLE, dtype="float32")[0], loader.load_model(BUNDLED).log_mel
    Path("in").mkdir()
    for i, n_samples in enumerate([9000, 5000, 100, 5001, 20000, 8000]):
        soundfile.write(f"in/{i}.wav", speech[i * 9000 :][:n_samples], RATE)
        an_npy(analysis(speech[None, 1000 * i :][:, : n_samples + 600])[0].numpy(), f"in/m{i}.npy")
    options = ("--model", BUNDLED)
    assert is_done(apnet2("vocode", "in", "one", "--jobs", 1, *options), 12)
    for n_threads in (2, 3):
        assert is_done(apnet2("vocode", "in", "many", "--jobs", n_threads, *options), 12)
        one, many = samples("one"), samples("many")
        assert list(one) == list(many)
        for name, expected in one.items():
            np.testing.assert_allclose(many[name], expected, atol=1e-4)


def test_a_model_that_pools_and_files_of_all_kinds(model, apnet2):
    Path("in/sub").mkdir(parents=True)
    a_wav(tone(RATE, 16000), 16000, "in/rate.wav")
    an_npy(name="in/sub/mel.npy")
    torch.save(torch.from_numpy(random_mel(30)), "in/mel.pt")
    soundfile.write("in/a.flac", tone(7000), RATE)
    for n_threads in (1, 2):
        status, _, err = apnet2("vocode", "in", f"out{n_threads}", "--jobs", n_threads)
        assert status == 0 and err.startswith("apnet2: in/rate.wav: resampled from 16000 to 22050 Hz\n")
    one, many = samples("out1"), samples("out2")
    assert list(one) == list(many) == ["a.wav", "mel.wav", "rate.wav", "sub/mel.wav"]
    for name, expected in one.items():
        np.testing.assert_allclose(many[name], expected, atol=1e-4)


def test_mels(model, apnet2):
    Path("in").mkdir()
    for i in range(5):
        a_wav(tone(4000 + 999 * i), name=f"in/{i}.wav")
    assert is_done(apnet2("mel", "in", "one", "--jobs", 1), 5, "analysed")
    assert is_done(apnet2("mel", "in", "many", "--jobs", 2), 5, "analysed")
    for name in files(Path("one")):
        np.testing.assert_allclose(np.load(f"many/{name}"), np.load(f"one/{name}"), atol=1e-5)


@pytest.mark.parametrize("n_threads", [1, 2, 9])
def test_bad_files_are_named_and_left_out(n_threads, model, apnet2):
    for name in ("a.wav", "c.wav"):
        a_wav(name=name)
    a_file("b.wav")
    an_npy(random_mel()[:79], "d.npy")
    status, _, err = apnet2("vocode", *"a.wav b.wav missing.wav c.wav d.npy".split(), "out", "--jobs", n_threads)
    *reasons, summary, last = err.splitlines(keepends=True)
    assert status == 1 and files(Path("out")) == ["a.wav", "c.wav"] and is_done((0, "", summary), 2)
    assert last == "apnet2: 3 of 5 files could not be vocoded\n"
    for line, reason in zip(reasons, ("b.wav: not a rec", "missing.wav: no such", "d.npy: has shape"), strict=True):
        assert line.startswith(f"apnet2: {reason}")


def test_nothing_more_is_tried_where_nothing_can_be_written(model, apnet2):
    Path("in").mkdir()
    for i in range(40):
        a_wav(name=f"in/{i:02}.wav")
    a_file("file")
    status, _, err = apnet2("vocode", "in", "file/out", "--jobs", 2)
    assert status == 1 and "cannot be written" in one_line(err)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_partial_is_left(error, model, apnet2, monkeypatch):
    Path("in").mkdir()
    for i in range(20):
        an_npy(name=f"in/{i:02}.npy")
    numbers, write = itertools.count(1), Path.write_bytes

    def write_two(path, content):
        number = next(numbers)  # at once for both threads, so that neither takes the other's
        write(path, content[:9] if number > 2 else content)
        if number > 2:
            raise error

    monkeypatch.setattr(Path, "write_bytes", write_two)
    status, _, err = apnet2("vocode", "in", "out", "--jobs", 2)
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1) and one_line(err)
    assert len(files(Path("out"))) == 2 and all(soundfile.info(f"out/{name}").frames for name in files(Path("out")))


def test_a_batch_for_which_there_is_no_memory(model, monkeypatch):
    vocoder, inference = FileVocoder(loader.load_model(model)), Apnet2.inference

    def one_at_a_time(network, mel, lengths=None):
        if len(mel) > 1:
            raise torch.OutOfMemoryError
        return inference(network, mel)

    sources = [Path(an_npy(random_mel(n_frames), f"{n_frames}.npy")) for n_frames in (20, 30)]
    expected = vocoder.several(sources)
    monkeypatch.setattr(Apnet2, "inference", one_at_a_time)
    for waveform, batched in zip(vocoder.several(sources), expected, strict=True):
        torch.testing.assert_close(waveform, batched, atol=1e-5, rtol=0)


def test_long_files_end_between_their_pieces(model, monkeypatch):
    monkeypatch.setattr(vocode, "PIECE", 200)

    def check():
        raise Stopped

    vocoder = FileVocoder(loader.load_model(model))
    assert vocoder.several([Path(an_npy())], check)
    with pytest.raises(Stopped):
        vocoder.several([Path(an_npy(random_mel(500)))], check)


def test_seconds(model):
    config = tiny.config()
    a_wav(tone(16000, 16000), 16000)
    for source, expected in ((Path("in.wav"), 1), (Path(an_npy(random_mel(862))), 10), (Path("nowhere.wav"), 0)):
        assert vocode.seconds(source, config) == pytest.approx(expected, rel=0.01)
    assert vocode.seconds(Path(a_file("in.m4a", bytes(8000))), config) == 2
    assert vocode.seconds(StandardInput(b""), config) == 0


def test_files_of_like_lengths_are_done_at_once():
    lengths = {"a": 1.0, "b": 3.0, "c": 0.9, "d": 30.0, "e": 2.5, "f": 1.0, "g": 0.8}
    jobs = [batch.Job(Path(name), Path("out"), ".wav") for name in lengths]
    done = []

    def do(some, check):
        done.append("".join(str(job.source) for job in some))
        return [lengths[str(job.source)] for job in some]

    sharing = batch.Sharing(2, lambda source: lengths[str(source)], 6.0)
    assert batch.run(jobs, do, sharing).audio == pytest.approx(39.2)
    assert sorted(done) == ["afcg", "be", "d"]


def test_tasks_at_the_same_time_are_no_more_than_fit():
    held, most, lock = [], [], threading.Lock()

    def do(size, check):
        with lock:
            held.append(size)
            most.append(sum(held))
        time.sleep(0.01)
        with lock:
            held.remove(size)
        return size

    sizes = [1, 5, 2, 2, 2, 9, 1, 3, 1]
    assert sorted(in_threads(do, zip(sizes, sizes, strict=True), 3, 6.0)) == sorted(sizes)
    assert max(most) == 9 and sorted(most)[-2] <= 6


@pytest.mark.parametrize("error", [OutputError("no"), ValueError("no")])
def test_a_task_that_fails_ends_the_others(error):
    begun, stopped = [], threading.Event()

    def do(number, check):
        begun.append(number)
        if number == 1:
            raise error
        if number == 0:
            try:
                while True:
                    check()
                    time.sleep(0.001)
            finally:
                stopped.set()

    n_threads = torch.get_num_threads()
    with pytest.raises(type(error)):
        list(in_threads(do, ((i, 0.0) for i in range(1000)), 2, 1.0))
    assert stopped.is_set() and len(begun) < 10 and torch.get_num_threads() == n_threads
    assert go_on() is None


def test_torch_has_as_many_threads_as_before(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert list(in_threads(lambda task, check: task, [("a", 1.0)], 3, 1.0)) == ["a"]
    assert asked == [2, 8]
