"""Weights that fit by their shapes, and were trained as something else."""

import json

import pytest
import tiny
from weight_files import save, save_checkpoint, training_model

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.origin import other_settings

OFFICIAL = {"sampling_rate": 24000, "n_fft": 1024, "hop_size": 300, "win_size": 1024, "num_mels": 80, "fmin": 0}


def test_same_settings(tmp_path):
    assert other_settings(Apnet2Config.preset("pitch"), store.BUNDLED / "apnet2") == []
    model = training_model(1)
    assert other_settings(model.config, save_checkpoint(model, tmp_path / "checkpoint_5.pth")) == []


def test_settings_beside_safetensors():
    config = Apnet2Config.preset("tiny")
    config.amplitude.look_ahead, config.audio.hop_length, config.f0_max = 5, 200, 700.0
    assert other_settings(config, store.BUNDLED / "apnet2-tiny") == [
        "audio.hop_length 256 (now 200)",
        "f0_max 800.0 (now 700.0)",
        "amplitude.look_ahead 4 (now 5)",
    ]


def test_settings_in_a_checkpoint_go_before_those_beside_it(tmp_path):
    model = training_model(1)
    path = save_checkpoint(model, tmp_path / "checkpoint_5.pth")
    (tmp_path / "config.json").write_text(Apnet2Config.preset("tiny").to_json())
    config = tiny.config()
    config.phase.look_ahead = 1
    assert other_settings(config, path) == ["phase.look_ahead -1 (now 1)"]


def test_settings_that_files_of_old_do_not_have_are_the_defaults(tmp_path):
    model = training_model(1)
    settings = model.config.to_dict()
    del settings["phase_start"], settings["amplitude"]["look_ahead"]
    path = save({"config": settings, "model": model.state_dict()}, tmp_path / "checkpoint_5.pth")
    assert other_settings(model.config, path) == []
    model.config.phase.look_ahead = 1
    assert other_settings(model.config, path) == ["phase.look_ahead -1 (now 1)"]


def test_other_words_for_the_same(tmp_path):
    """Three kernels of 7 frames, centred, see 9 frames ahead."""
    model = training_model(1)
    path = save_checkpoint(model, tmp_path / "checkpoint_5.pth")
    for look_ahead, is_same in ((8, False), (9, True), (100, True)):
        model.config.phase.look_ahead = look_ahead
        assert (other_settings(model.config, path) == []) == is_same
    model.config.audio.mel_fmax = None
    assert other_settings(model.config, path) == ["audio.mel_fmax 8000.0 (now None)"]
    model.config.audio.mel_fmax = 11025.0
    path = save_checkpoint(model, path)
    model.config.audio.mel_fmax = None
    assert other_settings(model.config, path) == []


def test_a_latents_phase_is_not_compared_with_a_pitchs():
    config = Apnet2Config.preset("tiny")
    config.phase_start, config.phase.look_ahead, config.f0_max = "latent", 5, 700.0
    assert other_settings(config, store.BUNDLED / "apnet2-tiny") == []


@pytest.mark.parametrize("features", ["latent", "mel"])
def test_the_predictor_of_a_mel_is_compared_with_another_one(tmp_path, features):
    config = tiny.config(amplitude_start="pseudo_inverse", input_features="latent", latent_channels=12)
    trained = tiny.config(amplitude_start="pseudo_inverse", input_features=features)
    path = save({"config": trained.to_dict(), "model": {}}, tmp_path / "checkpoint_5.pth")
    config.mel.look_ahead = 0
    assert other_settings(config, path) == (["mel.look_ahead -1 (now 0)"] if features == "latent" else [])


def test_an_official_configuration_is_compared(tmp_path):
    path = save({"generator": {}}, tmp_path / "g_00000005")
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL | {"fmax": 8000}))
    config = Apnet2Config()
    assert other_settings(config, path) == ["audio.hop_length 300 (now 256)", "audio.sample_rate 24000 (now 22050)"]
    config.audio.hop_length, config.audio.sample_rate = 300, 24000
    assert other_settings(config, path) == []


@pytest.mark.parametrize("beside", [None, "{", "[]", '{"model": "hifigan", "audio": {"hop_length": 200}}'])
def test_without_a_configuration_of_apnet2_there_is_nothing_to_compare(tmp_path, beside):
    path = save({"generator": {}}, tmp_path / "g_00000005")
    if beside is not None:
        (tmp_path / "config.json").write_text(beside)
    assert other_settings(tiny.config(), path) == []
