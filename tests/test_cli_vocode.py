"""`apnet2 vocode`: what it writes, and that each mistake gets one line, a status and no file."""

import os
import re
import resource
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
    SAMPLE,
    a_file,
    a_pt,
    a_wav,
    an_npy,
    files,
    holds,
    is_done,
    one_line,
    random_mel,
    tone,
    vocoded,
)
from weight_files import save_checkpoint

from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.spectra import LogMel
from apnet2_tts_plugin.weights.checkpoints import save_config, save_weights

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures


@pytest.mark.parametrize(
    ("n_samples", "suffix"), [(1, "wav"), (512, "wav"), (768, "wav"), (20000, "wav"), (5000, "flac")]
)
def test_copy_synthesis(n_samples, suffix, model, apnet2, workplace):
    """As many samples as the input has, and those that the model gives for its mel."""
    soundfile.write(f"in.{suffix}", tone(n_samples), RATE)
    assert is_done(apnet2("vocode", f"in.{suffix}", "out.wav"))
    info = soundfile.info("out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (n_samples, RATE, 1, "PCM_16")
    recording = torch.from_numpy(soundfile.read(f"in.{suffix}", dtype="float32")[0])
    padded = F.pad(recording, (0, -n_samples % HOP if n_samples > 512 else 768 - n_samples))
    mel = LogMel.from_audio_config(tiny.config().audio)(padded[None])
    assert holds("out.wav", tiny.generator().inference(mel)[0, :n_samples])
    assert files(workplace) == sorted([f"in.{suffix}", "out.wav"])


@pytest.mark.parametrize("save", [an_npy, lambda mel: a_pt(torch.from_numpy(mel))])
@pytest.mark.parametrize(("shape", "dtype"), [((80, 20), "float32"), ((1, 80, 20), "float64"), ((80, 2), "float16")])
def test_mel(shape, dtype, save, model, apnet2):
    mel = random_mel(shape[-1]).astype(dtype)
    assert is_done(apnet2("vocode", save(mel.reshape(shape)), "out.wav"))
    assert soundfile.info("out.wav").frames == (shape[-1] - 1) * HOP
    assert holds("out.wav", tiny.generator().inference(torch.from_numpy(mel).float()[None]))


def test_stereo_is_mixed_down(model, apnet2):
    apnet2("vocode", a_wav(np.stack([tone(5000), np.zeros(5000)], axis=1), name="stereo.wav"), "a.wav")
    apnet2("vocode", a_wav(tone(5000) / 2, name="mono.wav"), "b.wav")
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


def test_resample(model, apnet2):
    status, _, err = apnet2("vocode", a_wav(tone(16000, 16000), 16000), "out.wav", "--no-resample")
    assert status == 1 and "in.wav: has 16000 Hz, expected the model's 22050 Hz" in one_line(err)
    status, out, err = apnet2("vocode", a_wav(tone(16000, 16000), 16000), "out.wav")
    warning, summary = err.splitlines(keepends=True)
    assert warning == "apnet2: in.wav: resampled from 16000 to 22050 Hz\n" and is_done((status, out, summary))
    assert soundfile.info("out.wav").frames == RATE


def test_rates_without_a_common_factor(model, apnet2):
    """One sample, and a second: in no more memory than other rates."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n_samples, expected in ((1, 1), (RATE + 1, RATE)):
        assert apnet2("vocode", a_wav(tone(n_samples, RATE + 1) + 0.1, RATE + 1), "out.wav")[0] == 0
        assert soundfile.info("out.wav").frames == expected
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def test_iterations(model, apnet2, monkeypatch):
    """By argument and by the environment, which `tts` has too; without either the model's own, none."""
    for name, arguments in {"none": [], "zero": ["--iterations", "0"], "two": ["--iterations", "2"]}.items():
        assert apnet2("vocode", an_npy(random_mel()), f"{name}.wav", *arguments)[0] == 0
    monkeypatch.setenv("APNET2_ITERATIONS", "2")
    assert apnet2("vocode", "in.npy", "environment.wav")[0] == 0
    sounds = {name: Path(f"{name}.wav").read_bytes() for name in ("none", "zero", "two", "environment")}
    assert sounds["none"] == sounds["zero"] != sounds["two"] == sounds["environment"]
    assert apnet2("vocode", "in.npy", "out.wav", "--iterations", "-1")[0] == 2
    monkeypatch.setenv("APNET2_ITERATIONS", "many")
    assert "consistency_iterations: 'many', expected 0 to 1000" in one_line(apnet2("vocode", "in.npy", "out.wav")[2])


def test_model_by_name_and_folder(model, apnet2, tmp_path, workplace):
    """An old file is replaced each time."""
    loud = tiny.save(tmp_path / "loud", loudness=1.0)
    assert apnet2("install", loud, "--name", "loud")[0] == 0
    run = tmp_path / "run"  # as the Trainer leaves it
    save_config(tiny.config(), run)
    for seed, name in enumerate(("best_model.pth", "best_model_5.pth", "checkpoint_5.pth")):
        save_checkpoint(tiny.model(seed), run / name)
    named = {"loud": 1.0, "vocoder_models/universal/unknown/loud": 1.0, loud: 1.0, "apnet2": 0.0, model: 0.0, run: 0.0}
    for name, loudness in named.items():
        assert is_done(apnet2("vocode", an_npy(), "out.wav", "--model", name))
        assert holds("out.wav", vocoded(loudness))
    assert files(workplace) == ["in.npy", "out.wav"]


def test_what_is_too_loud_is_scaled_down_as_a_whole(apnet2, tmp_path):
    loud = tiny.save(tmp_path / "loud", loudness=5.0)
    status, out, err = apnet2("vocode", an_npy(), "out.wav", "--model", loud)
    warning, summary = err.splitlines(keepends=True)
    peak = vocoded(5.0).abs().max()
    assert peak > 2 and is_done((status, out, summary))
    decibels = 20 * torch.log10(peak)
    assert warning == f"apnet2: in.npy: scaled down by {decibels:.1f} dB, as its peak was {peak:.2f} of full scale\n"
    assert holds("out.wav", vocoded(5.0) / peak)


@pytest.mark.parametrize("loudness", [0.0, 5.0])
def test_normalize(loudness, apnet2, tmp_path):
    folder = tiny.save(tmp_path / "model", loudness)
    assert is_done(apnet2("vocode", an_npy(), "out.wav", "--model", folder, "--normalize"))
    assert holds("out.wav", vocoded(loudness) / vocoded(loudness).abs().max() * 10 ** (-1 / 20))


def test_folder(model, apnet2, workplace):
    Path("in/sub").mkdir(parents=True)
    a_wav(name="in/a.wav")
    soundfile.write("in/sub/b.FLAC", tone(6000), RATE, format="FLAC")
    an_npy(name="in/sub/c.d.npy")
    a_file("in/notes.txt")
    status, out, err = apnet2("vocode", "in", "new/out")
    left_out, summary = err.splitlines(keepends=True)
    assert left_out == "apnet2: in: 1 left out, by their suffixes other kinds of files: notes.txt\n"
    assert is_done((status, out, summary), 3)
    assert files(workplace / "new") == ["out/a.wav", "out/sub/b.wav", "out/sub/c.d.wav"]
    assert soundfile.info("new/out/sub/b.wav").frames == 6000


def test_folder_with_bad_files(model, apnet2, workplace):
    Path("in").mkdir()
    a_file("in/a.wav")
    an_npy(random_mel()[:79], "in/b.npy")
    status, _, err = apnet2("vocode", "in", "out")
    assert status == 1 and not Path("out").exists()
    a_wav(name="in/c.wav")
    status, _, err = apnet2("vocode", "in", "out")
    assert status == 1
    first, second, summary, last = err.splitlines(keepends=True)
    assert is_done((0, "", summary))
    assert "in/a.wav: not a recording that can be read" in first and "in/b.npy: has shape (79, 20)" in second
    assert last == "apnet2: 2 of 3 files could not be vocoded\n"
    assert files(workplace / "out") == ["c.wav"]


class Trap:
    """When it is unpickled, a file appears, which the test sees."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def natural_mel() -> np.ndarray:
    """The mel (80, T) of a real recording."""
    recording = soundfile.read(SAMPLE, dtype="float32")[0]
    return LogMel.from_audio_config(tiny.config().audio)(recording[None])[0].numpy()


BAD_INPUTS = {
    "missing": (lambda: "nowhere.wav", r"nowhere\.wav: no such file or folder"),
    "empty folder": (lambda: Path("in").mkdir() or "in", r"in: no \.wav, \.flac, .*\.npy, \.pt file in this folder"),
    "no audio": (lambda: a_file("in.wav"), r"in\.wav: not a recording that can be read \(Format not recognised"),
    "other file": (lambda: a_file("in.docx"), r"in\.docx: not a recording that can be read"),
    "empty file": (lambda: a_file("in.flac", b""), r"in\.flac: not a recording that can be read"),
    "inverted": (lambda: a_wav(np.stack([tone(5000), -tone(5000)], 1)), r"in\.wav: its channels cancel each other out"),
    "nearly inverted": (lambda: a_wav(np.stack([tone(5000), -0.999 * tone(5000)], 1)), "channels cancel each other"),
    "integer scale": (lambda: a_wav(32768 * tone(5000)), r"in\.wav: its samples reach 9830, expected -1 to 1"),
    "no samples": (lambda: a_wav(np.zeros(0)), r"in\.wav: has no samples"),
    "NaN sample": (lambda: a_wav(np.full(5000, np.nan)), r"in\.wav: has NaN or infinite samples"),
    "no npy": (lambda: a_file("in.npy"), r"in\.npy: not a readable \.npy file"),
    "hostile npy": (lambda: an_npy(np.array([Trap()])), r"in\.npy: .* it holds more than numbers"),
    "hostile pt": (lambda: a_pt(Trap()), r"in\.pt: .* it holds more than numbers"),
    "text": (lambda: an_npy(np.array(["a"])), r"in\.npy: not a readable \.npy file"),
    "no pt": (lambda: a_file("in.pt"), r"in\.pt: not a readable \.pt file"),
    "sparse": (lambda: a_pt(torch.ones(80, 20).to_sparse()), r"in\.pt: holds a sparse tensor, or"),
    "no numbers": (
        lambda: a_pt(torch.ones(80, 20, device="meta")),
        r"in\.pt: .* without its numbers, expected a dense",
    ),
    "dictionary": (lambda: a_pt({"mel": torch.zeros(80, 20)}), r"in\.pt: holds a dict, expected a tensor"),
    "bands": (lambda: an_npy(random_mel()[:79]), r"shape \(79, 20\), expected \(80, frames\) or \(1, 80, frames\)"),
    "batch": (lambda: an_npy(np.stack([random_mel()] * 2)), r"shape \(2, 80, 20\), expected"),
    "one axis": (lambda: an_npy(random_mel()[0]), r"shape \(20,\), expected"),
    "no axis": (lambda: a_pt(torch.tensor(1.0)), r"shape \(\), expected"),
    "one frame": (lambda: an_npy(random_mel()[:, :1]), r"in\.npy: has 1 frames, expected at least 2"),
    "NaN": (lambda: an_npy(np.full((80, 9), np.nan, np.float32)), r"in\.npy: has NaN or infinite values"),
    "transposed": (lambda: an_npy(random_mel().T), r"shape \(20, 80\), expected .*; it is transposed"),
    "log10": (lambda: an_npy(natural_mel() / np.log(10)), "in.npy: has numbers from -5.0 to .*in log10"),
    "dB": (lambda: an_npy(natural_mel() * 20 / np.log(10)), "in.npy: has numbers from -100.0 to .*in dB"),
    "no logarithm": (lambda: an_npy(np.exp(natural_mel())), "in.npy: .*no logarithm"),
    "integers": (lambda: an_npy(np.zeros((80, 9), np.int64)), r"in\.npy: has numbers of type torch\.int64"),
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


def test_answer_that_is_not_finite(apnet2, tmp_path, workplace):
    broken = tiny.save(tmp_path / "broken", loudness=1e4)
    status, _, err = apnet2("vocode", an_npy(), "out.wav", "--model", broken)
    assert status == 1 and "in.npy: the model's output has NaN or infinite samples" in one_line(err)
    assert files(workplace) == ["in.npy"]


def test_recording_for_a_vocoder_of_latents(apnet2, tmp_path):
    latent = tiny.model(input_features="latent")
    save_config(latent.config, tmp_path / "latent")
    save_weights(latent.generator, tmp_path / "latent")
    status, _, err = apnet2("vocode", a_wav(), "out.wav", "--model", tmp_path / "latent")
    assert status == 1 and "in.wav: is a recording, but this model vocodes latents of a VITS" in one_line(err)
    assert is_done(apnet2("vocode", an_npy(np.zeros((192, 9))), "out.wav", "--model", tmp_path / "latent"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("CPUAllocator: can't allocate memory")])
def test_too_long_for_the_memory(error, model, apnet2, monkeypatch):
    def inference(*arguments):
        raise error

    monkeypatch.setattr(Apnet2, "inference", inference)
    status, _, err = apnet2("vocode", a_wav(), "out.wav")
    assert status == 1 and "in.wav: too long for the memory of cpu; cut it into shorter files" in one_line(err)


def test_bad_outputs(model, apnet2, workplace):
    for folder in ("folder", "two", "deep/in/in"):
        Path(folder).mkdir(parents=True)
    for name in ("in.wav", "folder/a.wav", "two/a.wav", "deep/in/a.wav", "deep/in/in/a.wav"):
        a_wav(name=name)
    an_npy(name="two/a.npy")
    a_file("file")
    before = {name: Path(name).read_bytes() for name in files(workplace)}
    for source, target, reason in (
        ("in.wav", "in.wav", "in.wav: is an input and would be overwritten"),
        ("in.wav", "folder/../in.wav", "in.wav: is an input and would be overwritten"),
        ("folder/a.wav", "folder", "folder/a.wav: is an input and would be overwritten"),
        ("in.wav", "out", "out: expected the name of a .wav, .flac, "),
        ("in.wav", "out.docx", "out.docx: expected the name of a .wav, .flac, "),
        ("folder", "-", "standard output takes one file"),
        ("in.wav", "file/out.wav", "file/out.wav: cannot be written"),
        ("folder", "file", "file: names a file; for several inputs or a folder, expected a folder"),
        ("folder", "out.wav", "out.wav: names a file; for several inputs or a folder, expected a folder"),
        ("folder", "folder", "folder: lies in folder, which is read"),
        ("folder", "folder/out", "folder/out: lies in folder, which is read"),
        ("folder", "file/out", "file/out/a.wav: cannot be written"),
        ("two", "out", "two/a.npy and two/a.wav would all become out/a.wav"),
        ("deep/in", "deep", "deep/in/a.wav: is an input and would be overwritten"),
    ):
        status, _, err = apnet2("vocode", source, target)
        assert status == 1 and reason in one_line(err)
        assert {name: Path(name).read_bytes() for name in files(workplace)} == before


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "out.wav: cannot be written (No space left on device)"),
    ],
)
def test_write_that_fails(error, status, reason, model, apnet2, workplace, monkeypatch):
    """Halfway through a file: nothing partial is left, an older file stays as it was, and no other is begun."""

    def write(path, content):
        path.open("wb").write(content[:9])
        raise error

    for folder in ("in", "out"):
        Path(folder).mkdir()
    for name in ("in/out.npy", "in/second.npy"):
        an_npy(name=name)
    a_file("out/out.wav", b"old")
    monkeypatch.setattr(Path, "write_bytes", write)
    result, _, err = apnet2("vocode", "in", "out", "--jobs", "1")
    assert result == status and reason in one_line(err)
    assert files(workplace / "out") == ["out.wav"] and Path("out/out.wav").read_bytes() == b"old"


def test_writes_that_fail_at_once(model, apnet2, workplace, monkeypatch):
    """In two threads: the first of them to fail is named, and nothing is left of either."""

    def write(path, content):
        path.open("wb").write(content[:9])
        raise OSError(28, "No space left on device")

    for name in ("a", "b", "c", "d"):
        an_npy(name=f"{name}.npy")
    monkeypatch.setattr(Path, "write_bytes", write)
    status, _, err = apnet2("vocode", "a.npy", "b.npy", "c.npy", "d.npy", "out/", "--jobs", "2")
    assert status == 1 and one_line(err).endswith(".wav: cannot be written (No space left on device)\n")
    assert files(workplace / "out") == []


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", ""])
def test_bad_device(device, model, apnet2):
    status, _, err = apnet2("vocode", an_npy(), "out.wav", "--device", device)
    assert status == 1 and f"device {device!r} cannot be used here" in one_line(err)
    assert not Path("out.wav").exists()


COMMAND = Path(sys.executable).with_name("apnet2")


@pytest.mark.parametrize("command", [[COMMAND], [sys.executable, "-m", "apnet2_tts_plugin"]])
def test_real_command_says_one_line_when_all_is_well(command, tmp_path):
    command += ["vocode", a_wav(), "out.wav", "--model", tiny.save(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert is_done((done.returncode, done.stdout, done.stderr))
    assert soundfile.info("out.wav").frames == 5000


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 2])
def test_real_interrupt(n_threads, tmp_path):
    Path("in").mkdir()
    an_npy(random_mel(100), "in/0000.npy")
    for number in range(1, 2000):
        os.link("in/0000.npy", f"in/{number:04}.npy")
    process = subprocess.Popen(
        [COMMAND, "vocode", "in", "out", "--model", tiny.save(tmp_path / "model"), "--jobs", str(n_threads)],
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, as the tests may be, ignores the signal, and its children would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(files(Path("out"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "apnet2: interrupted\n"
    written = files(Path("out"))
    assert 0 < len(written) < 2000
    assert all(soundfile.info(f"out/{name}").frames == 99 * HOP for name in written)
