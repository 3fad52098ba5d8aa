"""Teacher forcing: what a trained acoustic model makes of recordings, frame beside frame, to fine-tune a vocoder on.

The model predicts each frame from the recording's earlier ones (Tacotron), or all of them from the text as the
recording is aligned with it (Glow-TTS, SpeedySpeech). So the mel has the recording's timing, and the model's mistakes.

What the model was trained on is the recording without the silence around it and at another volume, as its audio
settings say. That is the recording from here on: it is written beside the mels.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from TTS.config import load_config
from TTS.tts.models import setup_model
from TTS.tts.models.base_tacotron import BaseTacotron
from TTS.tts.models.base_tts import BaseTTS
from TTS.tts.models.forward_tts import ForwardTTS
from TTS.tts.models.glow_tts import GlowTTS
from TTS.tts.utils.helpers import sequence_mask
from TTS.utils.audio import AudioProcessor
from TTS.utils.audio.numpy_transforms import rms_volume_norm

from apnet2_tts_plugin.checkpoints import write_atomically
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.corpus import DataError
from apnet2_tts_plugin.data import read_audio
from apnet2_tts_plugin.features import attempt, find_checkpoint, pending, write_array
from apnet2_tts_plugin.pairing import Pairing

logger = logging.getLogger(__name__)


class TeacherForcingError(ValueError):
    """No mels can be had of this acoustic model; the message is one line."""


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
        TeacherForcingError: if it cannot be loaded, or is none that can be forced.
    """
    checkpoint = find_checkpoint(path)
    try:
        config = load_config(checkpoint.with_name("config.json"))
        model = setup_model(config)
        check(model)
        model.load_checkpoint(config, checkpoint, eval=True)
    except TeacherForcingError:
        raise
    except Exception as error:  # settings, phonemizers and damaged files make coqui raise almost anything
        raise TeacherForcingError(f"{path}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    if isinstance(model, BaseTacotron):  # of the second decoder only the loss of its training has a use
        model.double_decoder_consistency = model.bidirectional_decoder = False
    return model.to(device)


def check(model: BaseTTS) -> None:
    """Refuse a model that cannot be forced.

    Raises:
        TeacherForcingError: with the reason.
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
    raise TeacherForcingError(
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
        model: The model, as `check` allows.
        utterances: A batch of them. Except in Glow-TTS, the padding behind the shorter ones leaks into their ends, as
            in the model's training.

    Returns:
        For each of them the spectrogram (T, C) in the model's scale, on the CPU: a mel of T frames like its own, or the
        linear spectrogram of a Tacotron 1.

    Raises:
        TeacherForcingError: if a speaker is none of the model's.
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
        raise TeacherForcingError(f"{model.config.model}: {error.args[0]}") from error
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


def extract(
    model: BaseTTS,
    samples: list[Sample],
    data_path: Path,
    out: Path,
    paired: Pairing,
    batch_size: int = 16,
) -> int:
    """Write what a vocoder is to be fine-tuned on: recordings below `out/wavs`, their mels below `out/mels`.

    The recording `data_path/a.wav` becomes `out/wavs/a.wav`, as the acoustic model heard it but at the vocoder's rate,
    and `out/mels/a.npy`, natural-log (n_mels, T), T = n // hop_length + 1 for its n samples. Samples that are done are
    not done again; those that cannot be used are named in the log and left out, and what was made of them before is
    removed.

    Args:
        model: The acoustic model, as `check` allows.
        samples: What to do; several processes may each take a part.
        data_path: Folder with the recordings.
        out: Folder to write to; made if need be.
        paired: The model paired with the vocoder, see `pairing.pair`.
        batch_size: Samples of about the same length that go through the model together.

    Returns:
        Number of samples left out.

    Raises:
        TeacherForcingError: if a speaker is none of the model's, or a recording cannot be written.
        OSError: if a mel cannot be written.
    """
    by_path = {sample.path: sample for sample in samples}
    targets = pending(list(by_path), data_path, out / "mels")
    with tqdm(total=len(targets), desc="Predicting mels", unit="file", disable=None, leave=False) as bar:
        for batch in _batches([by_path[path] for path in targets], batch_size):
            for sample, output, waveform in _forced(model, batch):
                aligned = attempt(sample.path, _aligned, paired, output, waveform)
                if aligned is not None:
                    mel, waveform = aligned
                    _write_wav(_wav(sample.path, data_path, out), waveform, paired.audio.sample_rate)
                    write_array(targets.pop(sample.path), mel)  # last: it stands for both
            bar.update(len(batch))
    for path, target in targets.items():
        target.unlink(missing_ok=True)
        _wav(path, data_path, out).unlink(missing_ok=True)
    if targets:
        logger.warning("Left out %d of %d samples", len(targets), len(samples))
    return len(targets)


def _wav(path: Path, data_path: Path, out: Path) -> Path:
    """Where the recording `path` goes."""
    return out / "wavs" / path.relative_to(data_path).with_suffix(".wav")


def _batches(samples: list[Sample], batch_size: int) -> list[list[Sample]]:
    samples = sorted(samples, key=lambda sample: len(sample.text))
    return [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]


def _forced(model: BaseTTS, samples: list[Sample]) -> Iterator[tuple[Sample, Tensor, np.ndarray]]:
    """Each sample that can be used, the model's output for it, and its recording."""
    loaded = [(sample, attempt(sample.path, load_utterance, model, sample)) for sample in samples]
    loaded = [(sample, utterance) for sample, utterance in loaded if utterance is not None]
    if loaded:
        outputs = force(model, [utterance for _, utterance in loaded])
        for (sample, utterance), output in zip(loaded, outputs, strict=True):
            yield sample, output, utterance.waveform


def _aligned(paired: Pairing, output: Tensor, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vocoder's mel (n_mels, T) of a model's output, and the waveform of T frames at the vocoder's rate."""
    rate, hop_length = paired.audio.sample_rate, paired.audio.hop_length
    mel = paired.vocoder_input(output)[0].numpy()
    if paired.ap.sample_rate != rate:
        waveform = soxr.resample(waveform, paired.ap.sample_rate, rate)
    # with another hop, the frames of the one may end a little before those of the other
    n_frames = min(mel.shape[1], len(waveform) // hop_length + 1)
    return mel[:, :n_frames], waveform[: n_frames * hop_length - 1]


def _write_wav(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write (n,) as it is, in float32: normalised to a mean volume, it may go beyond [-1, 1]."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: sf.write(file, waveform, sample_rate, format="WAV", subtype="FLOAT"))
    except (OSError, sf.LibsndfileError) as error:
        raise TeacherForcingError(f"{path}: cannot be written ({error})") from error


def claim(out: Path, checkpoint: Path, samples: list[Sample], data_path: Path, vocoder_config: Apnet2Config) -> None:
    """Note in `out` of which model, data and vocoder its mels are, so that those of others are never mixed in.

    A note is binding as soon as there is a mel.

    Raises:
        TeacherForcingError: if the folder has mels of others.
    """
    settings = checkpoint.with_name("config.json").read_bytes()
    state = checkpoint.stat()
    spoken = [[str(sample.path.relative_to(data_path)), sample.text, sample.speaker] for sample in samples]
    source = {
        "checkpoint": [str(checkpoint.resolve()), state.st_size, state.st_mtime_ns],
        "config": hashlib.sha256(settings).hexdigest(),
        "data_path": str(data_path.resolve()),
        "metadata": hashlib.sha256(json.dumps(spoken).encode()).hexdigest(),
        "audio": vocoder_config.audio.to_dict(),
    }
    path = out / "source.json"
    if not path.is_file() or not any((out / "mels").rglob("*.npy")):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write_text(json.dumps(source, indent=1), encoding="utf-8"))
    elif differing := [name for name, value in _read_json(path).items() if source.get(name) != value]:
        raise TeacherForcingError(
            f"{out}: has mels of another {' and '.join(differing)}, see {path.name} in it; "
            "delete the folder, or name another one"
        )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeacherForcingError(f"{path}: cannot be read ({error}); delete the folder it is in") from error
