"""Weights that fit by their shapes, and were trained as something else."""

import tiny
from weight_files import save, save_checkpoint, training_model

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.origin import other_settings


def test_same_settings(tmp_path):
    assert other_settings(Apnet2Config.preset("pitch"), store.BUNDLED / "apnet2") == []
    model = training_model(1)
    assert other_settings(model.config, save_checkpoint(model, tmp_path / "checkpoint_5.pth")) == []


def test_settings_beside_safetensors():
    config = Apnet2Config.preset("tiny")
    config.amplitude.look_ahead, config.audio.hop_length, config.f0_max = 6, 200, 700.0
    assert other_settings(config, store.BUNDLED / "apnet2-tiny") == [
        "audio.hop_length (200, these weights had 256)",
        "amplitude.look_ahead (6, these weights had 4)",
        "f0_max (700.0, these weights had 800.0)",
    ]


def test_settings_in_a_checkpoint_go_before_those_beside_it(tmp_path):
    model = training_model(1)
    path = save_checkpoint(model, tmp_path / "checkpoint_5.pth")
    (tmp_path / "config.json").write_text(Apnet2Config.preset("tiny").to_json())
    config = tiny.config()
    config.phase.look_ahead = 1
    assert other_settings(config, path) == [f"phase.look_ahead (1, these weights had {model.config.phase.look_ahead})"]


def test_settings_that_files_of_old_do_not_have_are_the_defaults(tmp_path):
    model = training_model(1)
    config = model.config.to_dict()
    del config["amplitude"]["look_ahead"]
    path = save({"config": config, "model": model.state_dict()}, tmp_path / "checkpoint_5.pth")
    assert other_settings(model.config, path) == []


def test_a_latents_phase_is_not_compared_with_a_pitchs():
    config = Apnet2Config.preset("tiny")
    config.phase_start, config.phase.look_ahead, config.f0_max = "latent", 5, 700.0
    assert other_settings(config, store.BUNDLED / "apnet2-tiny") == []


def test_without_a_configuration_there_is_nothing_to_compare(tmp_path):
    path = save({"generator": {}}, tmp_path / "g_00000005")
    assert other_settings(tiny.config(), path) == []
    (tmp_path / "config.json").write_text("{")
    assert other_settings(tiny.config(), path) == []
