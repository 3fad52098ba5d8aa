"""The configuration: documented defaults, refused nonsense, files."""

import ast
import inspect
import json
import re

import numpy as np
import pytest
import tiny
from torch.utils._pytree import tree_leaves
from TTS.config import load_config

from apnet2_tts_plugin.config import ANALYSIS, UNUSED, Apnet2AudioConfig, Apnet2Config, PredictorConfig
from apnet2_tts_plugin.errors import ConfigError
from apnet2_tts_plugin.network.generator import Generator

SECTIONS = {"audio": Apnet2AudioConfig} | dict.fromkeys(("amplitude", "phase", "mel"), PredictorConfig)


def documented_defaults(cls) -> dict[str, str]:
    """Field name to the text after "Defaults to", as the class's docstring has them."""
    args = inspect.getdoc(cls).split("Args:\n")[1]
    fields = re.findall(r"^    (\w+) \([^)]*\): (.*?)(?=^    \w+ \(|\Z)", args, re.MULTILINE | re.DOTALL)
    return {name: re.sub(r"\s+", " ", text).split("Defaults to ")[1].rstrip(". ") for name, text in fields}


@pytest.mark.parametrize(
    ("name", "n_parameters"), [("base", 31_425_539), ("freev", 18_218_509), ("pitch", 2_567_276), ("tiny", 1_136_652)]
)
def test_presets(name, n_parameters):
    config = Apnet2Config.preset(name, batch_size=3)
    config.check_values()
    assert config.batch_size == 3
    assert sum(weight.numel() for weight in Generator(config).parameters()) == n_parameters
    config.phase.blocks += 1
    assert Apnet2Config.preset(name).phase.blocks == config.phase.blocks - 1


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"preset: 'huge', expected one of \['base', 'freev', 'pitch', 'tiny'\]"):
        Apnet2Config.preset("huge")


@pytest.mark.parametrize("cls", [Apnet2Config, Apnet2AudioConfig, PredictorConfig])
def test_documented_defaults_are_the_defaults(cls):
    documented = documented_defaults(cls)
    assert documented.keys() == cls.__dict__["__annotations__"].keys()
    for name, text in documented.items():
        default = getattr(cls(), name)
        if text.startswith("`"):
            assert f"`{type(default).__name__}()`" == text and default == type(default)()
        else:
            assert default == ast.literal_eval(text), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": None}, "audio: None, expected a section of settings"),
        ({"amplitude": None}, "amplitude: None, expected a section of settings"),
        ({"seq_len": 8000}, r"seq_len: 8000, expected a multiple of audio.hop_length \(256\)"),
        ({"seq_len": 512}, r"seq_len: 512, expected .* above half the FFT size"),
        ({"audio": {"win_length": 2048}}, r"audio.win_length: 2048, expected .* at most audio.fft_size \(1024\)"),
        ({"audio": {"hop_length": 1024}}, r"audio.win_length: 1024, expected more than audio.hop_length \(1024\)"),
        ({"audio": {"fft_size": 1023}}, r"audio.fft_size: 1023, expected an even number"),
        ({"audio": {"mel_fmax": 12000.0}}, r"audio.mel_fmax: 12000.0, expected .* at most half the sample rate"),
        ({"audio": {"mel_fmin": 9000.0}}, r"audio.mel_fmax: 8000.0, expected above audio.mel_fmin \(9000.0\)"),
        ({"audio": {"num_mels": 0}}, r"audio.num_mels: 0, expected at least 1"),
        ({"phase": {"kernel_size": 6}}, r"phase.kernel_size: 6, expected an odd number"),
        ({"amplitude": {"blocks": 0}}, r"amplitude.blocks: 0, expected at least 1"),
        ({"amplitude_start": "noise"}, r"amplitude_start: 'noise', expected .*'pseudo_inverse'"),
        ({"amplitude_start": "pseudo_inverse"}, r"amplitude.channels: 512, expected 513"),
        ({"input_features": "noise"}, r"input_features: 'noise', expected \('mel', 'latent'\)"),
        (
            {"mel": {"channels": 64}},
            r"mel: .*, expected .*, as it has no effect with these other settings",
        ),
        (
            {"phase_start": "latent", "input_features": "latent"},
            "phase_start: 'latent', expected .* without input_features 'latent' and amplitude_start 'pseudo_inverse'",
        ),
        ({"latent_channels": 0}, r"latent_channels: 0, expected at least 1"),
        ({"speaker_channels": -1}, r"speaker_channels: -1, expected 0 or more"),
        ({"mpd_periods": [2, 0]}, r"mpd_periods: \[2, 0\], expected"),
        ({"mpd_channels": []}, r"mpd_channels: \[\], expected"),
        ({"batch_size": 0}, r"batch_size: 0, expected at least 1"),
        ({"eval_split_size": 0}, r"eval_split_size: 0, expected at least 1"),
        ({"mrd_resolutions": [[512, 600, 512]]}, r"mrd_resolutions: \[512, 600, 512\], expected"),
        ({"mrd_resolutions": [[32768, 600, 1024]]}, r"mrd_resolutions: .* below twice seq_len \(8192\)"),
        ({"loss_weights": {"mel": 45.0}}, r"loss_weights: \[.*'mel'.*\], expected exactly the terms"),
        (
            {"discriminator_loss_weights": {"mpd": -1.0, "mrd": 0.1}},
            r"discriminator_loss_weights.mpd: -1.0, expected a number of 0",
        ),
        ({"lr_gen": 0.0}, r"lr_gen: 0.0, expected a number above 0"),
        ({"grad_clip": [5.0]}, r"grad_clip: \[5.0\], expected"),
        ({"grad_clip": [-1.0, 5.0]}, r"grad_clip: \[-1.0, 5.0\], expected .* each 0 or more"),
        ({"steps_to_start_discriminator": -5}, "steps_to_start_discriminator: -5, expected 0 or more"),
        ({"save_step": 0}, "save_step: 0, expected at least 1"),
        ({"lr_gen": None}, "lr_gen: None, expected a number"),
        ({"lr_gen": float("nan")}, "lr_gen: nan, expected a number"),
        ({"audio": {"win_length": None}}, "audio.win_length: None, expected a number"),
        (
            {"amplitude_start": "pseudo_inverse", "amplitude": {"channels": 513, "output_kernel_size": 3}},
            "amplitude.output_kernel_size: 3, expected 7, as it has no effect",
        ),
        ({"latent_channels": 96}, "latent_channels: 96, expected 192, as it has no effect"),
        ({"f0_min": 60.0}, "f0_min: 60.0, expected 50.0, as it has no effect"),
        ({"dataset": "ljspeech"}, "dataset: 'ljspeech', expected LANGUAGE/NAME"),
        ({"dataset": "en/../x"}, "dataset: 'en/../x', expected LANGUAGE/NAME"),
        ({"dataset": "en/a--b"}, "dataset: 'en/a--b', expected LANGUAGE/NAME"),
        ({"eval_metrics": ["mos"]}, r"eval_metrics: \['mos'\], expected some of"),
        (
            {"lr_scheduler_gen": "ReduceLROnPlateau"},
            "lr_scheduler_gen: 'ReduceLROnPlateau', expected a schedule that is",
        ),
        ({"lr_scheduler_disc": "ReduceLROnPlateau"}, "lr_scheduler_disc: 'ReduceLROnPlateau', expected a schedule"),
        ({"optimizer": "LBFGS"}, "optimizer: 'LBFGS', expected an optimizer that takes a step from gradients alone"),
        ({"optimizer": "SparseAdam"}, "optimizer: 'SparseAdam', expected an optimizer that takes a step"),
        ({"segments_per_file": 0}, "segments_per_file: 0, expected at least 1"),
        ({"target_loss": "loss_multi_resolution_stft"}, r"target_loss: 'loss_multi_resolution_stft', expected one of"),
        ({"target_loss": "loss_adversarial_mpd"}, r"target_loss: 'loss_adversarial_mpd', expected one of"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Apnet2Config(**{name: nested(name, value) for name, value in change.items()})
    settings = Apnet2Config().to_dict()
    for name, value in change.items():
        settings[name] = settings[name] | value if name in SECTIONS and value else value
    with pytest.raises(ConfigError, match=message):
        Apnet2Config().from_dict(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "Nope"}, "optimizer: 'Nope' with .*, expected one of torch.optim"),
        ({"optimizer_params": {"nope": 1}}, "optimizer: 'AdamW' with {'nope': 1}, expected"),
        ({"lr_scheduler_gen": "Nope"}, "lr_scheduler_gen: 'Nope' with .*, expected one of torch.optim.lr_scheduler"),
        ({"lr_scheduler_disc_params": {"nope": 1}}, "lr_scheduler_disc: 'ExponentialLR' with {'nope': 1}, expected"),
    ],
)
def test_optimizers_and_schedules_that_torch_does_not_have_are_refused(settings, message):
    model = tiny.model(**settings)
    with pytest.raises(ConfigError, match=message):
        model.get_scheduler(model.get_optimizer())


def nested(name: str, value):
    return SECTIONS[name](**value) if name in SECTIONS and value else value


def another(value):
    """A value of the same type, or a number in place of none."""
    kinds = {bool: lambda: not value, str: lambda: f"{value}x", dict: lambda: {"x": 1}, list: lambda: [*value, "x"]}
    return kinds.get(type(value), lambda: (value or 0) + 1)()


@pytest.mark.parametrize("name", [name for name in Apnet2AudioConfig().to_dict() if name not in ANALYSIS])
def test_audio_settings_without_effect_are_refused(name):
    default = getattr(Apnet2AudioConfig(), name)
    with pytest.raises(ConfigError, match=rf"audio\.{name}: .*, expected {re.escape(repr(default))}"):
        Apnet2Config(audio=Apnet2AudioConfig(**{name: another(default)}))


@pytest.mark.parametrize("name", UNUSED)
def test_settings_without_effect_are_refused(name):
    default = getattr(Apnet2Config(), name)
    with pytest.raises(ConfigError, match=rf"\A{name}: .*, expected {re.escape(repr(default))}, as it has no effect"):
        Apnet2Config(**{name: another(default)})


def test_the_target_is_a_loss_that_is_computed():
    weights = {**Apnet2Config().loss_weights, "multi_resolution_stft": 1.0}
    Apnet2Config(loss_weights=weights, target_loss="loss_multi_resolution_stft")  # see above for one that is not


@pytest.mark.parametrize(
    ("settings", "n_inputs"),
    [
        ({}, 80),
        ({"input_features": "latent"}, 192),
        ({"input_features": "latent", "latent_channels": 96, "speaker_channels": 256}, 352),
    ],
)
def test_the_input_has_its_channels(settings, n_inputs):
    assert Apnet2Config(**settings).n_inputs == n_inputs


def test_a_file_brings_back_the_same_configuration(tmp_path):
    config = Apnet2Config(phase=PredictorConfig(blocks=3), lr_gen=0.001)
    config.audio.mel_fmax = None
    config.save_json(tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json")
    assert type(loaded) is Apnet2Config
    assert loaded.to_dict() == config.to_dict()


def test_names_in_files(tmp_path, caplog):
    """A name that means nothing is taken for a typing error."""
    settings = Apnet2Config().to_dict()
    settings |= {"sequence_length": 4096, "restore_path": "written by the Trainer"}
    settings["audio"]["hopp_length"] = 512
    (tmp_path / "config.json").write_text(json.dumps(settings))
    load_config(tmp_path / "config.json")
    assert caplog.messages == [
        "sequence_length: no setting of APNet2, and without effect",
        "audio.hopp_length: no setting of APNet2, and without effect",
    ]


def test_command_line_overrides_are_checked():
    config = Apnet2Config()
    config.parse_known_args(["--coqpit.phase.blocks", "2"], relaxed_parser=True)
    assert config.phase.blocks == 2
    with pytest.raises(ConfigError, match="phase.blocks: 0"):
        config.parse_known_args(["--coqpit.phase.blocks", "0"], relaxed_parser=True)


@pytest.mark.parametrize(
    ("metrics", "arguments", "expected"),
    [
        ([], ["--coqpit.batch_size", "2"], []),
        ([], ["--coqpit.eval_metrics.0", "stoi"], ["stoi"]),
        (["pesq"], ["--coqpit.eval_metrics.0", "stoi"], ["stoi"]),
        (["pesq", "stoi"], ["--coqpit.batch_size", "2"], ["pesq", "stoi"]),
    ],
)
def test_command_line_overrides_beside_lists_that_are_empty(metrics, arguments, expected):
    config = Apnet2Config(eval_metrics=metrics, mpd_periods=[2])
    assert config.parse_known_args(arguments, relaxed_parser=True) == []
    assert (config.eval_metrics, config.mpd_periods) == (expected, [2])
    assert config.batch_size == (2 if "2" in arguments else 16)


def test_numbers_of_numpy_become_plain():
    settings = {
        "batch_size": np.int64(2),
        "lr_gen": np.float64(2e-4),
        "lr_disc": np.float32(0.5),
        "mixed_precision": np.bool_(True),
        "grad_clip": [np.float32(1), 2.0],
        "lr_scheduler_gen_params": {"gamma": np.float64(0.5)},
        "audio": Apnet2AudioConfig(num_mels=np.int32(40)),
        "phase": PredictorConfig(blocks=np.int8(2)),
    }
    config = Apnet2Config(**settings).to_dict()
    assert not [leaf for leaf in tree_leaves(config) if isinstance(leaf, np.generic)]
    assert (config["batch_size"], config["lr_disc"], config["mixed_precision"]) == (2, 0.5, True)
    assert config["grad_clip"] == [1.0, 2.0] and config["phase"]["blocks"] == 2
    json.dumps(config)
