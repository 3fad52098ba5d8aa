"""coqui-tts itself speaks with our vocoder: its command, its Python class and its server, with random small models."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from acoustic_models import build
from conftest import FRAMES_PER_TOKEN

TEXT = "hello there"
HOP = 256
GLOW_SAMPLES = (FRAMES_PER_TOKEN * len(TEXT) - 1) * HOP
VITS_SAMPLES = FRAMES_PER_TOKEN * (2 * len(TEXT) + 1) * HOP  # a blank around each letter
SILENCE = 10000  # samples that coqui appends to each sentence


def tts(*arguments) -> int | str | None:
    """Run the `tts` command in this process; its exit status, or the line it ends with."""
    from TTS.bin.synthesize import main

    logger = logging.getLogger("TTS")
    handlers = list(logger.handlers)
    try:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
    finally:
        logger.handlers = handlers  # the command's own writes to a stream that ends with the test
    return exit.value.code


def by_path(folder: Path) -> tuple:
    return "--model_path", folder / "model_file.pth", "--config_path", folder / "config.json"


def vocoder_by_path(folder: Path) -> tuple:
    return "--vocoder_path", folder / "model_file.pth", "--vocoder_config_path", folder / "config.json"


def check_wav(path: Path, samples: int) -> None:
    """`path` has so many samples of sound at 22.05 kHz before coqui's silence."""
    wav, sample_rate = soundfile.read(path)
    assert sample_rate == 22050
    assert len(wav) == samples + SILENCE
    assert np.abs(wav[:samples]).max() > 0.1
    assert not wav[samples:].any()


@pytest.mark.parametrize("name", ["apnet2", "vocoder_models/en/ljspeech/apnet2"])
def test_glow_tts_by_path(name, glow_tts, installed_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    assert tts("--text", TEXT, *by_path(glow_tts), "--vocoder_name", name, "--out_path", out) == 0
    check_wav(out, GLOW_SAMPLES)


def test_glow_tts_by_name(glow_tts, installed_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    model = "tts_models/en/ljspeech/glow-tts"
    assert tts("--text", TEXT, "--model_name", model, "--vocoder_name", "apnet2", "--out_path", out) == 0
    check_wav(out, GLOW_SAMPLES)


def test_vits_by_name(vits, installed_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    model = "tts_models/en/ljspeech/vits"
    assert tts("--text", TEXT, "--model_name", model, "--vocoder_name", "apnet2", "--out_path", out) == 0
    check_wav(out, VITS_SAMPLES)


def test_vits_by_name_with_vocoder_path(vits, vocoder, tmp_path):
    out = tmp_path / "out.wav"
    model = "tts_models/en/ljspeech/vits"
    assert tts("--text", TEXT, "--model_name", model, *vocoder_by_path(vocoder), "--out_path", out) == 0
    check_wav(out, VITS_SAMPLES)
    assert loudness_profile(out) != pytest.approx(loudness_profile(vits_alone(vits, tmp_path)), rel=0.05)


def loudness_profile(path: Path) -> list[float]:
    """Root mean square of each tenth of a file."""
    wav, _ = soundfile.read(path)
    return [float(np.sqrt(np.mean(part**2))) for part in np.array_split(wav, 10)]


def vits_alone(vits: Path, tmp_path: Path) -> Path:
    out = tmp_path / "alone.wav"
    assert tts("--text", TEXT, *by_path(vits), "--out_path", out) == 0
    return out


@pytest.mark.parametrize("given", ["file", "folder"])
def test_vocoder_path_without_config(given, glow_tts, vocoder, tmp_path):
    out = tmp_path / "out.wav"
    path = vocoder / "model_file.pth" if given == "file" else vocoder
    assert tts("--text", TEXT, *by_path(glow_tts), "--vocoder_path", path, "--out_path", out) == 0
    check_wav(out, GLOW_SAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["model by path", "model by name", "model without default vocoder", "vocoder by path"])
def test_installed_command(case, glow_tts, vits, vocoder, installed_vocoder, tmp_path):
    """The real command in a process of its own, where nobody has imported the plugin."""
    arguments, samples = {
        "model by path": ([*by_path(glow_tts), "--vocoder_name", "apnet2"], GLOW_SAMPLES),
        "model by name": (
            ["--model_name", "tts_models/en/ljspeech/glow-tts", "--vocoder_name", "vocoder_models/en/ljspeech/apnet2"],
            GLOW_SAMPLES,
        ),
        "model without default vocoder": (
            ["--model_name", "tts_models/en/ljspeech/vits", "--vocoder_name", "apnet2"],
            VITS_SAMPLES,
        ),
        "vocoder by path": ([*by_path(vits), *vocoder_by_path(vocoder)], VITS_SAMPLES),
    }[case]
    out = tmp_path / "out.wav"
    command = [Path(sys.executable).with_name("tts"), "--text", TEXT, *arguments, "--out_path", out]
    subprocess.run(command, check=True, capture_output=True)
    check_wav(out, samples)


def test_python_class(glow_tts, installed_vocoder):
    """The waveform is what our model makes of the acoustic model's mel, converted by the formula."""
    from TTS.api import TTS

    api = TTS(model_name="tts_models/en/ljspeech/glow-tts", vocoder_name="apnet2", progress_bar=False)
    wav = np.array(api.tts(TEXT))
    mel = api.synthesizer.tts_model.synthesize(TEXT)["outputs"]["model_outputs"][0].detach()
    decibels = (mel.clamp(-4, 4) + 4) * 100 / 8 - 100 + 20
    magnitude = 10 ** (decibels / 20)
    assert len(wav) == GLOW_SAMPLES + SILENCE
    ap = api.synthesizer.tts_model.ap
    ours = api.synthesizer.vocoder_model.log_mel.basis
    linear = (torch.linalg.pinv(torch.from_numpy(ap.mel_basis)) @ magnitude.T).clamp(min=0)
    expected = api.synthesizer.vocoder_model.inference((ours @ linear).clamp(min=1e-5).log()[None])
    assert np.abs(wav[:GLOW_SAMPLES] - expected.squeeze().numpy()).max() < 1e-3 * np.abs(wav).max()


def test_bundled_model(glow_tts, tmp_path, monkeypatch):
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "empty"))
    out = tmp_path / "out.wav"
    assert tts("--text", TEXT, *by_path(glow_tts), "--vocoder_name", "apnet2", "--out_path", out) == 0
    check_wav(out, GLOW_SAMPLES)


def test_several_sentences(glow_tts, installed_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    arguments = "--text", "one two. three four.", *by_path(glow_tts), "--vocoder_name", "apnet2", "--out_path", out
    assert tts(*arguments) == 0
    first, second = len("one two."), len("three four.")
    samples = (FRAMES_PER_TOKEN * (first + second) - 2) * HOP + 2 * SILENCE
    assert len(soundfile.read(out)[0]) == samples


def test_waveform_only_model(tmp_path, installed_vocoder):
    """A model whose answer is a waveform and nothing else (XTTS, Bark, Tortoise), here at another sample rate."""
    from TTS.api import TTS

    vits = build("vits", tmp_path / "vits", sample_rate=44100)
    api = TTS(model_path=vits / "model_file.pth", config_path=vits / "config.json", vocoder_name="apnet2")
    sound = np.random.default_rng(0).normal(size=44100).astype(np.float32)
    api.synthesizer.tts_model.synthesize = lambda **kwargs: {"wav": sound}
    wav = api.tts(TEXT)
    assert len(wav) == 22050 // HOP * HOP + SILENCE
    assert np.abs(wav).max() > 0


@pytest.mark.slow
def test_server(glow_tts, installed_vocoder, monkeypatch, tmp_path):
    pytest.importorskip("flask")
    arguments = "--model_name", "tts_models/en/ljspeech/glow-tts", "--vocoder_name", "apnet2"
    monkeypatch.setattr(sys, "argv", ["tts-server", *arguments])
    from TTS.server.server import app

    def ask(text):
        return app.test_client().get("/api/tts", query_string={"text": text})

    texts = [TEXT, "a longer sentence", "one", "two three"]
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(ask, texts))
    for text, answer in zip(texts, answers, strict=True):
        assert answer.status_code == 200
        out = tmp_path / "out.wav"
        out.write_bytes(answer.data)
        check_wav(out, (FRAMES_PER_TOKEN * len(text) - 1) * HOP)


@pytest.mark.slow
def test_server_refuses_in_one_line(glow_tts, vocoder):
    """The real command; the mel is only approximate, and that is not allowed."""
    pytest.importorskip("flask")
    command = [Path(sys.executable).with_name("tts-server"), *by_path(glow_tts), *vocoder_by_path(vocoder)]
    environment = os.environ | {"APNET2_STRICT": "1"}
    end = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert end.returncode == 1
    assert "tts-server: APNet2 speaks the mel of glow_tts, converted approximately" in end.stderr
    assert "Traceback" not in end.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--vocoder_name", "apnet2-missing"), "no APNet2 model is called 'apnet2-missing'; known: apnet2"),
        (("--vocoder_path", "MISSING"), "there is no vocoder file"),
    ],
)
def test_mistakes_get_one_line(arguments, reason, glow_tts, vocoder, installed_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    arguments = [str(vocoder / "missing.pth") if argument == "MISSING" else argument for argument in arguments]
    line = tts("--text", TEXT, *by_path(glow_tts), *arguments, "--out_path", out)
    assert isinstance(line, str) and reason in line and "\n" not in line
    assert not out.exists()


def test_mistakes_before_a_download(installed_vocoder, tts_home):
    """A wrong name is refused before the acoustic model, which is not there, is looked for."""
    for model in ("tts_models/en/ljspeech/tacotron2-DCA", "tts_models/en/ljspeech/overflow"):
        line = tts("--text", TEXT, "--model_name", model, "--vocoder_name", "apnet2-missing")
        assert "apnet2-missing" in line
        assert not list(tts_home.glob(model.replace("/", "--")))


def test_vocoder_where_a_model_belongs(installed_vocoder):
    line = tts("--text", TEXT, "--model_name", "apnet2")
    assert "apnet2 is a vocoder" in line
