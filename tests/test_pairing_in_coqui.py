"""Pairings inside coqui's Synthesizer: made once when a voice is loaded, apart for each call, gone after a failure."""

import threading

import numpy as np
import pytest
import torch
from acoustic_models import build
from test_speak import by_path, check_wav, tts, vocoder_by_path
from vits_models import HOP, make_vits, make_vocoder, save_vits

from apnet2_tts_plugin import store
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2

SENTENCES = ["one", "a longer one than that", "three words here", "hello there"]
SILENCE = 10000


@pytest.fixture(scope="module")
def latent_vits(tmp_path_factory):
    """Folder of a VITS that always says the same in the same words."""
    model = make_vits()
    model.config.model_args.inference_noise_scale = 0.0
    return save_vits(model, tmp_path_factory.mktemp("vits") / "vits")


@pytest.fixture(scope="module")
def latent_vocoder(tmp_path_factory):
    """Folder of a vocoder that speaks that one's latents."""
    model = make_vocoder()
    folder = tmp_path_factory.mktemp("vocoder") / "latent"
    folder.mkdir()
    torch.save({"model": model.state_dict(), "config": model.config.to_dict()}, folder / "model_file.pth")
    model.config.save_json(folder / "config.json")
    return folder


def load(acoustic, vocoder):
    from TTS.api import TTS

    weights, config = store.weights_file(vocoder), vocoder / "config.json"
    paths = {"model_path": acoustic / "model_file.pth", "config_path": acoustic / "config.json"}
    return TTS(**paths, vocoder_path=weights, vocoder_config_path=config)


@pytest.fixture(params=["mel", "latent"])
def voice(request, glow_tts, installed_vocoder, latent_vits, latent_vocoder):
    """An acoustic model and a vocoder that always say the same in the same words."""
    if request.param == "latent":
        return load(latent_vits, latent_vocoder)
    api = load(glow_tts, installed_vocoder)
    api.synthesizer.tts_model.inference_noise_scale = 0.0
    return api


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
    results, barrier = {}, threading.Barrier(len(SENTENCES))

    def speak(sentence):
        barrier.wait()
        results[sentence] = [np.array(voice.tts(sentence)) for _ in range(3)]

    threads = [threading.Thread(target=speak, args=(sentence,)) for sentence in SENTENCES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sentence, wavs in results.items():
        assert all(np.array_equal(wav, expected[sentence]) for wav in wavs), sentence
    assert len(results) == len(SENTENCES)


def test_failure_leaves_nothing_behind(voice, monkeypatch):
    expected, before = voice.tts("hello"), state(voice)
    with monkeypatch.context() as patch:
        patch.setattr(Apnet2, "inference", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            voice.tts("hello")
    assert state(voice) == before
    assert voice.tts("hello") == expected


def test_plan_is_made_once(voice, caplog):
    with caplog.at_level("INFO", "TTS.apnet2"):
        for _ in range(2):
            voice.tts("hello")
        assert not caplog.messages
        synthesizer = voice.synthesizer
        synthesizer.vocoder_model = Apnet2(synthesizer.vocoder_model.config).eval()
        voice.tts("hello")
    assert len(caplog.messages) == 1  # there is another vocoder


def test_without_vocoder_again(voice):
    """Taking our vocoder away leaves the acoustic model to coqui."""
    synthesizer = voice.synthesizer
    synthesizer.vocoder_model = None
    wav = voice.tts("hello")
    assert len(wav) > SILENCE and np.abs(wav).max() > 0


def test_latent_is_spoken_by_the_command(latent_vits, latent_vocoder, tmp_path, monkeypatch):
    """The VITS's own decoder is not run, and each of its frames becomes one hop."""
    out = tmp_path / "out.wav"
    own = []
    from TTS.vocoder.models.hifigan_generator import HifiganGenerator

    monkeypatch.setattr(HifiganGenerator, "forward", lambda *args, **kwargs: own.append(args))
    paths = *by_path(latent_vits), *vocoder_by_path(latent_vocoder)
    assert tts("--text", "hello there", *paths, "--out_path", out) == 0
    check_wav(out, 4 * (2 * len("hello there") + 1) * HOP)
    assert not own


def test_latent_is_refused_where_there_is_none(glow_tts, latent_vocoder, tmp_path):
    out = tmp_path / "out.wav"
    line = tts("--text", "hello", *by_path(glow_tts), *vocoder_by_path(latent_vocoder), "--out_path", out)
    assert "glow_tts cannot be followed" in line and "latent of a VITS" in line and "\n" not in line
    assert not out.exists()


def test_mismatched_latent_is_named(latent_vits, tmp_path):
    sizes = PredictorConfig(channels=8, hidden_channels=8, blocks=1)
    model = Apnet2(Apnet2Config(amplitude=sizes, phase=sizes, input="latent", latent_channels=192))
    torch.save({"model": model.state_dict()}, tmp_path / "model_file.pth")
    model.config.save_json(tmp_path / "config.json")
    line = tts("--text", "hello", *by_path(latent_vits), *vocoder_by_path(tmp_path))
    assert "latent_channels: 192, expected the 32" in line


def test_strict(glow_tts, vocoder, tmp_path, monkeypatch):
    monkeypatch.setenv("APNET2_STRICT", "1")
    out = tmp_path / "out.wav"
    line = tts("--text", "hello", *by_path(glow_tts), *vocoder_by_path(vocoder), "--out_path", out)
    assert "mel_fmax" in line and "APNET2_STRICT" in line and not out.exists()
    exact = build("glow_tts", tmp_path / "exact", mel_fmax=8000.0)
    assert tts("--text", "hello", *by_path(exact), *vocoder_by_path(vocoder), "--out_path", out) == 0


def test_plan_is_printed(glow_tts, vocoder, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert tts("--text", "one. two.", *by_path(glow_tts), *vocoder_by_path(vocoder), "--out_path", out) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "APNet2 speaks" in line]
    assert len(lines) == 1 and "approximately (mel_fmax)" in lines[0]


def test_plan_is_not_in_a_pipe(glow_tts, vocoder, tmp_path, capfdbinary):
    out = tmp_path / "out.wav"
    paths = *by_path(glow_tts), *vocoder_by_path(vocoder), "--out_path", out
    assert tts("--text", "one", "--pipe_out", *paths) == 0
    out = capfdbinary.readouterr().out
    assert b"RIFF" in out and b"APNet2 speaks" not in out


def test_seconds_are_those_of_the_sound(vocoder, tmp_path):
    """Start and end of sentences, where the vocoder's sample rate is half of the acoustic model's."""
    api = load(build("glow_tts", tmp_path / "glow", sample_rate=44100), vocoder)
    speech = api.synthesizer.tts("one two. three.", return_dict=True)
    assert sum(end - start for start, end in ends(speech)) == pytest.approx((len(speech["wav"]) - 2 * SILENCE) / 22050)
    (_, first_end), (second_start, _) = ends(speech)
    assert second_start - first_end == pytest.approx(SILENCE / 22050)


def ends(speech: dict) -> list[tuple[float, float]]:
    return [(segment["start"], segment["end"]) for segment in speech["segments"]]
