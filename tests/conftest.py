"""Small models with random weights: two acoustic ones and an APNet2, in a coqui data folder of the tests' own."""

import math
from pathlib import Path

import pytest
import torch

FRAMES_PER_TOKEN = 4  # of both acoustic models


@pytest.fixture(scope="session", autouse=True)
def tts_home(tmp_path_factory):
    """The folder in which coqui keeps its models (`TTS_HOME`), empty at first, for all tests and their subprocesses."""
    home = tmp_path_factory.mktemp("tts_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_HOME", str(home))
        yield home / "tts"


@pytest.fixture(scope="session")
def glow_tts(tts_home):
    """Folder of a GlowTTS with coqui's default mel (log10, normalised), known as `tts_models/en/ljspeech/glow-tts`."""
    from TTS.tts.configs.glow_tts_config import GlowTTSConfig
    from TTS.tts.models.glow_tts import GlowTTS

    torch.manual_seed(1)
    config = GlowTTSConfig(
        hidden_channels_enc=32,
        hidden_channels_dec=32,
        hidden_channels_dp=32,
        num_flow_blocks_dec=2,
        encoder_params=dict(kernel_size=3, dropout_p=0.1, num_layers=1, num_heads=2, hidden_channels_ffn=32),
        **_text_settings(),
    )
    config.audio.do_trim_silence = False
    model = GlowTTS(config)
    _set_duration(model.encoder.duration_predictor.proj, math.log(1 + FRAMES_PER_TOKEN - 0.5))
    return _save(model, config, tts_home / "tts_models--en--ljspeech--glow-tts")


@pytest.fixture(scope="session")
def vits(tts_home):
    """Folder of a VITS, which makes waveforms, known as `tts_models/en/ljspeech/vits`."""
    from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
    from TTS.tts.models.vits import Vits

    torch.manual_seed(2)
    args = VitsArgs(
        hidden_channels=32,
        hidden_channels_ffn_text_encoder=32,
        num_layers_text_encoder=1,
        num_layers_posterior_encoder=1,
        num_layers_flow=1,
        upsample_initial_channel_decoder=32,
        use_sdp=False,
        init_discriminator=False,
    )
    config = VitsConfig(model_args=args, **_text_settings())
    config.audio.do_trim_silence = False
    model = Vits(config)
    _set_duration(model.duration_predictor.proj, math.log(FRAMES_PER_TOKEN - 0.5))
    return _save(model, config, tts_home / "tts_models--en--ljspeech--vits")


@pytest.fixture(scope="session")
def wavegan(tts_home):
    """Folder of one of coqui's own vocoders, under the name of the one that glow-tts has by default."""
    from TTS.vocoder.configs import ParallelWaveganConfig
    from TTS.vocoder.models.gan import GAN

    torch.manual_seed(4)
    config = ParallelWaveganConfig()
    config.generator_model_params |= dict(num_res_blocks=3, stacks=1)
    config.discriminator_model_params |= dict(num_layers=3)
    return _save(GAN(config), config, tts_home / "vocoder_models--en--ljspeech--multiband-melgan")


@pytest.fixture(scope="session")
def vocoder(tmp_path_factory):
    """Folder of a tiny APNet2 as the Trainer leaves it: `config.json` and a `.pth` file."""
    model = _tiny_apnet2()
    return _save(model, model.config, tmp_path_factory.mktemp("vocoder") / "tiny")


@pytest.fixture(scope="session")
def installed_vocoder(tts_home, tmp_path_factory):
    """The tiny APNet2 with its weights in `model.safetensors`, installed under the name `apnet2`."""
    from apnet2_tts_plugin import checkpoints, store

    model = _tiny_apnet2()
    folder = tmp_path_factory.mktemp("exported")
    checkpoints.save_weights(model.generator, folder)
    model.config.save_json(folder / "config.json")
    return store.install(folder, "apnet2")


def _tiny_apnet2() -> torch.nn.Module:
    from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
    from apnet2_tts_plugin.model import Apnet2

    torch.manual_seed(3)
    sizes = dict(channels=16, hidden_channels=32, blocks=1)
    config = Apnet2Config(
        amplitude=PredictorConfig(**sizes),
        phase=PredictorConfig(**sizes),
        mpd_channels=[4, 4],
        mrd_channels=4,
    )
    return Apnet2(config)


def _text_settings() -> dict:
    """Settings for text without a phonemizer: its letters are the model's tokens."""
    from TTS.tts.configs.shared_configs import CharactersConfig

    characters = CharactersConfig(
        characters_class="TTS.tts.utils.text.characters.Graphemes",
        pad="_",
        eos="~",
        bos="^",
        blank="$",
        characters="abcdefghijklmnopqrstuvwxyz",
        punctuations=" ,.!?",
    )
    return dict(
        characters=characters,
        use_phonemes=False,
        text_cleaner="basic_cleaners",
        test_sentences=[],
    )


def _set_duration(projection: torch.nn.Module, log_duration: float) -> None:
    """Make a duration predictor give every token the same duration."""
    torch.nn.init.zeros_(projection.weight)
    torch.nn.init.constant_(projection.bias, log_duration)


def _save(model: torch.nn.Module, config, folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, folder / "model_file.pth")
    config.save_json(folder / "config.json")
    return folder
