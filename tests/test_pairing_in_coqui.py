"""Pairings inside coqui's Synthesizer: made once when a voice is loaded, apart for each call, gone after a failure."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from acoustic_models import FRAMES_PER_TOKEN, build, save
from command_line import HOP, RATE, SILENCE, by_path, check_wav, tts, tts_api, vocoder_by_path
from vits_models import make_vits, make_vocoder, save_vits

from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.model import Apnet2

SENTENCES = ["one", "a longer one than that", "three words here", "hello there"]


@pytest.fixture(scope="module")
def latent_vits(tmp_path_factory):
    return save_vits(make_vits(), tmp_path_factory.mktemp("vits") / "vits")


@pytest.fixture(scope="module")
def latent_vocoder(tmp_path_factory):
    """Folder of a vocoder of that one's latents."""
    vocoder = make_vocoder()
    return save(vocoder, vocoder.config, tmp_path_factory.mktemp("latent") / "vocoder")


@pytest.fixture(params=["mel", "latent"])
def voice(request, glow_tts, installed_vocoder, latent_vits, latent_vocoder):
    """An acoustic model and a vocoder that always say the same in the same words."""
    if request.param == "latent":
        return tts_api(latent_vits, vocoder_path=latent_vocoder)
    return tts_api(glow_tts, vocoder_path=installed_vocoder)


def state(api) -> list:
    """All that a call could have left behind in the synthesizer and its acoustic model."""
    synthesizer, model = api.synthesizer, api.synthesizer.tts_model
    return [
        dict(vars(synthesizer)),
        {key: value for key, value in vars(model).items() if key != "_modules"},
        {name: id(module) for name, module in model.named_modules()},
        {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()},
    ]


def test_threads_do_not_mix_their_sentences(voice):
    expected = {sentence: np.array(voice.tts(sentence)) for sentence in SENTENCES}
    assert len({len(wav) for wav in expected.values()}) == len(SENTENCES)
    barrier = threading.Barrier(len(SENTENCES))

    def speak(sentence):
        barrier.wait()
        return [np.array(voice.tts(sentence)) for _ in range(3)]

    with ThreadPoolExecutor(len(SENTENCES)) as pool:
        for sentence, wavs in zip(SENTENCES, pool.map(speak, SENTENCES), strict=True):
            assert all(np.array_equal(wav, expected[sentence]) for wav in wavs), sentence


@pytest.mark.parametrize(
    ("answer", "error"), [(1, ZeroDivisionError), (float("nan"), PairingError), (float("-inf"), PairingError)]
)
def test_failure_leaves_nothing_behind(answer, error, voice, monkeypatch):
    """Also if the vocoder's answer is no sound, which stock would write to a file."""
    expected, before = voice.tts("hello"), state(voice)
    with monkeypatch.context() as patch:
        patch.setattr(Apnet2, "inference", lambda *args: 1 / 0 if answer == 1 else torch.full((1, 1, HOP), answer))
        with pytest.raises(error):
            voice.tts("hello")
    assert state(voice) == before
    assert voice.tts("hello") == expected


def test_plan_is_made_once(voice, caplog):
    def ours():
        return [record for record in caplog.records if record.name == "TTS.apnet2"]

    with caplog.at_level("INFO", "TTS.apnet2"):
        for _ in range(2):
            voice.tts("hello")
        assert not ours()
        synthesizer = voice.synthesizer
        synthesizer.vocoder_model = Apnet2(synthesizer.vocoder_model.config).eval()
        voice.tts("hello")
    assert len(ours()) == 1  # there is another vocoder


def test_without_vocoder_again(voice):
    """Taking our vocoder away leaves the acoustic model to coqui."""
    synthesizer = voice.synthesizer
    synthesizer.vocoder_model = None
    wav = voice.tts("hello")
    assert len(wav) > SILENCE and np.abs(wav).max() > 0


def test_latent_is_vocoded_by_the_command(latent_vits, latent_vocoder, tmp_path, monkeypatch):
    """The VITS's own decoder is not run, and each of its frames becomes one hop."""
    from TTS.vocoder.models.hifigan_generator import HifiganGenerator

    out = tmp_path / "out.wav"
    monkeypatch.delattr(HifiganGenerator, "forward")
    paths = *by_path(latent_vits), *vocoder_by_path(latent_vocoder)
    assert tts("--text", "hello there", *paths, "--out_path", out) == 0
    check_wav(out, FRAMES_PER_TOKEN * (2 * len("hello there") + 1) * HOP)


def test_latent_is_refused_where_there_is_none(glow_tts, latent_vits, latent_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    line = tts("--text", "hello", *by_path(glow_tts), *vocoder_by_path(latent_vocoder), "--out_path", out)
    assert "glow_tts cannot be followed" in line and "latent of a VITS" in line and "\n" not in line
    assert not out.exists()
    wide = tiny.model(input_features="latent", latent_channels=192)
    line = tts("--text", "hello", *by_path(latent_vits), *vocoder_by_path(save(wide, wide.config, tmp_path / "wide")))
    assert "latent_channels: 192, expected the 32" in line


def test_strict(glow_tts, vocoder, tmp_path, monkeypatch):
    monkeypatch.setenv("APNET2_STRICT", "1")
    out = tmp_path / "out.wav"
    line = tts("--text", "hello", *by_path(glow_tts), *vocoder_by_path(vocoder), "--out_path", out)
    assert "mel_fmax" in line and "APNET2_STRICT" in line and not out.exists()
    exact = build("glow_tts", tmp_path / "exact", mel_fmax=8000.0)
    assert tts("--text", "hello", *by_path(exact), *vocoder_by_path(vocoder), "--out_path", out) == 0


@pytest.mark.parametrize("pipe", [(), ("--pipe_out",)])
def test_plan_is_printed_unless_the_sound_is(pipe, glow_tts, vocoder, tmp_path, capfdbinary):
    paths = *by_path(glow_tts), *vocoder_by_path(vocoder), "--out_path", tmp_path / "out.wav"
    assert tts("--text", "one. two.", *paths, *pipe) == 0
    printed = capfdbinary.readouterr().out
    assert (b"RIFF" in printed) == bool(pipe)
    lines = [line for line in printed.splitlines() if b"APNet2 vocodes" in line]
    assert not lines if pipe else len(lines) == 1 and b"approximately (mel_fmax)" in lines[0]


@pytest.mark.parametrize(("audio", "level"), [({}, "INFO"), (dict(sample_rate=8000, mel_fmax=4000.0), "WARNING")])
def test_coquis_default_settings_are_no_warning(audio, level, vocoder, tmp_path, caplog):
    """But half of the vocoder's range missing is one."""
    with caplog.at_level("INFO", "TTS.apnet2"):
        tts_api(build("glow_tts", tmp_path / "glow", **audio), vocoder_path=vocoder)
    (record,) = [record for record in caplog.records if record.name == "TTS.apnet2"]
    assert record.levelname == level and "converted approximately" in record.message


def test_seconds_are_those_of_the_sound(vocoder, tmp_path):
    """Start and end of sentences, where the vocoder's sample rate is half of the acoustic model's."""
    api = tts_api(build("glow_tts", tmp_path / "glow", sample_rate=44100), vocoder_path=vocoder)
    speech = api.synthesizer.tts("one two. three.", return_dict=True)
    (start, end), (second_start, second_end) = ((part["start"], part["end"]) for part in speech["segments"])
    assert end - start + second_end - second_start == pytest.approx((len(speech["wav"]) - 2 * SILENCE) / RATE)
    assert second_start - end == pytest.approx(SILENCE / RATE)
