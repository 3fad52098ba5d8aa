"""Teacher forcing: what a trained acoustic model makes of recordings, frame beside frame, to fine-tune a vocoder on.

The model predicts each frame from the recording's earlier ones (Tacotron), or all of them from the text as the
recording is aligned with it (Glow-TTS, SpeedySpeech). So the mel has the recording's timing, and the model's mistakes.

What the model was trained on is the recording without the silence around it and at another volume, as its audio
settings say. That is the recording from here on.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from TTS.config import load_config
from TTS.tts.models import setup_model
from TTS.tts.models.base_tacotron import BaseTacotron
from TTS.tts.models.base_tts import BaseTTS
from TTS.tts.models.forward_tts import ForwardTTS
from TTS.tts.models.glow_tts import GlowTTS
from TTS.tts.utils.helpers import sequence_mask
from TTS.utils.audio import AudioProcessor
from TTS.utils.audio.numpy_transforms import rms_volume_norm

from apnet2_tts_plugin.audio import read_audio
from apnet2_tts_plugin.errors import DataError, FinetuningError, one_line
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights


@dataclass(frozen=True)
class Sample:
    """A recording, its text, and the name of its speaker; None where the acoustic model has one."""

    path: Path
    text: str
    speaker: str | None = None


@dataclass(frozen=True)
class Utterance:
    """A sample as the acoustic model takes it.

    Attributes:
        tokens: The text (N,), integers.
        waveform: The recording (n,) in float32 at the model's sample rate.
        mel: Its mel (T, n_mels) in the model's scale, T = n // hop_length + 1.
        speaker: The speaker's name.
    """

    tokens: Tensor
    waveform: np.ndarray
    mel: Tensor
    speaker: str | None


class Batch(NamedTuple):
    """Utterances, those with most tokens first, padded behind with zeros.

    `tokens` (B, N), `n_tokens` (B,), `mels` (B, T, n_mels), `n_frames` (B,), and the model's `aux_input` for speakers.
    """

    tokens: Tensor
    n_tokens: Tensor
    mels: Tensor
    n_frames: Tensor
    speakers: dict[str, Tensor | None]


def load_acoustic_model(path: str | os.PathLike, device: str = "cpu") -> BaseTTS:
    """Load a trained acoustic model of coqui's to predict with.

    Args:
        path: Folder with `config.json` and a checkpoint, `best_model.pth` or else the only one; or the checkpoint
            itself, with `config.json` beside it.
        device: Where to run it.

    Raises:
        CheckpointError: if there is no checkpoint.
        FinetuningError: if it cannot be loaded, or is none that can be forced.
    """
    checkpoint = find_weights(path, checkpoint_first=True)
    try:
        config = load_config(checkpoint.with_name(CONFIG_NAME))
        model = setup_model(config)
        check_can_be_forced(model)
        model.load_checkpoint(config, checkpoint, eval=True)
    except FinetuningError:
        raise
    except Exception as error:  # settings, phonemizers and damaged files make coqui raise almost anything
        raise FinetuningError(f"{path}: cannot be loaded ({one_line(error)})") from error
    if isinstance(model, BaseTacotron):  # of the second decoder only the loss of its training has a use
        model.double_decoder_consistency = model.bidirectional_decoder = False
    return model.to(device)


def check_can_be_forced(model: BaseTTS) -> None:
    """Refuse a model that cannot be forced.

    Raises:
        FinetuningError: with the reason.
    """
    if isinstance(model, BaseTacotron | GlowTTS):
        return
    if not isinstance(model, ForwardTTS):
        reason = "how to force it is not known here"
    elif model.args.use_pitch or model.args.use_energy:
        reason = "it wants the recording's pitch and energy, normalised by statistics that its checkpoint does not have"
    elif not model.use_aligner:
        reason = "it has no aligner, and its durations are in files of its training"
    else:
        return
    raise FinetuningError(
        f"{model.config.model}: {reason}; expected tacotron, tacotron2, glow_tts or speedy_speech, "
        "for others train on the recordings' own mels"
    )


def load_audio(path: Path, ap: AudioProcessor) -> np.ndarray:
    """A recording (n,) in float32 at the rate of `ap`, trimmed and as loud as its settings say.

    The same as `ap.load_wav` for mono files of that rate; that averages stereo over the wrong axis, and takes files of
    another rate as they are.

    Raises:
        DataError: if it cannot be read, nothing but silence is in it, or it is too quiet to make it as loud as that.
    """
    waveform = read_audio(path, ap.sample_rate)
    if ap.do_trim_silence:
        waveform = ap.trim_silence(waveform)
    if not waveform.any():
        raise DataError(f"{path}: nothing but silence")
    if ap.do_sound_norm:
        waveform = ap.sound_norm(waveform)
    if ap.do_rms_norm:
        waveform = rms_volume_norm(x=waveform, db_level=ap.db_level)
    if not np.isfinite(waveform).all():
        raise DataError(f"{path}: NaN or infinite samples when made as loud as the acoustic model's settings say")
    return waveform.astype(np.float32)


def load_utterance(model: BaseTTS, sample: Sample) -> Utterance:
    """Read a sample and make of it what the model takes.

    Raises:
        DataError: if the recording cannot be used, the model knows no letter of its text, or it is too short for it.
    """
    waveform = load_audio(sample.path, model.ap)
    tokens = torch.as_tensor(model.tokenizer.text_to_ids(sample.text), dtype=torch.long)
    mel = torch.from_numpy(np.ascontiguousarray(model.ap.melspectrogram(waveform).T, dtype=np.float32))
    if len(tokens) == 0:
        raise DataError(f"{sample.path}: the acoustic model knows none of the letters of {sample.text!r}")
    if len(mel) < len(tokens) and not isinstance(model, BaseTacotron):
        raise DataError(f"{sample.path}: {len(mel)} frames, expected at least one for each of {len(tokens)} tokens")
    return Utterance(tokens, waveform, mel, sample.speaker)


@torch.inference_mode()
def force(model: BaseTTS, utterances: list[Utterance]) -> list[Tensor]:
    """What the model makes of utterances, its dropout switched off.

    Args:
        model: The model, as `check_can_be_forced` allows.
        utterances: A batch of them. Except in Glow-TTS, the padding behind the shorter ones leaks into their ends, as
            in the model's training.

    Returns:
        For each of them the spectrogram (T, C) in the model's scale, on the CPU: a mel of T frames like its own, or the
        linear spectrogram of a Tacotron 1.

    Raises:
        FinetuningError: if a speaker is none of the model's.
    """
    model.eval()
    order = sorted(range(len(utterances)), key=lambda i: -len(utterances[i].tokens))
    batch = _collate(model, [utterances[i] for i in order])
    outputs = _predict(model, batch).cpu()
    return [outputs[order.index(i), : len(utterance.mel)] for i, utterance in enumerate(utterances)]


def _collate(model: BaseTTS, utterances: list[Utterance]) -> Batch:
    tokens, mels = [item.tokens for item in utterances], [item.mel for item in utterances]
    return Batch(
        pad_sequence(tokens, batch_first=True).to(model.device),
        torch.tensor([len(item) for item in tokens], device=model.device),
        pad_sequence(mels, batch_first=True).to(model.device),
        torch.tensor([len(item) for item in mels], device=model.device),
        _speakers(model, [item.speaker for item in utterances]),
    )


def _speakers(model: BaseTTS, names: list[str | None]) -> dict[str, Tensor | None]:
    try:
        ids, vectors = zip(*[model._get_speaker_id_or_dvector(name) for name in names], strict=True)
    except (KeyError, ValueError) as error:
        raise FinetuningError(f"{model.config.model}: {error.args[0]}") from error
    return {
        "speaker_ids": None if ids[0] is None else torch.cat(ids),
        "d_vectors": None if vectors[0] is None else torch.cat(vectors),
    }


def _predict(model: BaseTTS, batch: Batch) -> Tensor:
    if isinstance(model, BaseTacotron):
        return _tacotron(model, batch)
    if isinstance(model, GlowTTS):
        return _glow_tts(model, batch)
    tokens, n_tokens, mels, n_frames, speakers = batch
    return model(tokens, n_tokens, n_frames, mels, aux_input=speakers)["model_outputs"]


def _tacotron(model: BaseTacotron, batch: Batch) -> Tensor:
    # the decoder takes its frames in groups of r, and a view of them: not every layout of memory will do
    mels = F.pad(batch.mels, (0, 0, 0, -batch.mels.shape[1] % model.decoder.r)).contiguous()
    return model(batch.tokens, batch.n_tokens, mels, batch.n_frames, batch.speakers)["model_outputs"]


def _glow_tts(model: GlowTTS, batch: Batch) -> Tensor:
    """The mel at the best alignment; coqui's `inference_with_MAS` finds it too, but gives the latent out for it.

    The decoder drops the frames that do not fill a group of `num_squeeze`; here the last frame is repeated instead.
    """
    n_frames = (batch.n_frames + model.num_squeeze - 1) // model.num_squeeze * model.num_squeeze
    frames = torch.arange(int(n_frames.max()), device=model.device).clamp(max=batch.n_frames[:, None] - 1)
    mels = batch.mels.gather(1, frames[..., None].expand(-1, -1, batch.mels.shape[2]))
    outputs = model(batch.tokens, batch.n_tokens, mels, n_frames, batch.speakers)
    # the latent as in use, which has noise in it where the configuration says so
    mean, log_scale = outputs["y_mean"], outputs["y_log_scale"]
    latent = mean + log_scale.exp() * torch.randn_like(mean) * model.inference_noise_scale
    mask = sequence_mask(n_frames, mean.shape[1])[:, None].to(mean.dtype)
    speaker = model._get_speaker_conditioning(batch.speakers, "emb_g")
    mel, _ = model.decoder(latent.transpose(1, 2) * mask, mask, g=speaker, reverse=True)
    return mel.transpose(1, 2)
