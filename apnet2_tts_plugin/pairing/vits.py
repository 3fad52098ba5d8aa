"""APNet2 as the decoder of a VITS (arXiv 2106.06103): from the latent to the waveform, without a mel in between.

Frame i of a VITS is centred at sample (i + 1/2) * hop_length, and T frames belong to T * hop_length samples. Those of
APNet2 are centred at i * hop_length, and T frames belong to (T - 1) * hop_length samples. So the last frame of a latent
is taken twice, in training as in use; the half hop between the two is a shift that the convolutions learn.
"""

import copy
import math

import torch
from torch import Tensor, nn
from TTS.config import get_from_config_or_model_args
from TTS.tts.configs.vits_config import VitsConfig

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import PairingError


def vocoder_latent(latent: Tensor, speaker: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """The vocoder's input: the latent with its last frame twice, and below it the speaker embedding in every frame.

    Args:
        latent: Latent (B, C, T) as the VITS gives it to its own decoder.
        speaker: Speaker embedding (B, S, 1) as the VITS gives it to its own decoder; None if it has one speaker.
        lengths: True number of frames of each item, (B,), 1 to T; None when all have T.

    Returns:
        Input (B, C + S, T + 1), of which each item has `lengths` + 1 frames.
    """
    n_items, n_channels, n_frames = latent.shape
    if lengths is None:
        lengths = torch.full((n_items,), n_frames, device=latent.device)
    frames = torch.arange(n_frames + 1, device=latent.device).clamp(max=lengths[:, None] - 1)
    extended = latent.gather(2, frames[:, None].expand(-1, n_channels, -1))
    if speaker is None:
        return extended
    return torch.cat([extended, speaker.expand(n_items, -1, n_frames + 1)], dim=1)


class LatentDecoder(nn.Module):
    """A vocoder of latents in the place of `Vits.waveform_decoder`; to vocode with, not to train.

    Frames that are zero in all channels at the end of an item are the padding that the VITS has masked: in a batch they
    are left out, so that each item sounds as it would alone.

    Args:
        vocoder: The vocoder, which stays its owner's: moving, converting or saving a VITS does not touch it.

    Shape:
        z (B, C, T) and g (B, S, 1) or None, on any device, to waveform (B, 1, T * hop_length) in float32 on that of z.

    Raises:
        PairingError: if the waveform has NaN or infinite samples.
    """

    def __init__(self, vocoder: nn.Module):
        super().__init__()
        self.__dict__["vocoder"] = vocoder  # an attribute, no submodule

    def forward(self, z: Tensor, g: Tensor | None = None) -> Tensor:
        lengths = _lengths(z) if len(z) > 1 else None
        latent = vocoder_latent(z, g, lengths).to(self.vocoder.device)
        return finite(self.vocoder.inference(latent, None if lengths is None else lengths + 1)).to(z.device)


def finite(waveform: Tensor) -> Tensor:
    """The vocoder's waveform as it is.

    Raises:
        PairingError: if it has NaN or infinite samples.
    """
    if not waveform.isfinite().all():
        raise PairingError("the vocoder gave NaN or infinite samples: its input is none that it was trained on")
    return waveform


def _lengths(latent: Tensor) -> Tensor:
    """Number of frames (B,) of each item of a padded batch (B, C, T)."""
    from_the_end = latent.ne(0).any(dim=1).flip(1)
    return latent.shape[2] - from_the_end.int().argmax(dim=1)


def with_decoder(vits: nn.Module, decoder: nn.Module) -> nn.Module:
    """`vits` with another decoder of waveforms: a second object that shares all other modules with the first.

    The first is not changed, so that threads can use both, and nothing has to be put back after a failure.
    """
    other = copy.copy(vits)
    other._modules = {**vits._modules, "waveform_decoder": decoder}
    return other


def latent_hop(config: VitsConfig) -> int:
    """Samples that the decoder of a VITS makes of one frame of its latent."""
    return math.prod(config.model_args.upsample_rates_decoder)


def speaker_channels(config: VitsConfig) -> int:
    """Size of the speaker embedding that the decoder of a VITS gets; 0 for one speaker."""
    if get_from_config_or_model_args(config, "use_d_vector_file"):
        return config.model_args.d_vector_dim
    several = get_from_config_or_model_args(config, "use_speaker_embedding")
    return config.model_args.speaker_embedding_channels if several else 0


def mismatch(vits_config: VitsConfig, vocoder_config: Apnet2Config) -> list[str]:
    """Why the vocoder cannot be the decoder of the VITS: a line for each setting that differs, with both values."""
    audio = vocoder_config.audio
    settings = (
        ("latent_channels", vocoder_config.latent_channels, vits_config.model_args.hidden_channels, "latent channels"),
        ("speaker_channels", vocoder_config.speaker_channels, speaker_channels(vits_config), "speaker channels"),
        ("audio.sample_rate", audio.sample_rate, vits_config.audio.sample_rate, "Hz"),
        ("audio.hop_length", audio.hop_length, latent_hop(vits_config), "samples to a frame"),
    )
    return [
        f"{name}: {found}, expected the {needed} {unit} of the VITS"
        for name, found, needed, unit in settings
        if found != needed
    ]
