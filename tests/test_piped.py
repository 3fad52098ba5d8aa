"""Standard input that is vocoded while it arrives: the samples of the whole, soon, and one line for each mistake."""

import io
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import command_line
import numpy as np
import pytest
import soundfile
import tiny
import torch
from command_line import RATE, SAMPLE, is_done, one_line, random_mel, tone

from apnet2_tts_plugin import audio, audio_stream, loader, piped
from apnet2_tts_plugin.audio_stream import Coding
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.network.spectra import LogMelStream, whole_hops
from apnet2_tts_plugin.vocode import FileVocoder
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.checkpoints import save_config, save_weights

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures
BUNDLED = store.BUNDLED / "apnet2"  # which the fixture hides
SPEECH = soundfile.read(SAMPLE, dtype="float32")[0]
HEADER = 44
LINE = "apnet2: vocoded 1 file, "


class Slowly(io.BytesIO):
    """A pipe that gives up to `size` bytes at a time."""

    def __init__(self, content: bytes, size: int):
        super().__init__(content)
        self.size = size

    def read1(self, size: int = -1) -> bytes:
        return self.read(min(size, self.size))


def wav(samples, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, subtype, format="WAV")
    return content.getvalue()


def npy(array) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def of_size(content: bytes, size: int) -> bytes:
    """A WAV file that says it has so many bytes of samples."""
    place = content.index(b"data") + 4
    return content[:place] + struct.pack("<I", size) + content[place + 4 :]


def streamed(network, content: bytes, size: int = 3001, raw: bool = False) -> np.ndarray:
    out = io.BytesIO()
    given = piped.open_input(Slowly(content, size), raw)
    done = piped.vocode_stream(network, given, out, raw)
    waveform = np.frombuffer(out.getvalue()[0 if raw else HEADER :], "<i2") / 32767
    assert done.audio == len(waveform) / RATE
    return waveform


@pytest.fixture
def stdin(monkeypatch):
    def give(content: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.fixture
def on_pipes(model, stdin, capsysbinary):
    """Run `apnet2 vocode - -` in this process: its status, and what it wrote as bytes and as text."""
    from apnet2_tts_plugin import cli

    def run(content: bytes, *arguments):
        stdin(content)
        try:
            status = cli.main(["vocode", "-", "-", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        out, err = capsysbinary.readouterr()
        return status, out, err.decode()

    return run


@pytest.mark.parametrize("sizes", [[7], [100, 1, 700], [256, 0], [5000], [10**6]], ids=str)
@pytest.mark.parametrize("n_samples", [1, 511, 768, 12345, 12800])
def test_the_mel_of_pieces_is_that_of_the_whole(n_samples, sizes):
    network = tiny.model()
    waveform = torch.from_numpy(SPEECH[20000:][:n_samples])
    stream, mels, start = LogMelStream(network.log_mel, network.config.audio), [], 0
    while start < n_samples:
        size = sizes[len(mels) % len(sizes)]
        mels.append(stream.push(waveform[start : start + size]))
        start += size
    mels.append(stream.push(waveform[:0], last=True))
    whole = network.log_mel(whole_hops(waveform, network.config.audio)[None])
    torch.testing.assert_close(torch.cat(mels, dim=2), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 22051, 44100, 192000])
@pytest.mark.parametrize("n_samples", [1, 30, 50000])
def test_the_resampled_of_pieces_is_that_of_the_whole(n_samples, rate):
    waveform = SPEECH[20000:][:n_samples]
    stream = audio.Resampler(rate, RATE)
    pieces = [stream.push(waveform[start : start + 777]) for start in range(0, n_samples, 777)]
    pieces.append(stream.push(waveform[:0], last=True))
    np.testing.assert_allclose(np.concatenate(pieces), audio.at_rate(waveform, rate, RATE), atol=1e-6)


@pytest.mark.parametrize("subtype", audio_stream.WIDTHS)
@pytest.mark.parametrize("n_channels", [1, 2, 6])
def test_samples_of_each_coding(subtype, n_channels):
    recording = np.stack([tone(3000) / (i + 1) for i in range(n_channels)], axis=1)
    content = wav(recording, 16000, subtype)
    expected, _ = audio.read_recording(audio.StandardInput(content))
    stream = Slowly(content, 1001)
    _, coding = audio_stream.read_header(stream, stream.read(12))
    assert (coding.sample_rate, coding.n_channels, coding.subtype) == (16000, n_channels, subtype)
    pieces = list(audio_stream.samples(stream, coding, 500))
    assert all(len(piece) >= 500 for piece in pieces[:-1]) and len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF, 2 * 3000 + 100], ids=hex)
def test_headers_that_do_not_tell_the_length(size):
    """As from SoX, from FFmpeg, and of a file that was cut off, in the middle of a sample."""
    content = of_size(wav(tone(3000)), size)
    stream = io.BytesIO(content + b"\1")
    _, coding = audio_stream.read_header(stream, stream.read(12))
    assert len(np.concatenate(list(audio_stream.samples(stream, coding, 1)))) == 3000


def test_other_chunks_before_and_after_the_samples():
    content = wav(tone(3000))
    listed = content[:36] + b"LIST" + struct.pack("<I", 5) + b"INFO!\0" + content[36:] + b"LIST\4\0\0\0INFO"
    stream = Slowly(listed, 100)
    _, coding = audio_stream.read_header(stream, stream.read(12))
    assert coding == Coding(RATE, 1, "PCM_16", 6000)
    assert len(np.concatenate(list(audio_stream.samples(stream, coding, 1)))) == 3000
    assert stream.read() == b""  # or the program that writes would be killed


@pytest.mark.parametrize("rate", [RATE, 16000, 48000])
@pytest.mark.parametrize("size", [441, 65536])
def test_a_recording_equals_the_whole(rate, size):
    network = loader.load_model(BUNDLED)
    recording = np.stack([SPEECH, 0.5 * SPEECH], axis=1)
    content = wav(recording, rate, "FLOAT")
    expected = FileVocoder(network).one(audio.StandardInput(content)).numpy()
    waveform = streamed(network, content, size)
    assert waveform.shape == expected.shape
    np.testing.assert_allclose(waveform, expected, atol=1e-4)


@pytest.mark.parametrize("n_samples", [1, 300, 1000, 5000])
def test_short_recordings(n_samples):
    network = loader.load_model(BUNDLED)
    content = wav(SPEECH[20000:][:n_samples])
    expected = FileVocoder(network).one(audio.StandardInput(content)).numpy()
    np.testing.assert_allclose(streamed(network, content), expected, atol=1e-4)


def test_mels_in_a_row_equal_the_whole():
    network = loader.load_model(BUNDLED)
    mel = network.log_mel(SPEECH[None])
    expected = network.inference(mel).flatten().clamp(-1, 1).numpy()
    for sizes in ([mel.shape[2]], [1, 5, 94, 300, mel.shape[2] - 400]):
        content = b"".join(npy(piece.numpy()) for piece in mel.split(sizes, dim=2))
        np.testing.assert_allclose(streamed(network, content), expected, atol=1e-4)


def test_raw(on_pipes):
    speech = audio.as_int16(SPEECH[20000:40000])
    expected = streamed(tiny.model(), wav(speech))
    network = loader.load_model(tiny.save(Path("small")))
    np.testing.assert_array_equal(streamed(network, speech.tobytes(), raw=True), expected)
    _, coded, _ = on_pipes(wav(speech))
    for arguments, out in ((["--raw"], coded[HEADER:]), (["--raw", "--format", "wav"], coded)):
        status, written, err = on_pipes(speech.tobytes(), *arguments)
        assert (status, written) == (0, out) and err.startswith(LINE)
    assert on_pipes(wav(speech), "--format", "raw")[1] == coded[HEADER:]


def test_the_header_is_read_by_others(on_pipes):
    status, out, err = on_pipes(wav(tone(5000)))
    assert is_done((status, "", err))
    waveform, rate = soundfile.read(io.BytesIO(out))
    assert (len(waveform), rate) == (5000, RATE) and out[40:44] == b"\xff" * 4
    assert soundfile.info(io.BytesIO(out)).subtype == "PCM_16"
    assert on_pipes(out)[0] == 0  # ourselves


def test_sound_comes_before_the_input_ends():
    """Of the first half all but the look-ahead is heard, while the other half is not there yet."""
    content = wav(0.7 * SPEECH[: 2 * RATE])
    command = [sys.executable, "-m", "apnet2_tts_plugin", "vocode", "-", "-", "--model", BUNDLED]
    half = HEADER + 2 * RATE  # bytes
    heard = half - 2 * (12 + 2 + 8) * 256 - 2 * 256  # look-ahead, that of the analysis, and what is waited for
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        watchdog = threading.Timer(300, process.kill)
        watchdog.start()
        process.stdin.write(content[:half])
        process.stdin.flush()
        first = process.stdout.read(heard)  # or it would wait until the watchdog bites
        assert len(first) == heard
        process.stdin.write(content[half:])
        process.stdin.close()
        rest, err = process.stdout.read(), process.stderr.read().decode()
        watchdog.cancel()
        assert process.wait() == 0 and err.startswith(LINE)
    expected = FileVocoder(loader.load_model(BUNDLED)).one(audio.StandardInput(content)).numpy()
    waveform = np.frombuffer((first + rest)[HEADER:], "<i2") / 32767
    np.testing.assert_allclose(waveform, expected, atol=1e-4)


def test_nobody_reads_any_more():
    command = [sys.executable, "-m", "apnet2_tts_plugin", "vocode", "-", "-", "--model", BUNDLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(wav(SPEECH[:30000]))  # which the pipe holds
        process.stdin.flush()
        process.stdout.read(100)
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_into_a_file_it_goes_as_a_whole(tmp_path):
    """With a length in its header, and scaled down instead of clipped."""
    command = [sys.executable, "-m", "apnet2_tts_plugin", "vocode", "-", "-", "--model", tiny.save(tmp_path / "m", 5.0)]
    with open("out.wav", "wb") as out:
        done = subprocess.run(command, input=wav(tone(5000)), stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0 and b"scaled down" in done.stderr
    assert Path("out.wav").read_bytes()[40:44] == struct.pack("<I", 10000)


def test_what_is_too_loud_is_clipped(on_pipes, tmp_path):
    status, out, err = on_pipes(npy(random_mel()), "--model", tiny.save(tmp_path / "loud", 5.0))
    warning, summary = err.splitlines(keepends=True)
    peak = command_line.vocoded(5.0).abs().max()
    assert warning.startswith(f"apnet2: standard input: clipped, as its peak was {peak:.2f} of full scale; ")
    assert is_done((status, "", summary)) and np.abs(np.frombuffer(out[HEADER:], "<i2")).max() == 32767


@pytest.mark.parametrize("arguments", [["--normalize"], ["--format", "flac"], ["--framing", "hifigan"]], ids=str)
def test_what_needs_the_whole(arguments, on_pipes):
    """Mels in a row are one there, too."""
    status, out, err = on_pipes(b"".join(map(npy, np.split(random_mel(), 2, axis=1))), *arguments)
    assert is_done((status, "", err))
    assert on_pipes(npy(random_mel()), *arguments)[1] == out
    assert len(soundfile.read(io.BytesIO(out))[0]) == (20 if "hifigan" in arguments else 19) * 256


def test_other_formats_go_as_a_whole(on_pipes):
    for suffix in (".mp3", ".flac", ".au"):
        content = io.BytesIO()
        audio.encode(content, tone(5000), RATE, suffix)
        status, out, err = on_pipes(content.getvalue())
        assert is_done((status, "", err)) and struct.unpack("<I", out[40:44]) == (len(out) - 44,)
    content = io.BytesIO()
    soundfile.write(content, tone(5000), RATE, "IMA_ADPCM", format="WAV")
    assert is_done((0, "", on_pipes(content.getvalue())[2]))


MISTAKES = {
    "nothing": (b"", "not a recording that can be read"),
    "half a header": (wav(tone(500))[:30], "not a recording that can be read"),
    "no samples": (wav(tone(0)), "has no samples"),
    "half a sample": (wav(tone(1))[:-1], "has no samples"),
    "NaN": (wav(np.full(5000, np.nan), subtype="FLOAT"), "has NaN or infinite samples"),
    "integer scale": (wav(32768 * tone(5000), subtype="FLOAT"), "its samples reach 9830"),
    "inverted": (wav(np.stack([tone(5000), -tone(5000)], 1)), "its channels cancel each other out"),
    "shape": (npy(random_mel()[:79]), "has shape (79, 20)"),
    "integers": (npy(np.zeros((80, 9), np.int64)), "has numbers of type torch.int64"),
    "one frame": (npy(random_mel(1)), "has 1 frames, expected at least 2"),
    "half an array": (npy(random_mel())[:-9], "not a readable .npy file"),
    "half a magic number": (npy(random_mel())[:4], "not a recording that can be read"),
    "another file behind": (npy(random_mel()) + b"what is this", "not a readable .npy file"),
    "another scale": (npy(np.exp(random_mel(20))) + npy(np.exp(random_mel(200))), "no logarithm"),
    "another scale, short": (npy(np.exp(random_mel(20))), "no logarithm"),
    "objects": (b"\x93NUMPY\1\0" + npy(np.zeros(1))[8:].replace(b"<f8", b"|O8"), "holds more than numbers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, on_pipes):
    content, reason = MISTAKES[mistake]
    status, out, err = on_pipes(content)
    assert status == 1 and one_line(err).startswith("apnet2: standard input: ") and reason in err


def test_rates(on_pipes):
    status, out, err = on_pipes(wav(tone(16000, 16000), 16000), "--no-resample")
    assert (status, out) == (1, b"") and "standard input: has 16000 Hz, expected the model's 22050" in one_line(err)
    status, out, err = on_pipes(wav(tone(16000, 16000), 16000))
    assert status == 0 and "apnet2: standard input: resampled from 16000 to 22050 Hz\n" in err
    assert len(out) == HEADER + 2 * RATE


def test_a_recording_for_a_vocoder_of_latents(on_pipes, tmp_path):
    latent = tiny.model(input_features="latent")
    save_config(latent.config, tmp_path / "latent")
    save_weights(latent.generator, tmp_path / "latent")
    status, out, err = on_pipes(wav(tone(5000)), "--model", tmp_path / "latent")
    assert (status, out) == (1, b"") and "this model vocodes latents" in one_line(err)
    assert on_pipes(npy(np.zeros((192, 9))) * 2, "--model", tmp_path / "latent")[0] == 0


def test_an_answer_that_is_not_finite(on_pipes, tmp_path):
    status, out, err = on_pipes(npy(random_mel()), "--model", tiny.save(tmp_path / "broken", 1e4))
    assert (status, out) == (1, b"") and "the model's output has NaN" in one_line(err)


@pytest.mark.parametrize(
    "arguments",
    ["in.wav - --raw", "- out.wav --raw", "- - --raw --normalize", "- - --raw --format mp3", "in out --format raw"],
)
def test_wrong_arguments(arguments, apnet2):
    status, _, err = apnet2("vocode", *arguments.split())
    assert status == 2 and "raw: " in one_line(err)


def test_memory_does_not_grow():
    """What is kept of a recording, ten times as long, is no more."""
    analysis = LogMelStream(tiny.model().log_mel, tiny.config().audio)
    kept = []
    for _ in range(20):
        analysis.push(torch.zeros(3000))
        kept.append(len(analysis.kept))
    assert max(kept) <= 4 * 256 + 512
    with pytest.raises(DataError):
        list(audio_stream.samples(io.BytesIO(b""), Coding(RATE), 1))


def test_devices_are_no_files(tmp_path):
    assert not audio_is_file(io.BytesIO()) and not audio_is_file(open(os.devnull, "rb"))
    (tmp_path / "file").touch()
    with open(tmp_path / "file", "rb") as file:
        assert audio_is_file(file)


def audio_is_file(stream) -> bool:
    from apnet2_tts_plugin import batch

    return batch.is_regular_file(stream)
