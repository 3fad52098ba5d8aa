"""`apnet2 vocode`: what it writes, and that each mistake gets one line, a status and no file."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_line
import numpy as np
import pytest
import soundfile
import tiny
import torch
import torch.nn.functional as F
from command_line import (
    HOP,
    RATE,
    a_file,
    a_pt,
    a_wav,
    an_npy,
    as_16_bit,
    cut_in_half,
    files,
    one_line,
    random_mel,
    tone,
)

from apnet2_tts_plugin.spectra import LogMel

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures


@pytest.mark.parametrize(
    ("n_samples", "suffix"), [(1, "wav"), (512, "wav"), (768, "wav"), (20000, "wav"), (5000, "flac")]
)
def test_copy_synthesis(n_samples, suffix, model, apnet2, workplace):
    """As many samples as the input has, and those that the model gives for its mel."""
    soundfile.write(f"in.{suffix}", tone(n_samples), RATE)
    assert apnet2("vocode", f"in.{suffix}", "out.wav") == (0, "", "")
    info = soundfile.info("out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (n_samples, RATE, 1, "PCM_16")
    recording = torch.from_numpy(soundfile.read(f"in.{suffix}", dtype="float32")[0])
    padded = F.pad(recording, (0, -n_samples % HOP if n_samples > 512 else 768 - n_samples))
    mel = LogMel.from_audio_config(tiny.config().audio)(padded[None])
    expected = as_16_bit(tiny.generator().inference(mel)[0, :n_samples])
    written = soundfile.read("out.wav", dtype="int16")[0]
    assert np.abs(written - expected).max() <= 1
    assert np.abs(written).max() > 100
    assert files(workplace) == sorted([f"in.{suffix}", "out.wav"])


@pytest.mark.parametrize(
    ("shape", "dtype", "suffix"),
    [
        ((80, 20), "float32", "npy"),
        ((1, 80, 20), "float64", "npy"),
        ((80, 2), "float16", "npy"),
        ((80, 20), "float16", "pt"),
        ((1, 80, 2), "float64", "pt"),
    ],
)
def test_mel(shape, dtype, suffix, model, apnet2):
    mel = random_mel(shape[-1]).astype(dtype)
    if suffix == "npy":
        np.save("in.npy", mel.reshape(shape))
    else:
        torch.save(torch.from_numpy(mel).reshape(shape), "in.pt")
    assert apnet2("vocode", f"in.{suffix}", "out.wav") == (0, "", "")
    expected = as_16_bit(tiny.generator().inference(torch.from_numpy(mel).float()[None])[0])
    written = soundfile.read("out.wav", dtype="int16")[0]
    assert len(written) == (shape[-1] - 1) * HOP
    assert np.abs(written - expected).max() <= 1


def test_stereo_is_mixed_down(model, apnet2):
    soundfile.write("stereo.wav", np.stack([tone(5000), np.zeros(5000)], axis=1), RATE, subtype="FLOAT")
    soundfile.write("mono.wav", tone(5000) / 2, RATE, subtype="FLOAT")
    apnet2("vocode", "stereo.wav", "a.wav")
    apnet2("vocode", "mono.wav", "b.wav")
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


def test_resample(model, apnet2):
    soundfile.write("in.wav", tone(16000, 16000), 16000)
    status, _, err = apnet2("vocode", "in.wav", "out.wav")
    assert status == 1
    assert "in.wav: has 16000 Hz, expected the model's 22050 Hz; --resample" in one_line(err)
    assert apnet2("vocode", "in.wav", "out.wav", "--resample") == (0, "", "")
    assert soundfile.info("out.wav").frames == RATE


def test_model_by_name_and_folder(model, apnet2, tmp_path):
    np.save("in.npy", random_mel())
    tiny.save(tmp_path / "loud", loudness=1.0)
    assert apnet2("install", tmp_path / "loud", "--name", "loud")[0] == 0
    for name, out in (("loud", "a"), ("vocoder_models/en/ljspeech/loud", "b"), (tmp_path / "loud", "c"), (model, "d")):
        assert apnet2("vocode", "in.npy", f"{out}.wav", "--model", name) == (0, "", "")
    sounds = [Path(f"{name}.wav").read_bytes() for name in "abcd"]
    assert sounds[0] == sounds[1] == sounds[2] != sounds[3]


def test_output_is_replaced(model, apnet2, workplace):
    np.save("in.npy", random_mel())
    Path("out.wav").write_bytes(b"old")
    assert apnet2("vocode", "in.npy", "out.wav")[0] == 0
    assert soundfile.info("out.wav").frames == 19 * HOP
    assert files(workplace) == ["in.npy", "out.wav"]


def test_clipping_is_mentioned_once(apnet2, tmp_path):
    loud = tiny.save(tmp_path / "loud", loudness=5.0)
    np.save("in.npy", random_mel())
    status, _, err = apnet2("vocode", "in.npy", "out.wav", "--model", loud)
    assert status == 0
    assert "in.npy: the output is clipped, its peak was" in one_line(err)
    written = soundfile.read("out.wav", dtype="int16")[0]
    expected = as_16_bit(tiny.generator(5.0).inference(torch.from_numpy(random_mel())[None])[0])
    assert np.abs(written - expected).max() <= 1
    assert np.abs(expected).max() == 32767


def test_folder(model, apnet2, workplace):
    Path("in/sub").mkdir(parents=True)
    soundfile.write("in/a.wav", tone(5000), RATE)
    soundfile.write("in/sub/b.FLAC", tone(6000), RATE, format="FLAC")
    np.save("in/sub/c.d.npy", random_mel())
    Path("in/notes.txt").write_text("not mine")
    assert apnet2("vocode", "in", "new/out") == (0, "", "")
    assert files(workplace / "new") == ["out/a.wav", "out/sub/b.wav", "out/sub/c.d.wav"]
    assert soundfile.info("new/out/sub/b.wav").frames == 6000


def test_folder_with_bad_files(model, apnet2, workplace):
    Path("in").mkdir()
    Path("in/a.wav").write_text("no audio")
    np.save("in/b.npy", random_mel()[:79])
    soundfile.write("in/c.wav", tone(5000), RATE)
    status, _, err = apnet2("vocode", "in", "out")
    assert status == 1
    first, second, last = err.splitlines()
    assert "in/a.wav: not a readable WAV" in first and "in/b.npy: has shape (79, 20)" in second
    assert last == "apnet2: 2 of 3 files could not be spoken"
    assert files(workplace / "out") == ["c.wav"]


def test_folder_of_bad_files_alone_makes_no_folder(model, apnet2):
    Path("in").mkdir()
    Path("in/a.wav").write_text("no audio")
    assert apnet2("vocode", "in", "out")[0] == 1
    assert not Path("out").exists()


BAD_INPUTS = {
    "missing": (lambda: "nowhere.wav", r"nowhere\.wav: no such file or folder"),
    "empty folder": (lambda: Path("in").mkdir() or "in", r"in: no \.wav, \.flac, \.npy, \.pt file in this folder"),
    "suffix": (lambda: a_file("in.mp3"), r"in\.mp3: expected a \.wav, "),
    "no audio": (lambda: a_file("in.wav"), r"in\.wav: not a readable WAV or FLAC file"),
    "empty file": (lambda: a_file("in.flac", b""), r"in\.flac: not a readable WAV or FLAC file"),
    "no samples": (lambda: a_wav(np.zeros(0)), r"in\.wav: has no samples"),
    "rate": (lambda: a_wav(rate=44100), r"in\.wav: has 44100 Hz, expected the model's 22050 Hz"),
    "NaN sample": (lambda: a_wav(np.full(5000, np.nan)), r"in\.wav: has NaN or infinite samples"),
    "infinite sample": (lambda: a_wav(np.full(5000, np.inf)), r"in\.wav: has NaN or infinite samples"),
    "no npy": (lambda: a_file("in.npy"), r"in\.npy: not a readable \.npy file"),
    "empty npy": (lambda: a_file("in.npy", b""), r"in\.npy: not a readable \.npy file"),
    "cut npy": (lambda: cut_in_half(an_npy(random_mel())), r"in\.npy: not a readable \.npy file"),
    "objects": (lambda: an_npy(np.array([{}])), r"in\.npy: not a readable \.npy file, or it holds more"),
    "text": (lambda: an_npy(np.array(["a"])), r"in\.npy: not a readable \.npy file"),
    "no pt": (lambda: a_file("in.pt"), r"in\.pt: not a readable \.pt file"),
    "cut pt": (lambda: cut_in_half(a_pt(torch.zeros(80, 20))), r"in\.pt: not a readable \.pt file"),
    "dictionary": (lambda: a_pt({"mel": torch.zeros(80, 20)}), r"in\.pt: holds a dict, expected a tensor"),
    "bands": (lambda: an_npy(random_mel()[:79]), r"shape \(79, 20\), expected \(80, frames\) or \(1, 80, frames\)"),
    "transposed": (lambda: an_npy(random_mel().T), r"shape \(20, 80\), expected \(80, frames\)"),
    "batch": (lambda: an_npy(np.stack([random_mel()] * 2)), r"shape \(2, 80, 20\), expected"),
    "one axis": (lambda: an_npy(random_mel()[0]), r"shape \(20,\), expected"),
    "no axis": (lambda: a_pt(torch.tensor(1.0)), r"shape \(\), expected"),
    "one frame": (lambda: an_npy(random_mel()[:, :1]), r"in\.npy: has 1 frames, expected at least 2"),
    "no frame": (lambda: an_npy(random_mel()[:, :0]), r"in\.npy: has 0 frames, expected at least 2"),
    "NaN": (lambda: an_npy(np.full((80, 9), np.nan, np.float32)), r"in\.npy: has NaN or infinite values"),
    "infinite": (lambda: a_pt(torch.full((80, 9), -torch.inf)), r"in\.pt: has NaN or infinite values"),
    "integers": (lambda: an_npy(np.zeros((80, 9), np.int64)), r"in\.npy: has numbers of type torch\.int64"),
    "complex": (lambda: an_npy(np.zeros((80, 9), np.complex64)), r"in\.npy: has numbers of type torch\.complex64"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input(case, model, apnet2, workplace):
    make, reason = BAD_INPUTS[case]
    source = make()
    before = files(workplace)
    status, out, err = apnet2("vocode", source, "out" if Path(source).is_dir() else "out.wav")
    assert (status, out) == (1, "")
    assert re.search(reason, one_line(err))
    assert files(workplace) == before and not Path("out").exists()


def test_hostile_mel_is_not_run(model, apnet2, workplace):
    a_pt(Trap())
    np.save("trap.npy", np.array([Trap()]), allow_pickle=True)
    for name in ("in.pt", "trap.npy"):
        status, _, err = apnet2("vocode", name, "out.wav")
        assert status == 1 and "holds more than numbers" in one_line(err)
    assert files(workplace) == ["in.pt", "trap.npy"]


class Trap:
    """When it is unpickled, a file appears."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_answer_that_is_not_finite(apnet2, tmp_path, workplace):
    broken = tiny.save(tmp_path / "broken", loudness=1e4)
    status, _, err = apnet2("vocode", an_npy(random_mel()), "out.wav", "--model", broken)
    assert status == 1 and "in.npy: the model's answer has NaN or infinite samples" in one_line(err)
    assert files(workplace) == ["in.npy"]


def test_bad_outputs(model, apnet2, workplace):
    a_wav()
    Path("folder").mkdir()
    soundfile.write("folder/a.wav", tone(5000), RATE)
    a_file("file")
    before = {name: Path(name).read_bytes() for name in files(workplace)}
    for source, target, reason in (
        ("in.wav", "in.wav", "in.wav: is an input and would be overwritten"),
        ("in.wav", "folder/../in.wav", "in.wav: is an input and would be overwritten"),
        ("in.wav", "folder", "folder: is a folder; for a single input, expected the name of a .wav file"),
        ("in.wav", "out.flac", "out.flac: is no name of a WAV file"),
        ("in.wav", "file/out.wav", "file/out.wav: cannot be written"),
        ("folder", "file", "file: is a file; for a folder of inputs, expected a folder"),
        ("folder", "folder", "folder: lies in folder, which is read"),
        ("folder", "folder/out", "folder/out: lies in folder, which is read"),
        ("folder", "file/out", "file/out/a.wav: cannot be written"),
    ):
        status, _, err = apnet2("vocode", source, target)
        assert status == 1 and reason in one_line(err)
        assert {name: Path(name).read_bytes() for name in files(workplace)} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(model, apnet2, workplace):
    a_wav()
    Path("locked").mkdir(mode=0o500)
    status, _, err = apnet2("vocode", "in.wav", "locked/out.wav")
    assert status == 1 and "locked/out.wav: cannot be written (Permission denied)" in one_line(err)


def test_two_inputs_with_one_output(model, apnet2):
    Path("in").mkdir()
    soundfile.write("in/a.wav", tone(5000), RATE)
    np.save("in/a.npy", random_mel())
    status, _, err = apnet2("vocode", "in", "out")
    assert status == 1 and "in/a.npy and in/a.wav would all become out/a.wav" in one_line(err)
    assert not Path("out").exists()


def test_an_input_below_the_output_is_not_overwritten(model, apnet2):
    Path("out/in/in").mkdir(parents=True)
    soundfile.write("out/in/a.wav", tone(5000), RATE)
    soundfile.write("out/in/in/a.wav", tone(5000), RATE)
    before = Path("out/in/a.wav").read_bytes()
    status, _, err = apnet2("vocode", "out/in", "out")
    assert status == 1 and "would be overwritten" in one_line(err)
    assert Path("out/in/a.wav").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "out.wav: cannot be written (No space left on device)"),
        (soundfile.LibsndfileError(2), 1, "out.wav: cannot be written"),
    ],
)
def test_write_that_fails(error, status, reason, model, apnet2, workplace, monkeypatch):
    """Halfway through a file: nothing partial is left, and an older file stays as it was."""

    def write(path, *arguments, **settings):
        Path(path).write_bytes(b"half")
        raise error

    a_file("out.wav", b"old")
    an_npy(random_mel())
    monkeypatch.setattr(soundfile, "write", write)
    result, _, err = apnet2("vocode", "in.npy", "out.wav")
    assert result == status and reason in one_line(err)
    assert files(workplace) == ["in.npy", "out.wav"]
    assert Path("out.wav").read_bytes() == b"old"


def test_full_disk_ends_a_folder(model, apnet2, monkeypatch):
    Path("in").mkdir()
    for name in "abc":
        np.save(f"in/{name}.npy", random_mel())
    monkeypatch.setattr(soundfile, "write", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    status, _, err = apnet2("vocode", "in", "out")
    assert status == 1 and "out/a.wav: cannot be written" in one_line(err)


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", ""])
def test_bad_device(device, model, apnet2):
    status, _, err = apnet2("vocode", an_npy(random_mel()), "out.wav", "--device", device)
    assert status == 1 and f"device {device!r} cannot be used here" in one_line(err)
    assert not Path("out.wav").exists()


def test_unknown_model(model, apnet2):
    status, _, err = apnet2("vocode", an_npy(random_mel()), "out.wav", "--model", "apnet3")
    assert status == 1 and "no APNet2 model is called 'apnet3'; known: apnet2" in one_line(err)


def command() -> list[str]:
    """The installed command, or the module where it is not installed."""
    script = Path(sys.executable).with_name("apnet2")
    return [str(script)] if script.exists() else [sys.executable, "-m", "apnet2_tts_plugin.cli"]


def test_real_command_says_nothing_when_all_is_well(tmp_path):
    folder = tiny.save(tmp_path / "model")
    done = subprocess.run(
        [*command(), "vocode", a_wav(), "out.wav", "--model", folder], check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert soundfile.info("out.wav").frames == 5000


@pytest.mark.slow
def test_real_interrupt(tmp_path):
    folder = tiny.save(tmp_path / "model")
    Path("in").mkdir()
    np.save("in/0000.npy", random_mel(100))
    for number in range(1, 2000):
        os.link("in/0000.npy", f"in/{number:04}.npy")
    process = subprocess.Popen(
        [*command(), "vocode", "in", "out", "--model", folder],
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, as the tests may be, ignores the signal, and its children would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not Path("out/0001.wav").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "apnet2: interrupted\n"
    written = files(Path("out"))
    assert 0 < len(written) < 2000
    assert all(soundfile.info(f"out/{name}").frames == 99 * HOP for name in written)
