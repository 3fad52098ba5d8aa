"""The configuration: documented defaults, refused nonsense, files."""

import ast
import inspect
import re

import pytest
from TTS.config import load_config
from TTS.vocoder.configs.shared_configs import BaseVocoderConfig

from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config, PredictorConfig


def documented_defaults(cls) -> dict[str, str]:
    """Field name to the text after "Defaults to", as the class's docstring has them."""
    args = inspect.getdoc(cls).split("Args:\n")[1]
    fields = re.findall(r"^    (\w+) \([^)]*\): (.*?)(?=^    \w+ \(|\Z)", args, re.MULTILINE | re.DOTALL)
    return {name: re.sub(r"\s+", " ", text).split("Defaults to ")[1].rstrip(". ") for name, text in fields}


@pytest.mark.parametrize("cls", [Apnet2Config, Apnet2AudioConfig, PredictorConfig])
def test_documented_defaults_are_the_defaults(cls):
    documented = documented_defaults(cls)
    own_fields = cls.__dict__["__annotations__"]
    assert documented.keys() == own_fields.keys()
    for name, text in documented.items():
        default = getattr(cls(), name)
        if text.startswith("`"):
            assert default == {"PredictorConfig": PredictorConfig, "Apnet2AudioConfig": Apnet2AudioConfig}[text[1:-3]]()
        else:
            assert default == ast.literal_eval(text), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 8000}, r"seq_len: 8000, expected a multiple of audio.hop_length \(256\)"),
        ({"seq_len": 512}, r"seq_len: 512, expected .* above half the FFT size"),
        ({"audio": {"win_length": 2048}}, r"audio.win_length: 2048, expected .* at most audio.fft_size \(1024\)"),
        ({"audio": {"hop_length": 1024}}, r"audio.win_length: 1024, expected more than audio.hop_length \(1024\)"),
        ({"audio": {"fft_size": 1023}}, r"audio.fft_size: 1023, expected an even number"),
        ({"audio": {"mel_fmax": 12000.0}}, r"audio.mel_fmax: 12000.0, expected .* at most half the sample rate"),
        ({"audio": {"mel_fmin": 9000.0}}, r"audio.mel_fmax: 8000.0, expected above audio.mel_fmin \(9000.0\)"),
        ({"audio": {"num_mels": 0}}, r"audio.num_mels: 0, expected at least 1"),
        ({"audio": {"signal_norm": True}}, r"audio.signal_norm: True, expected False"),
        ({"audio": {"log_func": "np.log10"}}, r"audio.log_func: 'np.log10', expected 'np.log'"),
        ({"audio": {"preemphasis": 0.97}}, r"audio.preemphasis: 0.97, expected 0"),
        ({"phase": {"kernel_size": 6}}, r"phase.kernel_size: 6, expected an odd number"),
        ({"amplitude": {"blocks": 0}}, r"amplitude.blocks: 0, expected at least 1"),
        ({"amplitude_start": "noise"}, r"amplitude_start: 'noise', expected .*'pseudo_inverse'"),
        ({"amplitude_start": "pseudo_inverse"}, r"amplitude.channels: 512, expected 513"),
        ({"input": "noise"}, r"input: 'noise', expected \('mel', 'latent'\)"),
        (
            {"input": "latent", "amplitude_start": "pseudo_inverse", "amplitude": {"channels": 513}},
            r"amplitude_start: 'pseudo_inverse', expected 'mel' with input 'latent'",
        ),
        ({"latent_channels": 0}, r"latent_channels: 0, expected at least 1"),
        ({"speaker_channels": -1}, r"speaker_channels: -1, expected 0 or more"),
        ({"mpd_periods": [2, 0]}, r"mpd_periods: \[2, 0\], expected"),
        ({"mpd_channels": []}, r"mpd_channels: \[\], expected"),
        ({"batch_size": 0}, r"batch_size: 0, expected at least 1"),
        ({"eval_split_size": 0}, r"eval_split_size: 0, expected at least 1"),
        ({"mrd_resolutions": [[512, 600, 512]]}, r"mrd_resolutions: \[512, 600, 512\], expected"),
        ({"mrd_resolutions": [[32768, 600, 1024]]}, r"mrd_resolutions: .* below twice seq_len \(8192\)"),
        ({"loss_weights": {"mel": 45.0}}, r"loss_weights: \['mel'\], expected exactly the terms"),
        (
            {"discriminator_loss_weights": {"mpd": -1.0, "mrd": 0.1}},
            r"discriminator_loss_weights.mpd: -1.0, expected 0",
        ),
        ({"lr_gen": 0.0}, r"lr_gen: 0.0, expected a number above 0"),
        ({"grad_clip": [5.0]}, r"grad_clip: \[5.0\], expected"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Apnet2Config().from_dict(change_default(change))
    with pytest.raises(ValueError, match=message):
        Apnet2Config(**{name: nested(name, value) for name, value in change.items()})


def change_default(change: dict) -> dict:
    """The default configuration as a dictionary, with the nested `change`."""
    settings = Apnet2Config().to_dict()
    for name, value in change.items():
        partial = isinstance(value, dict) and not name.endswith("loss_weights")
        settings[name] = settings[name] | value if partial else value
    return settings


def nested(name: str, value):
    classes = {"audio": Apnet2AudioConfig, "amplitude": PredictorConfig, "phase": PredictorConfig}
    return classes[name](**value) if name in classes else value


@pytest.mark.parametrize(
    ("settings", "n_inputs"),
    [
        ({}, 80),
        ({"speaker_channels": 256}, 80),
        ({"input": "latent"}, 192),
        ({"input": "latent", "latent_channels": 96, "speaker_channels": 256}, 352),
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


def test_command_line_overrides_are_checked():
    config = Apnet2Config()
    config.parse_known_args(["--coqpit.phase.blocks", "2"], relaxed_parser=True)
    assert config.phase.blocks == 2
    with pytest.raises(ValueError, match="phase.blocks: 0"):
        config.parse_known_args(["--coqpit.phase.blocks", "0"], relaxed_parser=True)


def test_coqui_does_not_take_it_for_one_of_its_gans():
    assert issubclass(Apnet2Config, BaseVocoderConfig)
    assert not {"generator_model", "discriminator_model"} <= set(Apnet2Config().to_dict())
