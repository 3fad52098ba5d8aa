"""What `apnet2 vocode` and `apnet2 mel` read and write: formats, several files, folders, standard input and output."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import acoustic_models
import command_line
import numpy as np
import pytest
import soundfile
import tiny
import torch
from command_line import HOP, RATE, a_file, a_wav, an_npy, files, holds, is_done, one_line, random_mel, tone, vocoded

from apnet2_tts_plugin import audio, batch, loader, vocode
from apnet2_tts_plugin.pairing.convert import pair_configs

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures


@pytest.fixture
def stdin(monkeypatch):
    """Give this process a standard input."""

    def give(content: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.mark.parametrize("suffix", audio.FORMATS)
def test_each_format_is_written_and_read(suffix, model, apnet2):
    """By its content, too: without its suffix the file is vocoded in the same way."""
    assert is_done(apnet2("vocode", a_wav(tone(RATE)), f"out{suffix}"))
    info, (file_format, coding) = soundfile.info(f"out{suffix}"), audio.FORMATS[suffix]
    rate = 48000 if coding == "OPUS" else RATE
    assert (info.format, info.subtype, info.samplerate, info.frames) == (file_format, coding, rate, rate)
    apnet2("vocode", "in.wav", "out.wav")
    expected = torch.from_numpy(soundfile.read("out.wav", dtype="float32")[0])
    written, _ = audio.read_recording(Path(f"out{suffix}"))
    if coding == "PCM_16":
        np.testing.assert_array_equal(written, expected)
    Path("in").mkdir()
    os.link(f"out{suffix}", f"in/a{suffix}")
    os.link(f"out{suffix}", "b.wav" if suffix != ".wav" else "b.mp3")
    assert apnet2("vocode", "in", "new")[0] == 0
    assert apnet2("vocode", "b.wav" if suffix != ".wav" else "b.mp3", "new/b.wav")[0] == 0
    assert Path("new/a.wav").read_bytes() == Path("new/b.wav").read_bytes()


def test_a_long_ogg_is_written(tmp_path):
    """In one piece, libsndfile 1.2.2 ends the process."""
    code = """
import sys, io, numpy as np
from apnet2_tts_plugin import audio
audio.encode(io.BytesIO(), np.zeros(22050 * 600, np.float32), 22050, ".ogg")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("suffix", [*audio.FORMATS, audio.RAW])
def test_an_interrupt_while_audio_is_encoded_is_not_lost(suffix):
    """As it is where soundfile calls the methods of what it writes to."""

    class Interrupted(io.BytesIO):
        def write(self, _content):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audio.encode(Interrupted(), tone(5000), RATE, suffix)


def test_several_inputs_and_a_folder_to_write_to(model, apnet2):
    Path("in").mkdir()
    a_wav(tone(5000), name="a.wav")
    a_wav(tone(6000), name="in/b.wav")
    an_npy(name="c.npy")
    assert is_done(apnet2("vocode", "a.wav", "in", "--iterations", 0, "c.npy", "out", "--format", "FLAC"), 3)
    assert files(Path("out")) == ["a.flac", "b.flac", "c.flac"]
    assert holds("out/c.flac", vocoded()) and soundfile.info("out/b.flac").frames == 6000
    assert is_done(apnet2("vocode", "a.wav", "new/"))
    assert is_done(apnet2("vocode", "c.npy", "new"))
    assert files(Path("new")) == ["a.wav", "c.wav"]


@pytest.mark.parametrize("too_little_memory", [False, True], ids=["enough memory", "too little for the batch"])
def test_of_a_batch_each_file_is_read_once(monkeypatch, caplog, too_little_memory):
    """Long ones too, which are not vocoded in it, and all where it does not fit in memory."""
    monkeypatch.setattr(vocode, "PIECE", 40)
    batches, read, vocode_batch = [], [], vocode._vocode_batch

    def remember(model, batch):
        batches.append(len(batch))
        if too_little_memory and len(batches) == 1:
            raise torch.OutOfMemoryError
        return vocode_batch(model, batch)

    monkeypatch.setattr(vocode, "_vocode_batch", remember)
    monkeypatch.setattr(vocode, "read_recording", lambda path: (read.append(path), audio.read_recording(path))[1])
    sources = [Path(a_wav(tone(n, 16000), 16000, f"{n}.wav")) for n in (5000, 6000, 20000)]
    waveforms = vocode.FileVocoder(tiny.model().eval()).several(sources)
    assert [len(waveform) for waveform in waveforms] == [6891, 8269, 27563]
    assert read == sources and batches == ([2, 1, 1] if too_little_memory else [2])
    assert caplog.messages == [f"{source}: resampled from 16000 to 22050 Hz" for source in sources]


def test_of_several_inputs_those_that_fail_are_named(model, apnet2):
    a_wav(name="a.wav")
    a_file("b.wav")
    status, _, err = apnet2("vocode", "b.wav", "missing.wav", "a.wav", "out")
    lines = err.splitlines(keepends=True)
    assert status == 1 and files(Path("out")) == ["a.wav"]
    assert lines[0].startswith("apnet2: b.wav: not a recording that can be read")
    assert lines[1] == "apnet2: missing.wav: no such file or folder\n"
    assert is_done((0, "", lines[2])) and lines[3] == "apnet2: 2 of 3 files could not be vocoded\n"
    status, _, err = apnet2("vocode", "missing.wav", "*.mp3", "out")
    assert status == 1 and "missing.wav, *.mp3: no such file or folder" in one_line(err)


def test_skip_existing(model, apnet2):
    for name in ("a.wav", "b.wav"):
        a_wav(name=name)
    Path("out").mkdir()
    a_file("out/a.wav", b"old")
    status, out, err = apnet2("vocode", "a.wav", "b.wav", "out", "--skip-existing")
    skipped, summary = err.splitlines(keepends=True)
    assert skipped == "apnet2: 1 of 2 files are there already and are left as they are\n"
    assert is_done((status, out, summary)) and Path("out/a.wav").read_bytes() == b"old"
    assert apnet2("vocode", "a.wav", "out/a.wav", "--skip-existing", "--model", "none")[0] == 0


def test_format_against_the_name(model, apnet2):
    status, _, err = apnet2("vocode", a_wav(), "out.wav", "--format", "mp3")
    assert status == 1 and "out.wav: has the suffix .wav, but .mp3 was asked for" in one_line(err)


def test_a_rate_that_the_format_does_not_have(apnet2, tmp_path):
    changed = tiny.config()
    changed.audio.sample_rate = 96000
    tiny.checkpoints.save_config(changed, tmp_path / "fast")
    tiny.checkpoints.save_weights(tiny.generator(), tmp_path / "fast")
    status, _, err = apnet2("vocode", an_npy(), "out.mp3", "--model", tmp_path / "fast")
    assert status == 1 and "out.mp3: cannot be written" in one_line(err) and not Path("out.mp3").exists()


def test_standard_input(model, apnet2, stdin):
    for name in (a_wav(), an_npy(), "in.pt"):
        torch.save(torch.from_numpy(random_mel()), "in.pt")
        assert is_done(apnet2("vocode", name, "file.flac"))
        stdin(Path(name).read_bytes())
        assert is_done(apnet2("vocode", "-", "piped.flac"))
        assert Path("piped.flac").read_bytes() == Path("file.flac").read_bytes()
    stdin(b"what is this")
    status, _, err = apnet2("vocode", "-", "out.wav")
    assert status == 1 and "standard input: not a recording that can be read" in one_line(err)


def test_no_binary_on_a_terminal(model, apnet2, monkeypatch):
    a_wav()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, err = apnet2("vocode", "in.wav", "-")
    assert (status, out) == (1, "") and "standard output is a terminal, expected a file" in one_line(err)


def test_real_pipes(tmp_path):
    folder = tiny.save(tmp_path / "model")
    command = [sys.executable, "-m", "apnet2_tts_plugin", "vocode", "-", "-", "--model", folder]
    with open(a_wav(), "rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True)
    assert is_done((done.returncode, "", done.stderr.decode()))
    waveform, rate = soundfile.read(io.BytesIO(done.stdout))
    assert rate == RATE and len(waveform) == 5000 and np.abs(waveform).max() > 0.01
    with (
        open(a_wav(tone(RATE * 5)), "rb") as file,
        subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        process.stdout.close()  # as `| head -c 0` does
        assert process.stderr.read() == b"" and process.wait() == 1


LATIN_1 = os.fsdecode(b"in/M\xfcller")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".npy"])
def test_names_that_are_not_utf_8(suffix, model, apnet2):
    Path("in").mkdir()
    if suffix == ".npy":
        an_npy(name=f"{LATIN_1}.npy")
    else:
        soundfile.write(os.fsencode(f"{LATIN_1}{suffix}"), tone(5000), RATE)
    a_wav(name="in/good.wav")
    assert is_done(apnet2("vocode", "in", "out"), 2)
    assert files(Path("out")) == sorted(["good.wav", os.fsdecode(b"M\xfcller.wav")])
    assert is_done(apnet2("vocode", f"{LATIN_1}{suffix}", os.fsdecode(b"\xfc.wav")))
    a_file(f"{LATIN_1}{suffix}")
    status, _, err = apnet2("vocode", f"{LATIN_1}{suffix}", "out.wav")
    assert status == 1 and one_line(err).startswith(rf"apnet2: in/M\udcfcller{suffix}: not a re")


def test_a_folder_that_is_not_utf_8_can_be_listed(tmp_path):
    home = tmp_path / os.fsdecode(b"\xfc")
    tiny.save(home / "tts" / "vocoder_models--en--ljspeech--mine")
    environment = {**os.environ, "TTS_HOME": str(home)}
    command = [sys.executable, "-m", "apnet2_tts_plugin", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and r"\udcfc/tts/vocoder_models--" in done.stdout and done.stderr == ""


def test_hidden_files_and_folders_are_no_recordings(model, apnet2):
    """macOS leaves a `._a.wav` beside each `a.wav` on foreign disks."""
    Path("in/folder.wav").mkdir(parents=True)
    a_file("in/._a.wav")
    a_wav(name="in/a.wav")
    assert is_done(apnet2("vocode", "in", "out"))
    assert [path.name for path in audio.find_audio("in")] == ["a.wav"]


def test_what_only_ffmpeg_reads(model, apnet2, monkeypatch):
    """libsndfile refuses it, torchcodec gives two channels at another rate."""
    from torchcodec import decoders

    class Decoder:
        def __init__(self, content):
            assert content == b"film"

        def get_all_samples(self):
            samples = torch.from_numpy(np.stack([tone(16000, 16000), np.zeros(16000)])).float()
            return type("AudioSamples", (), {"data": samples, "sample_rate": 16000})

    monkeypatch.setattr(decoders, "AudioDecoder", Decoder)
    Path("in").mkdir()
    a_file("in/a.m4a", b"film")
    assert apnet2("vocode", "in", "out")[0] == 0
    a_wav(tone(16000, 16000) / 2, 16000)
    assert apnet2("vocode", "in.wav", "b.wav")[0] == 0
    assert Path("out/a.wav").read_bytes() == Path("b.wav").read_bytes()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Could not load libtorchcodec. Likely causes:\n..."), "FFmpeg, which reads more formats, is not"),
        (RuntimeError("Invalid data found when processing input"), "not a recording that can be read (Format not"),
    ],
)
def test_what_ffmpeg_does_not_read_either(error, reason, model, apnet2, monkeypatch):
    from torchcodec import decoders

    def decoder(content):
        raise error

    monkeypatch.setattr(decoders, "AudioDecoder", decoder)
    status, _, err = apnet2("vocode", a_file("in.m4a"), "out.wav")
    assert status == 1 and reason in one_line(err)


@pytest.mark.parametrize(("n_samples", "rate"), [(5000, RATE), (100, RATE), (16000, 16000)])
def test_mel_gives_what_vocode_vocodes(n_samples, rate, model, apnet2):
    assert apnet2("vocode", a_wav(tone(n_samples, rate), rate), "direct.wav")[0] == 0
    status, out, err = apnet2("mel", "in.wav", "in.npy")
    assert is_done((status, out, err.splitlines(keepends=True)[-1]), verb="analysed")
    mel = np.load("in.npy")
    direct = soundfile.read("direct.wav", dtype="int16")[0]
    assert mel.dtype == np.float32 and mel.shape == (80, max(-(-len(direct) // HOP), 3) + 1)
    assert apnet2("vocode", "in.npy", "from_mel.wav")[0] == 0
    np.testing.assert_allclose(soundfile.read("from_mel.wav", dtype="int16")[0][: len(direct)], direct, atol=1)


def test_mel_of_a_folder(model, apnet2):
    Path("in/sub").mkdir(parents=True)
    a_wav(name="in/sub/a.wav")
    an_npy(name="in/b.npy")
    status, _, err = apnet2("mel", "in", "out")
    assert status == 0 and files(Path("out")) == ["sub/a.npy"] and "other kinds of files: b.npy" in err
    status, _, err = apnet2("mel", "in/sub/a.wav", "out.wav")
    assert status == 1 and "out.wav: expected the name of a .npy file" in one_line(err)
    status, _, err = apnet2("mel", "in/sub/a.wav", "out.npy", "--model", "none")
    assert status == 1 and "no APNet2 model is called 'none'" in one_line(err)


def test_mel_of_another_acoustic_model(model, apnet2, glow_tts):
    """coqui's log10, normalised; without --tts it is refused, as its numbers are not those of natural logarithms."""
    tts_config = loader.read_acoustic_config(glow_tts)
    ap = loader.audio_processor(tts_config)
    theirs = ap.melspectrogram(soundfile.read(command_line.SAMPLE)[0]).astype(np.float32)
    an_npy(theirs, "theirs.npy")
    status, _, err = apnet2("vocode", "theirs.npy", "out.wav")
    assert status == 1 and "numbers from -4.0" in one_line(err) and "normalised" in err
    status, out, err = apnet2("vocode", "theirs.npy", "out.wav", "--tts", glow_tts)
    plan, summary = err.splitlines(keepends=True)
    assert "APNet2 vocodes the mel of glow_tts, converted approximately" in plan and is_done((status, out, summary))
    mel = pair_configs(tts_config, ap, tiny.config()).vocoder_input(theirs.T)
    expected = tiny.generator().inference(mel)
    assert holds("out.wav", expected / max(expected.abs().max(), 1))


def test_a_model_without_mels_for_tts(model, apnet2, vits):
    status, _, err = apnet2("vocode", an_npy(), "out.wav", "--tts", vits)
    assert status == 1 and "vits gives a waveform to this vocoder, expected a model that gives mels" in one_line(err)
    status, _, err = apnet2("vocode", "in.npy", "out.wav", "--tts", acoustic_models.__file__)
    assert status == 1 and "not a configuration of coqui-tts" in one_line(err)


def test_device_auto(model, apnet2, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(chosen.append("asked")))
    assert is_done(apnet2("vocode", an_npy(), "out.wav")) and chosen == ["asked"]
    assert str(loader.usable_device("auto")) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(1))
    assert str(loader.usable_device("auto")) == "cuda"


def test_a_pipe_with_a_name(model, apnet2):
    """As the shell's `<(...)` gives it, to read from; to write to, there is standard output."""
    os.mkfifo("pipe.wav")
    for source in (a_wav(), an_npy(random_mel())):
        thread = threading.Thread(target=Path("pipe.wav").write_bytes, args=(Path(source).read_bytes(),))
        thread.start()
        assert is_done(apnet2("vocode", "pipe.wav", "piped.wav"))
        thread.join()
        assert is_done(apnet2("vocode", source, "expected.wav"))
        assert Path("piped.wav").read_bytes() == Path("expected.wav").read_bytes()
    status, _, err = apnet2("vocode", "in.wav", "pipe.wav")
    assert status == 1 and "pipe.wav: is no regular file, expected one, or -" in one_line(err)
    assert Path("pipe.wav").is_fifo()


def test_closed_streams(model, apnet2, monkeypatch):
    a_wav()
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = apnet2("vocode", "-", "out.wav")
    assert status == 1 and "standard input is closed" in one_line(err)
    done = subprocess.run(
        ["sh", "-c", '"$0" -m apnet2_tts_plugin mel in.wav - >&-', sys.executable], capture_output=True, text=True
    )
    assert done.returncode == 1 and "standard output is closed" in one_line(done.stderr)


def test_links(model, apnet2):
    """One to another file is written through; one that leads back to itself is no file."""
    Path("to.wav").symlink_to("target.wav")
    assert is_done(apnet2("vocode", a_wav(), "to.wav"))
    assert Path("to.wav").is_symlink() and soundfile.info("target.wav").frames == 5000
    Path("loop.wav").symlink_to("loop.wav")
    status, _, err = apnet2("vocode", "in.wav", "loop.wav", "out/")
    assert status == 1 and err.startswith("apnet2: loop.wav: no such file or folder\n")
    assert files(Path("out")) == ["in.wav"]


@pytest.mark.parametrize("name", ["in.wav", "in.npy", "in.pt"])
def test_files_that_may_not_be_read(name, model, apnet2, monkeypatch):
    """The reason is the system's; root, as whom tests may run, may read everything."""
    Path(name).mkdir()  # which the system refuses to read, whoever asks
    job = batch.Job(Path(name), Path("out.wav"), ".wav")
    monkeypatch.setattr(batch, "plan", lambda *arguments: [job])
    assert f"{name}: " in (err := one_line(apnet2("vocode", name, "out.wav")[2])) and "Is a directory" in err
