"""coqui-tts itself vocodes with our model: its command, its Python class and its server, with random small models."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from acoustic_models import FRAMES_PER_TOKEN, build
from command_line import HOP, RATE, SILENCE, by_path, check_wav, tts, tts_api, vocoder_by_path, with_comments

from apnet2_tts_plugin import _host
from apnet2_tts_plugin.errors import ModelError, ModelNotFoundError
from apnet2_tts_plugin.model import Apnet2

TEXT = "hello there"
GLOW_SAMPLES = (FRAMES_PER_TOKEN * len(TEXT) - 1) * HOP
VITS_SAMPLES = FRAMES_PER_TOKEN * (2 * len(TEXT) + 1) * HOP  # a blank around each letter
GLOW, VITS = "tts_models/en/ljspeech/glow-tts", "tts_models/en/ljspeech/vits"
FULL_NAME = "vocoder_models/universal/unknown/apnet2"
WAVEGAN = "vocoder_models/en/ljspeech/multiband-melgan"

CASES = {  # the arguments of `tts`, given the folders of a GlowTTS, a VITS and a vocoder, and the samples it makes
    "model by path": (lambda glow, *_: [*by_path(glow), "--vocoder_name", "apnet2"], GLOW_SAMPLES),
    "full name": (lambda glow, *_: [*by_path(glow), "--vocoder_name", FULL_NAME], GLOW_SAMPLES),
    "model by name": (lambda *_: ["--model_name", GLOW, "--vocoder_name", "apnet2"], GLOW_SAMPLES),
    "without default vocoder": (lambda *_: ["--model_name", VITS, "--vocoder_name", "apnet2"], VITS_SAMPLES),
    "vocoder by path": (lambda _, vits, vocoder: [*by_path(vits), *vocoder_by_path(vocoder)], VITS_SAMPLES),
    "without default, by path": (lambda *all: ["--model_name", VITS, *vocoder_by_path(all[2])], VITS_SAMPLES),
    "weights alone": (lambda *all: [*by_path(all[0]), *vocoder_by_path(all[2])[:2]], GLOW_SAMPLES),
    "folder alone": (lambda *all: [*by_path(all[0]), "--vocoder_path", all[2]], GLOW_SAMPLES),
    "config alone": (lambda *all: [*by_path(all[0]), *vocoder_by_path(all[2])[2:]], GLOW_SAMPLES),
}


@pytest.mark.parametrize("case", CASES)
def test_command(case, glow_tts, vits, vocoder, installed_vocoder, tmp_path, monkeypatch):
    arguments, samples = CASES[case]
    out, vocoded, inference = tmp_path / "out.wav", [], Apnet2.inference
    monkeypatch.setattr(Apnet2, "inference", lambda self, mel: vocoded.append(mel) or inference(self, mel))
    assert tts("--text", TEXT, *arguments(glow_tts, vits, vocoder), "--out_path", out) == 0
    check_wav(out, samples)
    assert len(vocoded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["model by path", "model by name", "without default vocoder", "vocoder by path"])
def test_installed_command(case, glow_tts, vits, vocoder, installed_vocoder, tmp_path):
    """The real command in a process of its own, where nobody has imported the plugin."""
    arguments, samples = CASES[case]
    out = tmp_path / "out.wav"
    command = [Path(sys.executable).with_name("tts"), "--text", TEXT, *arguments(glow_tts, vits, vocoder)]
    subprocess.run([*command, "--out_path", out], check=True, capture_output=True)
    check_wav(out, samples)


def test_python_class(glow_tts, installed_vocoder):
    """The waveform is what our model makes of the acoustic model's mel, converted by the formula."""
    from TTS.api import TTS

    api = TTS(model_name=GLOW, vocoder_name="apnet2", progress_bar=False)
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


def test_waveform_only_model(tmp_path, installed_vocoder):
    """A model whose answer is a waveform and nothing else (XTTS, Bark, Tortoise), here at another sample rate."""
    api = tts_api(build("vits", tmp_path / "vits", sample_rate=44100), vocoder_name="apnet2")
    sound = np.random.default_rng(0).normal(size=44100).astype(np.float32)
    api.synthesizer.tts_model.synthesize = lambda **kwargs: {"wav": sound}
    wav = api.tts(TEXT)
    assert len(wav) == 22050 // HOP * HOP + SILENCE
    assert np.abs(wav).max() > 0


@pytest.mark.slow
def test_server(glow_tts, installed_vocoder, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["tts-server", "--model_name", GLOW, "--vocoder_name", "apnet2"])
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
    command = [Path(sys.executable).with_name("tts-server"), *by_path(glow_tts), *vocoder_by_path(vocoder)]
    end = subprocess.run(command, env=os.environ | {"APNET2_STRICT": "1"}, capture_output=True, text=True)
    assert end.returncode == 1
    assert "tts-server: APNet2 vocodes the mel of glow_tts, converted approximately" in end.stderr
    assert "Traceback" not in end.stderr


@pytest.mark.parametrize("program", ["/x/bin/tts-server", "gunicorn"])
@pytest.mark.parametrize("error", [ModelError("no such model"), RuntimeError("somebody else's")])
def test_only_the_server_command_ends_in_one_line(program, error, monkeypatch):
    """Somebody's process that imports the server goes on, and an error that is not ours is shown as it is."""
    module = type(sys)("TTS.server.server")

    def run(module):
        raise error

    monkeypatch.setattr(sys, "argv", [program])
    ends = program != "gunicorn" and isinstance(error, ModelError)
    with pytest.raises(SystemExit if ends else type(error)) as raised:
        _host.load(module, run)
    assert str(raised.value) == ("tts-server: no such model" if ends else str(error))


MISSING = ["--vocoder_name", "apnet2-missing"]
TYPO = ["--vocoder_name", "apnet3"]
NO_SUCH = "tts: no APNet2 model is called 'apnet3'; known: apnet2"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (lambda glow, _: [*by_path(glow), *MISSING], "no APNet2 model is called 'apnet2-missing'; known: apnet2"),
        (lambda glow, vocoder: [*by_path(glow), "--vocoder_path", vocoder / "no.pth"], "no.pth: no such file"),
        (lambda *_: ["--model_name", "tts_models/en/ljspeech/tacotron2-DCA", *MISSING], "apnet2-missing"),
        (lambda *_: ["--model_name", "tts_models/en/ljspeech/overflow", *MISSING], "apnet2-missing"),
        (lambda *_: ["--model_name", "apnet2"], "apnet2 is a vocoder"),
        (lambda glow, _: [*by_path(glow), *TYPO], NO_SUCH),
        (lambda *_: ["--model_name", GLOW, *TYPO], NO_SUCH),
        (lambda *_: ["--model_name", VITS, *TYPO], NO_SUCH),
        (lambda *_: ["--model_name", "voice_conversion_models/multilingual/vctk/freevc24", *TYPO], NO_SUCH),
        (lambda glow, vocoder: [*by_path(glow), *TYPO, *vocoder_by_path(vocoder)], NO_SUCH),
        (
            lambda glow, vocoder: [*by_path(glow), "--vocoder_name", "apnet2", *vocoder_by_path(vocoder)],
            "give one of them",
        ),
        (
            lambda glow, vocoder: ["--model_name", GLOW, "--vocoder_name", WAVEGAN, *vocoder_by_path(vocoder)],
            "give one of them",
        ),
        (
            lambda glow, _: [*by_path(glow), "--vocoder_name", "apnet2", "--vocoder_path", glow],
            "give one of them",
        ),
    ],
)
def test_mistakes_get_one_line(arguments, reason, glow_tts, vits, vocoder, installed_vocoder, tts_home, tmp_path):
    """Before an acoustic model that is not there is downloaded."""
    before = sorted(tts_home.iterdir())
    line = tts("--text", TEXT, *arguments(glow_tts, vocoder), "--out_path", tmp_path / "out.wav")
    assert isinstance(line, str) and reason in line and "\n" not in line
    assert sorted(tts_home.iterdir()) == before and not (tmp_path / "out.wav").exists()


@pytest.mark.slow
@pytest.mark.parametrize("acoustic", ["path", "name"])
def test_installed_command_refuses_in_one_line(acoustic, glow_tts, vits, installed_vocoder, tmp_path):
    model = by_path(glow_tts) if acoustic == "path" else ("--model_name", VITS)
    command = [Path(sys.executable).with_name("tts"), "--text", TEXT, *model, *TYPO, "--out_path", tmp_path / "out.wav"]
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.returncode == 1 and not (tmp_path / "out.wav").exists()
    assert end.stderr.splitlines()[-1].startswith(NO_SUCH) and "Traceback" not in end.stderr


def test_python_class_knows_no_such_name(glow_tts, installed_vocoder):
    with pytest.raises(ModelNotFoundError, match="called 'apnet3'; known: apnet2"):
        tts_api(glow_tts, vocoder_name="apnet3")


def test_name_before_the_model(glow_tts, installed_vocoder):
    """A vocoder that is named first is there when the acoustic model comes in a call of its own."""
    from TTS.api import TTS

    api = TTS(vocoder_name="apnet2")
    api.load_tts_model_by_path(glow_tts / "model_file.pth", glow_tts / "config.json")
    assert isinstance(api.synthesizer.vocoder_model, Apnet2)


def test_name_in_a_later_call(glow_tts, wavegan, installed_vocoder):
    """It is taken, whatever vocoder the object was made with."""
    from TTS.api import TTS

    other = dict(vocoder_path=str(wavegan / "model_file.pth"), vocoder_config_path=str(wavegan / "config.json"))
    api = TTS(GLOW, **other, progress_bar=False)
    assert not isinstance(api.synthesizer.vocoder_model, Apnet2)
    api.load_tts_model_by_name(GLOW, "apnet2")
    assert isinstance(api.synthesizer.vocoder_model, Apnet2)


UNUSED = {  # the arguments of `tts`, given the folders of a GlowTTS and of one of coqui's vocoders, and what is said
    "model by path": (
        lambda glow, _: [*by_path(glow), "--vocoder_name", WAVEGAN],
        f"{WAVEGAN} is not used: with model",
    ),
    "name": (
        lambda *_: ["--model_name", VITS, "--vocoder_name", WAVEGAN],
        f"{WAVEGAN} is not used: coqui-tts uses {VITS}",
    ),
    "path": (
        lambda _, wavegan: ["--model_name", VITS, *vocoder_by_path(wavegan)],
        "model_file.pth is not used: coqui-",
    ),
    "no config": (
        lambda _, wavegan: ["--model_name", GLOW, "--vocoder_path", wavegan / "model_file.pth"],
        f"model_file.pth is not used: coqui-tts uses {GLOW} with ",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_vocoder_that_coqui_drops_is_named(case, glow_tts, vits, wavegan, tmp_path, capsys):
    """It goes on as without the plugin, and a line says so."""
    arguments, line = UNUSED[case]
    assert tts("--text", TEXT, *arguments(glow_tts, wavegan), "--out_path", tmp_path / "out.wav") == 0
    lines = [printed for printed in capsys.readouterr().out.splitlines() if "is not used" in printed]
    assert len(lines) == 1 and line in lines[0]


def test_vocoder_that_coqui_uses_is_not(glow_tts, wavegan, tmp_path, capsys):
    for arguments in (
        [*by_path(glow_tts), *vocoder_by_path(wavegan)],
        ["--model_name", GLOW, "--vocoder_name", WAVEGAN],
        ["--model_name", GLOW, *vocoder_by_path(wavegan)],
        ["--model_name", GLOW],
    ):
        assert tts("--text", TEXT, *arguments, "--out_path", tmp_path / "out.wav") == 0
        assert "is not used" not in capsys.readouterr().out


def test_comments_in_the_configuration(glow_tts, vocoder, tmp_path):
    """coqui-tts reads them; so does what looks for the model before."""
    commented = with_comments(shutil.copytree(vocoder, tmp_path / "commented"))
    for arguments in (["--vocoder_path", commented], vocoder_by_path(commented)):
        out = tmp_path / "out.wav"
        assert tts("--text", TEXT, *by_path(glow_tts), *arguments, "--out_path", out) == 0
        check_wav(out, GLOW_SAMPLES)
        out.unlink()


@pytest.mark.parametrize("sample_rate", [16000, 48000])
def test_silence_is_trimmed_in_seconds(sample_rate, vocoder, tmp_path, monkeypatch):
    """Those of the vocoder's waveform: a pause of 0.7 s stays at any sample rate, and of the silence at the end 0.8 s
    at most, as where the rates are equal."""
    words = np.concatenate(
        [np.full(int(seconds * RATE), level) for seconds, level in ((0.5, 0.5), (0.7, 0), (0.5, 0.5))]
    )
    spoken = torch.from_numpy(np.append(words, np.zeros(int(1.5 * RATE)))).float()
    monkeypatch.setattr(Apnet2, "inference", lambda self, mel: spoken[None, None])
    kept = {}
    for rate in (sample_rate, RATE):
        api = tts_api(
            build("glow_tts", tmp_path / str(rate), sample_rate=rate, do_trim_silence=True), vocoder_path=vocoder
        )
        kept[rate] = len(api.tts(TEXT)) - SILENCE
        assert len(words) <= kept[rate] < len(words) + 0.8 * RATE
        assert api.synthesizer.tts_model.ap.sample_rate == rate
    assert kept[sample_rate] == kept[RATE]
