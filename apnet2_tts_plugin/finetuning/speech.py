"""What a trained VITS says: latents and waveforms of any sentences, for a vocoder to learn from without recordings.

A latent and what the decoder of the VITS makes of it are a deterministic pair: the vocoder learns that function
(knowledge distillation), in the place of one that fits recordings which no latent tells in full.
"""

import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from TTS.tts.models.vits import Vits

from apnet2_tts_plugin.audio import write_wav
from apnet2_tts_plugin.errors import FinetuningError, one_line
from apnet2_tts_plugin.finetuning.latents import read_vits_config
from apnet2_tts_plugin.pairing.vits import vocoder_latent
from apnet2_tts_plugin.training.features import write_array
from apnet2_tts_plugin.training.source import note_source, weights_digest
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder


def load_vits(path: str | os.PathLike[Any]) -> Vits:
    """A trained VITS of one speaker, to speak with.

    Args:
        path: Folder with `config.json` and a checkpoint, as `weights.find` takes it; or the checkpoint itself, with
            `config.json` beside it.

    Raises:
        FinetuningError: if there is no VITS of one speaker, or it cannot be loaded, as where espeak-ng is missing.
        CheckpointError: if there is no checkpoint.
    """
    checkpoint = find_weights(path, checkpoint_first=True)
    config = read_vits_config(checkpoint.with_name(CONFIG_NAME))
    config.model_args.use_speaker_encoder_as_loss = False
    try:
        vits = Vits(config)
        vits.load_checkpoint(config, checkpoint, eval=True)
    except Exception as error:  # settings, phonemizers and damaged files make coqui raise almost anything
        raise FinetuningError(f"{path}: cannot be loaded ({one_line(error)})") from error
    return vits


@torch.inference_mode()
def speak(vits: Vits, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Let a VITS say a sentence, with the noise that it has in use, which depends on the sentence alone.

    Args:
        vits: A VITS of one speaker.
        text: The sentence.

    Returns:
        The vocoder's input (C, T + 1), see `pairing.vits.vocoder_latent`, and the waveform (T * hop_length,) that the
        VITS makes of it, both in float32.

    Raises:
        FinetuningError: if the VITS knows none of the letters.
    """
    tokens = vits.tokenizer.text_to_ids(text, language=vits.config.phoneme_language)
    characters = vits.tokenizer.characters
    if not set(tokens) - {characters.blank_id, characters.bos_id, characters.eos_id}:
        raise FinetuningError(f"{text!r}: the VITS knows none of these letters")
    devices = [vits.device] if vits.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(zlib.crc32(text.encode()))
        said = vits.inference(torch.tensor([tokens], device=vits.device))
    latent = vocoder_latent(said["z"] * said["y_mask"])
    return latent[0].cpu().numpy(), said["model_outputs"].flatten().cpu().numpy()


def read_sentences(path: str | os.PathLike[Any]) -> list[str]:
    """The sentences of a text file, one a line; empty lines are left out.

    Raises:
        FinetuningError: if it is no text, or has none.
        OSError: if it cannot be read.
    """
    try:
        sentences = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise FinetuningError(f"{path}: not UTF-8 text ({one_line(error)})") from error
    if not sentences:
        raise FinetuningError(f"{path}: no sentences in it, expected one a line")
    return sentences


def folders(folder: str | os.PathLike[Any]) -> tuple[Path, Path]:
    """Where `write_speech` puts the waveforms, and where the latents."""
    return Path(folder, "wavs"), Path(folder, "latents")


def write_speech(vits: Vits, sentences: list[str], folder: str | os.PathLike[Any], share: slice = slice(None)) -> None:
    """Write what a VITS says: sentence i as `wavs/<i>.wav` (16 bit) and `latents/<i>.npy` in `folder`, i from 1.

    Pairs that are there are not made again. A sentence that the VITS cannot say is named in the log and left out.

    Args:
        vits: The VITS.
        sentences: All sentences.
        folder: The folder; made if need be.
        share: Which of the sentences to do, where several processes take a part each.

    Raises:
        DataError: if the folder has speech of another VITS.
        OSError: if a file cannot be written.
    """
    wavs, latents = folders(folder)
    note_source(latents, _source(vits), "latents")
    numbered = list(enumerate(sentences, start=1))[share]
    for number, text in tqdm(numbered, desc="Speaking", unit="sentence", disable=None, leave=False):
        wav, array = wavs / f"{number:05}.wav", latents / f"{number:05}.npy"
        if array.is_file():  # written last: it stands for both
            continue
        try:
            latent, waveform = speak(vits, text)
        except FinetuningError as error:
            logger.warning("Left out sentence %d: %s", number, error)
            continue
        write_wav(wav, waveform, vits.config.audio.sample_rate)
        write_array(array, latent)


def _source(vits: Vits) -> dict[str, Any]:
    """What the speech of a VITS depends on; its sentences do not matter, as each pair is good for itself."""
    noise = [vits.inference_noise_scale, vits.inference_noise_scale_dp, vits.length_scale]
    return {"settings": noise, "weights": weights_digest(vits)}
