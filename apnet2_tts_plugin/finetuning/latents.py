"""APNet2 as the decoder of a VITS (arXiv 2106.06103): from the latent to the waveform, without a mel in between.

Frame i of a VITS is centred at sample (i + 1/2) * hop_length, and T frames belong to T * hop_length samples. Ours are
centred at i * hop_length, and T frames belong to (T - 1) * hop_length. So the last frame of a latent is taken twice, in
training as in use; the half hop between the two is a shift that the convolutions learn.
"""

import copy
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from TTS.config import get_from_config_or_model_args, load_config
from TTS.utils.audio.torch_transforms import wav_to_spec

from apnet2_tts_plugin.checkpoints import read_tensors, write_atomically
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.corpus import AudioFile
from apnet2_tts_plugin.data import read_audio
from apnet2_tts_plugin.features import find_checkpoint, write_features

if TYPE_CHECKING:
    from TTS.tts.configs.vits_config import VitsConfig
    from TTS.tts.models.vits import Vits

    from apnet2_tts_plugin.model import Apnet2


class LatentError(ValueError):
    """Latents that cannot be had, of this VITS or for these files; the message is one line."""


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
    """A vocoder of latents in the place of `Vits.waveform_decoder`; to speak with, not to train.

    Frames that are zero in all channels at the end of an item are the padding that the VITS has masked: in a batch they
    are left out, so that each item sounds as it would alone.

    Args:
        vocoder: The vocoder, which stays its owner's: moving, converting or saving a VITS does not touch it.

    Shape:
        z (B, C, T) and g (B, S, 1) or None, on any device, to waveform (B, 1, T * hop_length) in float32 on that of z.
    """

    def __init__(self, vocoder: "Apnet2"):
        super().__init__()
        self.__dict__["vocoder"] = vocoder  # an attribute, no submodule

    def forward(self, z: Tensor, g: Tensor | None = None) -> Tensor:
        lengths = _lengths(z) if len(z) > 1 else None
        latent = vocoder_latent(z, g, lengths).to(self.vocoder.device)
        return self.vocoder.inference(latent, None if lengths is None else lengths + 1).to(z.device)


def _lengths(latent: Tensor) -> Tensor:
    """Number of frames (B,) of each item of a padded batch (B, C, T)."""
    from_the_end = latent.ne(0).any(dim=1).flip(1)
    return latent.shape[2] - from_the_end.int().argmax(dim=1)


def with_decoder(vits: "Vits", decoder: nn.Module) -> "Vits":
    """`vits` with another decoder of waveforms: a second object that shares all other modules with the first.

    The first is not changed, so that threads can use both, and nothing has to be put back after a failure.
    """
    other = copy.copy(vits)
    other._modules = {**vits._modules, "waveform_decoder": decoder}
    return other


@torch.inference_mode()
def encode(
    vits: "Vits", waveform: np.ndarray, speaker: Tensor | None = None, generator: torch.Generator | None = None
) -> np.ndarray:
    """The latent of a recording, to train a vocoder with: a sample of the posterior encoder's distribution.

    A sample and not its mean, because a VITS decodes samples, in its training as in use: a decoder that had seen means
    alone would take the noise for speech.

    Args:
        vits: The VITS; its weights are left as they are.
        waveform: Recording (N,) at the sample rate of the waveforms that the VITS makes. Where it is too short for the
            analysis, silence follows.
        speaker: Speaker embedding (1, S, 1) of a VITS of several speakers.
        generator: Where the noise is drawn from, on the CPU; by default torch's global generator.

    Returns:
        Input of the vocoder (C + S, N // hop_length + 1) in float32.

    Raises:
        LatentError: if the embedding is missing or has the wrong size.
    """
    _check_speaker(vits, speaker)
    spectrogram = _spectrogram(vits, torch.as_tensor(waveform, dtype=torch.float32))
    lengths = torch.tensor([spectrogram.shape[2]], device=vits.device)
    _, mean, log_scale, _ = vits.posterior_encoder(spectrogram, lengths, g=speaker)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    latent = vits.upsampling_z(mean + noise * log_scale.exp())[0].reshape(1, mean.shape[1], -1)
    n_frames = len(waveform) // latent_hop(vits.config)
    # one frame for less than a hop, and where the encoder has another sample rate, its last frame for the rest
    frames = torch.arange(max(n_frames, 1), device=vits.device).clamp(max=latent.shape[2] - 1)
    return vocoder_latent(latent[:, :, frames], speaker)[0, :, : n_frames + 1].cpu().numpy()


def _check_speaker(vits: "Vits", speaker: Tensor | None) -> None:
    size = vits.embedded_speaker_dim
    found = None if speaker is None else tuple(speaker.shape)
    expected = (1, size, 1) if size else None
    if found != expected:
        raise LatentError(f"speaker: embedding of shape {found}, expected {expected} for this VITS")


def _spectrogram(vits: "Vits", waveform: Tensor) -> Tensor:
    """The linear spectrogram (1, n_bins, T) of a waveform (N,) as the VITS has it in its training."""
    audio, rate = vits.config.audio, vits.args.encoder_sample_rate
    if rate:
        waveform = torchaudio.functional.resample(waveform, audio.sample_rate, rate)
    shortest = max(audio.hop_length, (audio.fft_size - audio.hop_length) // 2 + 1)  # the edges are reflected
    waveform = F.pad(waveform, (0, max(shortest - len(waveform), 0)))[None].to(vits.device)
    return wav_to_spec(waveform, audio.fft_size, audio.hop_length, audio.win_length, center=False)


def latent_hop(config: "VitsConfig") -> int:
    """Samples that the decoder of a VITS makes of one frame of its latent."""
    return math.prod(config.model_args.upsample_rates_decoder)


def speaker_channels(config: "VitsConfig") -> int:
    """Size of the speaker embedding that the decoder of a VITS gets; 0 for one speaker."""
    if get_from_config_or_model_args(config, "use_d_vector_file"):
        return config.model_args.d_vector_dim
    several = get_from_config_or_model_args(config, "use_speaker_embedding")
    return config.model_args.speaker_embedding_channels if several else 0


def mismatch(vits_config: "VitsConfig", vocoder_config: Apnet2Config) -> list[str]:
    """Why the vocoder cannot be the decoder of the VITS: a line for each setting that differs, with both values."""
    audio = vocoder_config.audio
    settings = (
        ("latent_channels", vocoder_config.latent_channels, vits_config.model_args.hidden_channels, "latent channels"),
        ("speaker_channels", vocoder_config.speaker_channels, speaker_channels(vits_config), "speaker channels"),
        ("audio.sample_rate", audio.sample_rate, vits_config.audio.sample_rate, "Hz"),
        ("audio.hop_length", audio.hop_length, latent_hop(vits_config), "samples to a frame"),
    )
    return [
        f"{name}: {ours}, expected the {theirs} {unit} of the VITS"
        for name, ours, theirs, unit in settings
        if ours != theirs
    ]


def write_latents(vits: "Vits", files: list[AudioFile], data_path: str | Path, feature_path: str | Path) -> int:
    """Write the latents of a corpus for a vocoder to learn from (config `feature_path`); see `features.write_features`.

    What is written depends on the VITS and the file alone: each has noise of its own, and always the same.

    Args:
        vits: A VITS of one speaker.
        files: Audio files below `data_path`, as `corpus.usable` gives them.
        data_path: Folder with the audio.
        feature_path: Folder for the latents; made if need be.

    Returns:
        Number of files written; those that were there already do not count.

    Raises:
        LatentError: if a file has another sample rate than the VITS, the folder has latents of another VITS, or, when
            all others are written, files have no latent: training would miss it.
        OSError: if a file cannot be written.
    """
    rate = vits.config.audio.sample_rate
    for file in files:
        if file.sample_rate != rate:
            raise LatentError(f"{file.path}: {file.sample_rate} Hz, expected the {rate} Hz of the VITS; resample it")
    _claim(Path(feature_path), vits)

    def compute(path: Path) -> np.ndarray:
        seed = zlib.crc32(path.relative_to(data_path).as_posix().encode())
        return encode(vits, read_audio(path, rate), generator=torch.Generator().manual_seed(seed))

    paths = [file.path for file in files]
    n_written = write_features(paths, Path(data_path), Path(feature_path), compute)
    places = (Path(feature_path, path.relative_to(data_path).with_suffix(".npy")) for path in paths)
    missing = [str(path) for path, place in zip(paths, places, strict=True) if not place.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LatentError(f"{', '.join(missing[:3])}{more}: no latent, for the reason in the log; mend or remove them")
    return n_written


def _claim(folder: Path, vits: "Vits") -> None:
    """Note in `folder` which VITS its latents are of, or compare it with what is noted there."""
    audio, args = vits.config.audio, vits.args
    analysis = (audio.sample_rate, audio.fft_size, audio.hop_length, audio.win_length)
    settings = (*analysis, latent_hop(vits.config), args.encoder_sample_rate, args.interpolate_z)
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(vits.posterior_encoder.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    note, own = folder / "vits.sha256", digest.hexdigest()
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(note, lambda temporary: temporary.write_text(own, encoding="utf-8"))
    elif note.read_text(encoding="utf-8") != own:
        raise LatentError(f"{folder}: has latents of another VITS, expected those of this one; choose another folder")


def load_encoder(path: str | os.PathLike[Any]) -> "Vits":
    """A trained VITS of one speaker, of which only the posterior encoder has its weights: all that `encode` needs.

    Neither its characters nor a phonemizer are needed, nor the decoder that it was trained with.

    Args:
        path: Folder with `config.json` and a checkpoint, as `features.find_checkpoint` takes it; or the checkpoint
            itself, with `config.json` beside it.

    Raises:
        LatentError: if there is no VITS, or one of several speakers.
        CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    from TTS.tts.models.vits import Vits

    checkpoint = find_checkpoint(path)
    config = _read_config(checkpoint.with_name("config.json"))
    state = read_tensors(checkpoint).get("model")
    if not isinstance(state, dict):
        raise LatentError(f"{checkpoint}: no 'model' in it, expected a checkpoint of coqui's Trainer")
    vits = Vits(config).eval()
    prefix = "posterior_encoder."
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        vits.posterior_encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise LatentError(f"{checkpoint}: no posterior encoder of these sizes in it ({reason[:200]})") from error
    return vits


def _read_config(path: Path) -> "VitsConfig":
    try:
        config = load_config(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LatentError(f"{path}: not a usable configuration ({' '.join(str(error).split())})") from error
    if config.model != "vits":
        raise LatentError(f"{path}: a configuration of {config.model!r}, expected one of a VITS (model 'vits')")
    if speaker_channels(config):
        raise LatentError(
            f"{path}: a VITS of several speakers, expected one: who speaks in which file is not known here; "
            "`latents.encode` takes a speaker"
        )
    config.use_phonemes = False
    args = config.model_args
    args.init_discriminator = args.use_language_embedding = args.use_speaker_encoder_as_loss = False
    args.speaker_encoder_model_path = ""
    return config
