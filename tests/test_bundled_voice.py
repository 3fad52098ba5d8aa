"""The acoustic model that ships with the plugin: text in, speech out, without a download."""

import logging
import socket

import numpy as np
import pytest
import scripts
import soundfile
import soxr
from command_line import RATE, SILENCE, tts
from heard import heard, word_errors, words_of

from apnet2_tts_plugin.errors import DataError, ModelError
from apnet2_tts_plugin.weights import store

NAME = store.ACOUSTIC_MODEL
SENTENCE = "The old man sat by the river and talked about the weather with his friends."
DEFAULT = "tts_models/en/ljspeech/tacotron2-DDC"  # of `tts`


@pytest.fixture
def no_network(monkeypatch):
    """Whatever would open a connection fails."""

    def refuse(*_):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The Python class with both bundled models."""
    from TTS.api import TTS

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_HOME", str(tmp_path_factory.mktemp("empty")))
        yield TTS(NAME, vocoder_name="apnet2", progress_bar=False)


@pytest.mark.parametrize("vocoder", [[], ["--vocoder_name", "apnet2"], ["--vocoder_name", "apnet2-tiny"]])
def test_command_speaks_offline(vocoder, no_network, tmp_path, monkeypatch):
    """And is understood."""
    monkeypatch.setenv("TTS_HOME", str(tmp_path))
    out = tmp_path / "hello.wav"
    assert tts("--text", SENTENCE, "--model_name", NAME, *vocoder, "--out_path", out) == 0
    assert word_errors(words_of(SENTENCE), heard(out)) <= 3


def test_words_left_out_or_said_twice_are_found(api, monkeypatch):
    """By the check of the recipe's evaluation, in speech from which one is cut out or in which one is doubled."""
    sentence = "The old man talked about the weather."  # with wide beams, twice the words take four times as long
    module = scripts.load(scripts.RECIPES / "heart" / "words.py", monkeypatch)
    slips, words = module.Slips(), module.split(sentence)
    audio = soxr.resample(np.array(api.tts(sentence), dtype=np.float32), 22050, 16000)
    assert slips.knows(words) and not slips.knows(["qwertz"]) and slips.find(audio, words) == ([], [])
    index = max(range(len(words)), key=lambda place: len(words[place]))
    without, twice = slips.with_slips(audio, words, index)
    assert slips.find(without, words) == ([index], [])
    assert slips.find(twice, words) == ([], [words[index]])


def test_size():
    weights, _ = store.acoustic_files(NAME)
    assert weights.stat().st_size < 12e6


def test_is_listed(caplog):
    from TTS.utils.manage import ModelManager

    manager = ModelManager()
    assert manager.list_tts_models().count(NAME) == 1
    with caplog.at_level(logging.INFO, "TTS"):
        manager.model_info_by_full_name(NAME)
    assert "Default vocoder: apnet2" in caplog.text


def test_mels_are_the_vocoders_own(api):
    """Nothing is converted between the two."""
    from apnet2_tts_plugin.pairing import convert
    from apnet2_tts_plugin.pairing.plan import Verdict

    assert convert.pair(api.synthesizer.tts_model, api.synthesizer.vocoder_model.config).plan.verdict == Verdict.SAME


@pytest.mark.parametrize(
    "text, least, most",
    [
        ("Yes.", 0.2, 1.5),
        ("a", 0.05, 1.5),
        ("Wait... what?! (Really) -- \"no\"; yes: 'so'.", 1.5, 6.0),
        ("On March 3rd, 1984, Dr. Smith paid $12.50 at 3:30 pm for 27 BBC tapes.", 5.0, 14.0),
        ("Fine \N{GRINNING FACE}", 0.2, 2.0),
        ("Überraschung für Señor Ångström", 1.0, 5.0),
    ],
)
def test_odd_texts(text, least, most, api):
    wav = np.array(api.tts(text))
    assert np.isfinite(wav).all() and np.abs(wav).max() < 2
    assert least <= (len(wav) - SILENCE) / RATE <= most


@pytest.mark.parametrize("text", ["", "  \n", "...", "\N{GRINNING FACE}"])
def test_empty_text_is_refused(text, api):
    with pytest.raises(DataError, match="expected words to speak"):
        api.tts(text)


def test_longer_text_takes_longer(api):
    """In proportion: no words are skipped, and none is repeated without end."""
    sentence = np.array(api.tts("Nobody in the village could remember a winter as mild as this one."))
    both = "Nobody in the village could remember a winter as mild as this one, " * 2
    twice = np.array(api.tts(both, split_sentences=False))
    assert (len(twice) - SILENCE) / (len(sentence) - SILENCE) == pytest.approx(2, rel=0.2)


def test_same_text_same_speech(api, tmp_path):
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in paths:
        api.tts_to_file("Hello there.", file_path=path)
    assert np.array_equal(*(soundfile.read(path)[0] for path in paths))


def test_other_models_users_are_told_of_it(no_network, tmp_path, monkeypatch, caplog):
    """Who names nothing but the vocoder gets coqui's default model, which has to be downloaded."""
    from TTS.api import TTS

    monkeypatch.setenv("TTS_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO, "TTS"), pytest.raises(ModelError, match=f"cannot be downloaded.*{NAME}"):
        TTS(DEFAULT, vocoder_name="apnet2", progress_bar=False)
    assert f"{NAME} needs no download" in caplog.text
    assert not list((tmp_path / "tts").glob("tts_models--*"))
