"""The latents of recordings, as the posterior encoder of a trained VITS has them, for a vocoder to learn from."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from TTS.config import load_config
from TTS.tts.configs.vits_config import VitsConfig
from TTS.tts.models.vits import Vits
from TTS.utils.audio.torch_transforms import wav_to_spec

from apnet2_tts_plugin.audio import read_audio
from apnet2_tts_plugin.errors import FinetuningError, one_line
from apnet2_tts_plugin.pairing.vits import latent_hop, speaker_channels, vocoder_latent
from apnet2_tts_plugin.training.corpus import AudioFile
from apnet2_tts_plugin.training.features import skip_unusable, write_features
from apnet2_tts_plugin.training.source import note_source, weights_digest
from apnet2_tts_plugin.weights.checkpoints import read_tensors
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights


@torch.inference_mode()
def encode(
    vits: Vits, waveform: np.ndarray, speaker: Tensor | None = None, generator: torch.Generator | None = None
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
        FinetuningError: if the embedding is missing or has the wrong size.
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


def _check_speaker(vits: Vits, speaker: Tensor | None) -> None:
    size = vits.embedded_speaker_dim
    found = None if speaker is None else tuple(speaker.shape)
    expected = (1, size, 1) if size else None
    if found != expected:
        raise FinetuningError(f"speaker: embedding of shape {found}, expected {expected} for this VITS")


def _spectrogram(vits: Vits, waveform: Tensor) -> Tensor:
    """The linear spectrogram (1, n_bins, T) of a waveform (N,) as the VITS has it in its training."""
    audio, rate = vits.config.audio, vits.args.encoder_sample_rate
    if rate:
        # by what coqui-tts resamples with when it trains the encoder
        waveform = torchaudio.functional.resample(waveform, audio.sample_rate, rate)
    shortest = max(audio.hop_length, (audio.fft_size - audio.hop_length) // 2 + 1)  # the edges are reflected
    waveform = F.pad(waveform, (0, max(shortest - len(waveform), 0)))[None].to(vits.device)
    return wav_to_spec(waveform, audio.fft_size, audio.hop_length, audio.win_length, center=False)


def write_latents(vits: Vits, files: list[AudioFile], data_path: str | Path, feature_path: str | Path) -> None:
    """Write the latents of a corpus for a vocoder to learn from (config `feature_path`), as `write_features` does.

    What is written depends on the VITS and the file alone: each has noise of its own, and always the same.

    Args:
        vits: A VITS of one speaker.
        files: Audio files below `data_path`, as `training.corpus.usable` gives them.
        data_path: Folder with the audio.
        feature_path: Folder for the latents; made if need be.

    Raises:
        FinetuningError: if a file has another sample rate than the VITS, or, when all others are written, files have
            no latent: training would miss it.
        DataError: if the folder has latents of another VITS.
        OSError: if a file cannot be written.
    """
    rate = vits.config.audio.sample_rate
    for file in files:
        if file.sample_rate != rate:
            raise FinetuningError(
                f"{file.path}: {file.sample_rate} Hz, expected the {rate} Hz of the VITS; resample it"
            )
    note_source(Path(feature_path), _source(vits), "latents")

    def latent(path: Path) -> np.ndarray:
        seed = zlib.crc32(path.relative_to(data_path).as_posix().encode())
        return encode(vits, read_audio(path, rate), generator=torch.Generator().manual_seed(seed))

    def compute(paths: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
        for path in paths:
            if (features := skip_unusable(path, latent, path)) is not None:
                yield path, features

    left_out = write_features([file.path for file in files], Path(data_path), Path(feature_path), compute)
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        names = ", ".join(map(str, left_out[:3]))
        raise FinetuningError(f"{names}{more}: no latent, for the reason in the log; mend or remove them")


def _source(vits: Vits) -> dict[str, Any]:
    """What the latents of a VITS depend on."""
    audio, args = vits.config.audio, vits.args
    analysis = [audio.sample_rate, audio.fft_size, audio.hop_length, audio.win_length]
    settings = [*analysis, latent_hop(vits.config), args.encoder_sample_rate, args.interpolate_z]
    return {"settings": settings, "posterior_encoder": weights_digest(vits.posterior_encoder)}


def load_encoder(path: str | os.PathLike[Any]) -> Vits:
    """A trained VITS of one speaker, of which only the posterior encoder has its weights: all that `encode` needs.

    Neither its characters nor a phonemizer are needed, nor the decoder that it was trained with.

    Args:
        path: Folder with `config.json` and a checkpoint, as `weights.find` takes it; or the checkpoint
            itself, with `config.json` beside it.

    Raises:
        FinetuningError: if there is no VITS, or one of several speakers.
        CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    checkpoint = find_weights(path, checkpoint_first=True)
    config = read_vits_config(checkpoint.with_name(CONFIG_NAME))
    config.use_phonemes = False
    args = config.model_args
    args.init_discriminator = args.use_language_embedding = args.use_speaker_encoder_as_loss = False
    args.speaker_encoder_model_path = ""
    state = read_tensors(checkpoint).get("model")
    if not isinstance(state, dict):
        raise FinetuningError(f"{checkpoint}: no 'model' in it, expected a checkpoint of coqui's Trainer")
    vits = Vits(config).eval()
    prefix = "posterior_encoder."
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        vits.posterior_encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise FinetuningError(f"{checkpoint}: no posterior encoder of these sizes in it ({one_line(error)})") from error
    return vits


def read_vits_config(path: Path) -> VitsConfig:
    """The configuration of a VITS of one speaker.

    Raises:
        FinetuningError: if it is none.
    """
    try:
        config = load_config(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FinetuningError(f"{path}: not a usable configuration ({one_line(error)})") from error
    if config.model != "vits":
        raise FinetuningError(f"{path}: a configuration of {config.model!r}, expected one of a VITS (model 'vits')")
    if speaker_channels(config):
        raise FinetuningError(
            f"{path}: a VITS of several speakers, expected one: who speaks in which file is not known here; "
            "`finetuning.latents.encode` takes a speaker"
        )
    return config
