"""Small VITS models with random weights, and vocoders that speak their latents; fixtures for those who import them."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from acoustic_models import FRAMES_PER_TOKEN, text_settings
from torch import nn
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models.vits import Vits

from apnet2_tts_plugin import checkpoints, store
from apnet2_tts_plugin.generator import GlobalResponseNorm
from apnet2_tts_plugin.model import Apnet2

CHANNELS, SPEAKER_CHANNELS = 32, 16
SPEAKERS = ["anna", "ben"]
SAMPLE_RATE, HOP = 22050, 256


def make_vits(seed: int = 5, speakers: list[str] | None = None, **args) -> Vits:
    """A VITS that needs no phonemizer and gives every token four frames."""
    if speakers:
        args |= dict(use_speaker_embedding=True, speaker_embedding_channels=SPEAKER_CHANNELS)
    sizes = dict(
        hidden_channels=CHANNELS,
        hidden_channels_ffn_text_encoder=32,
        num_layers_text_encoder=1,
        num_layers_posterior_encoder=2,
        num_layers_flow=1,
        upsample_initial_channel_decoder=32,
        use_sdp=False,
        init_discriminator=False,
    )
    config = VitsConfig(
        model_args=VitsArgs(**sizes | args),
        speakers=speakers or [],
        **text_settings(),
    )
    config.audio.do_trim_silence = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Vits(config).eval()
        for layer in model.flow.flows:  # which are the identity at first
            nn.init.normal_(layer.post.weight, std=0.1)
    nn.init.zeros_(model.duration_predictor.proj.weight)
    nn.init.constant_(model.duration_predictor.proj.bias, math.log(FRAMES_PER_TOKEN - 0.5))
    return model


def save_vits(model: Vits, folder: Path) -> Path:
    """Write the model as the Trainer does, its speakers' file included."""
    folder.mkdir(parents=True)
    if model.speaker_manager is not None:
        model.speaker_manager.save_ids_to_file(folder / "speakers.pth")
        model.config.model_args.speakers_file = model.config.speakers_file = str(folder / "speakers.pth")
    torch.save({"model": model.state_dict(), "config": model.config.to_dict()}, folder / "model_file.pth")
    model.config.save_json(folder / "config.json")
    return folder


def make_vocoder(**changes) -> Apnet2:
    """A tiny vocoder of latents, whose GRN pools over time as a trained one's does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = Apnet2(tiny.config(input="latent", latent_channels=CHANNELS, **changes)).eval()
        for module in model.modules():
            if isinstance(module, GlobalResponseNorm):
                nn.init.normal_(module.gamma)
    return model


def save_vocoder(folder: Path, **changes) -> Path:
    """Write a vocoder as it is used."""
    folder.mkdir(parents=True)
    model = make_vocoder(**changes)
    checkpoints.save_config(model.config, folder)
    checkpoints.save_weights(model.generator, folder)
    return folder


@pytest.fixture
def vits_model() -> Vits:
    """A VITS of one speaker."""
    return make_vits()


@pytest.fixture(scope="session")
def multi_speaker_vits(tts_home) -> Path:
    """Folder of a VITS of two speakers, known as `tts_models/en/vctk/vits`."""
    return save_vits(make_vits(speakers=SPEAKERS), tts_home / "tts_models--en--vctk--vits")


@pytest.fixture(scope="session")
def latent_vocoder(tts_home, tmp_path_factory) -> Path:
    """Folder of a vocoder for VITS models of one speaker, installed under the name `apnet2-latent`."""
    return store.install(save_vocoder(tmp_path_factory.mktemp("latent") / "model"), "apnet2-latent")


@pytest.fixture(scope="session")
def speaker_latent_vocoder(tts_home, tmp_path_factory) -> Path:
    """Folder of a vocoder for VITS models of several speakers, installed under the name `apnet2-speakers`."""
    folder = tmp_path_factory.mktemp("speakers") / "model"
    return store.install(save_vocoder(folder, speaker_channels=SPEAKER_CHANNELS), "apnet2-speakers")
