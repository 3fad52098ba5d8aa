"""An APNet2 so small that tests can make one for each test, also as files with official names."""

import json
from pathlib import Path

import golden
import torch
from torch import Tensor, nn

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.convnext import GlobalResponseNorm
from apnet2_tts_plugin.network.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.weights import checkpoints
from apnet2_tts_plugin.weights.official import rename_official


def config(**changes) -> Apnet2Config:
    """The configuration; sizes alone differ from the default, and what `changes` names."""
    sizes = dict(channels=16, hidden_channels=32, blocks=1)
    amplitude = dict(channels=513) if changes.get("amplitude_start") == "pseudo_inverse" else {}
    defaults = dict(
        amplitude=PredictorConfig(**sizes | amplitude),
        phase=PredictorConfig(**sizes),
        mpd_channels=[4, 4],
        mrd_channels=4,
    )
    return Apnet2Config(**defaults | changes)


def freev_config() -> Apnet2Config:
    """The configuration with FreeV's amplitude predictor, whose channels are not free to choose."""
    return config(amplitude_start="pseudo_inverse")


def model(seed: int = 0, pools: bool = False, **changes) -> Apnet2:
    """A model with the same random weights at each call, without touching the global generator.

    Args:
        seed: Of the weights.
        pools: Whether GRN pools over time, as it does in a trained model; at first it is the identity.
        changes: For `config`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Apnet2(config(**changes))
        for module in made.modules():
            if pools and isinstance(module, GlobalResponseNorm):
                nn.init.normal_(module.gamma)
    return made.eval()


def half_voiced(network: Apnet2, mel: Tensor) -> Apnet2:
    """The model, untrained and with phase_start "pitch", but half of this mel's frames are voiced, not all or none."""
    pitch = network.generator.pitch
    with torch.no_grad():
        pitch.output_conv.bias[-1] -= pitch(mel)[1].median()
        assert 0.2 < pitch.decode(*pitch(mel)).voiced.mean() < 0.8
    return network


def generator(loudness: float = 0.0) -> Generator:
    """The generator of `model()`, amplified by exp(`loudness`)."""
    network = model().generator
    nn.init.constant_(network.amplitude.output_conv.bias, loudness)
    return network


def save(folder: Path, loudness: float = 0.0) -> Path:
    """Write the model to `folder`, as it is used."""
    checkpoints.save_config(config(), folder)
    checkpoints.save_weights(generator(loudness), folder)
    return folder


def official_generator() -> dict[str, dict[str, Tensor]]:
    """What an official `g_XXXXXXXX` of these sizes would hold."""
    return {"generator": _with_official_names("generator", generator())}


def official_freev() -> dict[str, dict[str, Tensor]]:
    """What FreeV's `g_XXXXXXXX` of these sizes would hold, with a norm that it does not use."""
    state = _with_official_names("generator", Generator(freev_config()), "freev_shapes.json")
    return {"generator": {**state, "norm2.weight": torch.zeros(16)}}


def official_discriminators(sizes: Apnet2Config | None = None) -> dict[str, dict[str, Tensor]]:
    """What an official `do_XXXXXXXX` would hold; by default of the official sizes, as it cannot tell them."""
    sizes = sizes or Apnet2Config()
    mpd = multi_period(sizes.mpd_periods, sizes.mpd_channels)
    mrd = multi_resolution(sizes.mrd_resolutions, sizes.mrd_channels)
    return {"mpd": _with_official_names("mpd", mpd), "mrd": _with_official_names("mrd", mrd), "steps": 7, "epoch": 1}


def _with_official_names(name: str, network: nn.Module, shapes: str = "official_shapes.json") -> dict[str, Tensor]:
    official = json.loads((golden.DATA / shapes).read_text())
    official = official.get(name, official)  # FreeV's are those of the generator alone
    ours = rename_official(name, dict(zip(official, official, strict=True)))
    state = network.state_dict()
    return {official: state[ours] for ours, official in ours.items() if ours in state}
