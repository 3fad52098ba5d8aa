"""Small VITS models with random weights, and vocoders that speak their latents."""

from pathlib import Path

import acoustic_models
import tiny
import torch
from torch import nn
from TTS.tts.models.vits import Vits

from apnet2_tts_plugin.model import Apnet2

CHANNELS, SPEAKER_CHANNELS = 32, 16
SPEAKERS = ["anna", "ben"]
SAMPLE_RATE, HOP = 22050, 256


def make_vits(seed: int = 5, speakers: list[str] | None = None, **args) -> Vits:
    """A VITS that needs no phonemizer, gives every token four frames, and always says the same in the same way."""
    if speakers:
        args |= dict(use_speaker_embedding=True, speaker_embedding_channels=SPEAKER_CHANNELS)
    settings = acoustic_models.text_settings() | {"speakers": speakers or []}
    config = acoustic_models.vits_config(model_args=args, **settings)
    config.audio.do_trim_silence = False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Vits(config).eval()
        acoustic_models.MODELS["vits"].prepare(model)
        for layer in model.flow.flows:  # which are the identity at first
            nn.init.normal_(layer.post.weight, std=0.1)
    return model


def save_vits(model: Vits, folder: Path) -> Path:
    """Write the model as the Trainer does, its speakers' file included."""
    folder.mkdir(parents=True)
    if model.speaker_manager is not None:
        model.speaker_manager.save_ids_to_file(folder / "speakers.pth")
        model.config.model_args.speakers_file = model.config.speakers_file = str(folder / "speakers.pth")
    return acoustic_models.save(model, model.config, folder)


def make_vocoder(**changes) -> Apnet2:
    """A tiny vocoder of latents, whose GRN pools over time as a trained one's does."""
    return tiny.model(6, pools=True, input_features="latent", latent_channels=CHANNELS, **changes)
