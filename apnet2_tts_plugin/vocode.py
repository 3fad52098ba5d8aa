"""Vocoding files: a recording is analysed and vocoded (copy synthesis), a log-mel or latent is vocoded as it is."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from apnet2_tts_plugin import audio
from apnet2_tts_plugin.errors import DataError, OutputError, one_line
from apnet2_tts_plugin.files import write_atomically
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.pairing.framing import vocode_hifigan_frames

logger = logging.getLogger(__name__)

FEATURE_SUFFIXES = (".npy", ".pt")
SUFFIXES = (*audio.SUFFIXES, *FEATURE_SUFFIXES)


def input_output_pairs(source: str | os.PathLike, target: str | os.PathLike) -> list[tuple[Path, Path]]:
    """Which files are to be read, and the WAV file that each becomes.

    Args:
        source: A file, or a folder of which all WAV, FLAC, `.npy` and `.pt` files are taken, sub-folders included.
        target: The WAV file, or for a folder the folder that mirrors it.

    Raises:
        DataError: if there is nothing to read.
        OutputError: if the target is of the wrong kind, or a file that is read would be overwritten.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    pairs = _folder_pairs(source, target) if source.is_dir() else _file_pair(source, target)
    overwritten = {read.resolve() for read, _ in pairs} & {written.resolve() for _, written in pairs}
    if overwritten:
        raise OutputError(f"{min(overwritten)}: is an input and would be overwritten; choose another output")
    return pairs


def _file_pair(source: Path, target: Path) -> list[tuple[Path, Path]]:
    if source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{source}: expected a {', '.join(SUFFIXES)} file, or a folder of them")
    if target.is_dir() or target.suffix.lower() != ".wav":
        kind = "a folder" if target.is_dir() else "no name of a WAV file"
        raise OutputError(f"{target}: is {kind}; for a single input, expected the name of a .wav file to write")
    return [(source, target)]


def _folder_pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target}: is a file; for a folder of inputs, expected a folder to write to")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise OutputError(f"{target}: lies in {source}, which is read; choose a folder outside of it")
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{source}: no {', '.join(SUFFIXES)} file in this folder")
    pairs = [(path, target / path.relative_to(source).with_suffix(".wav")) for path in files]
    repeated, times = Counter(written for _, written in pairs).most_common(1)[0]
    if times > 1:
        names = " and ".join(str(read) for read, written in pairs if written == repeated)
        raise DataError(f"{names} would all become {repeated}; keep one of them in the folder")
    return pairs


def vocode_files(model: Apnet2, pairs: list[tuple[Path, Path]], resample: bool = True, framing: str = "centred") -> int:
    """Vocode files one by one; those that cannot be vocoded are named in the log and left out.

    Args:
        model: A model from `loader.load_model`.
        pairs: What `input_output_pairs` gives.
        resample: Convert recordings of other sample rates instead of refusing them.
        framing: Where the frames of mels in files lie: "centred", or as `pairing.framing` says of "hifigan".

    Returns:
        The number of files left out.

    Raises:
        OutputError: if a file cannot be written; there is no part of it then, and the rest is not tried.
    """
    failures = 0
    for source, target in tqdm(pairs, unit="file", disable=None if len(pairs) > 1 else True):
        try:
            waveform = vocode_file(model, source, resample, framing)
        except DataError as error:
            logger.error("%s", error)
            failures += 1
        else:
            write_wav(target, waveform, model.config.audio.sample_rate)
    return failures


def vocode_file(model: Apnet2, path: Path, resample: bool = True, framing: str = "centred") -> Tensor:
    """What the model makes of one file: (N,) in float32 on the CPU, within [-1, 1].

    N is that of a recording (after resampling), and (T - 1) * hop_length for a mel or latent of T frames, or
    T * hop_length for a mel with HiFi-GAN's framing.

    Raises:
        DataError: if the file cannot be read, or is not what the model takes.
    """
    try:
        if path.suffix.lower() in FEATURE_SUFFIXES:
            features = read_features(path, model.config.n_inputs).to(model.device)
            waveform = model.inference(features) if framing == "centred" else vocode_hifigan_frames(model, features)
        elif model.config.input_features == "latent":
            raise DataError(
                f"{path}: is a recording, but this model vocodes latents of a VITS; expected a "
                f"{' or '.join(FEATURE_SUFFIXES)} file of shape ({model.config.n_inputs}, frames)"
            )
        else:
            recording, rate = read_recording(path)
            needed = model.config.audio.sample_rate
            if rate != needed and not resample:
                raise DataError(f"{path}: has {rate} Hz, expected the model's {needed} Hz")
            if rate != needed:
                logger.warning("%s: resampled from %d to %d Hz", path, rate, needed)
            waveform = model.copy_synthesis(recording, rate)
    except RuntimeError as error:  # on a processor torch has no class of its own for it
        if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        raise DataError(f"{path}: too long for the memory of {model.device}; cut it into shorter files") from error
    waveform = waveform.flatten().cpu()
    if not waveform.isfinite().all():
        hint = "; is this a natural-log mel (ln)?" if model.config.input_features == "mel" else ""
        raise DataError(f"{path}: the model's output has NaN or infinite samples{hint}")
    peak = waveform.abs().max().item()
    if peak > 1:
        logger.warning("%s: the output is clipped, its peak was %.2f", path, peak)
    return waveform.clamp(-1, 1)


def read_recording(path: Path) -> tuple[np.ndarray, int]:
    """A recording as (N,) in float32, channels mixed down, and its sample rate in Hz.

    Raises:
        DataError: if it cannot be read, is empty, or has NaN.
    """
    try:
        found = soundfile.info(path)
        if not 0 < found.frames < audio.UNKNOWN_LENGTH:
            raise DataError(f"{path}: has no samples, or does not tell how many; writing it anew helps")
        return audio.read_audio(path, found.samplerate), found.samplerate
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: not a readable WAV or FLAC file ({error.error_string})") from error


def read_features(path: Path, n_channels: int) -> Tensor:
    """A natural-log mel or a latent as (1, n_channels, T) in float32; the file holds that or (n_channels, T).

    Raises:
        DataError: if it cannot be read or holds something else, NaN, or fewer than two frames.
    """
    features = _read_array(path)
    shape = tuple(features.shape)
    if len(shape) not in (2, 3) or shape[-2] != n_channels or (len(shape) == 3 and shape[0] != 1):
        raise DataError(f"{path}: has shape {shape}, expected ({n_channels}, frames) or (1, {n_channels}, frames)")
    if shape[-1] < 2:
        raise DataError(f"{path}: has {shape[-1]} frames, expected at least 2")
    if not features.is_floating_point():
        raise DataError(f"{path}: has numbers of type {features.dtype}, expected floating ones")
    features = features.detach().float().reshape(1, n_channels, -1)
    if not features.isfinite().all():
        raise DataError(f"{path}: has NaN or infinite values")
    return features


def _read_array(path: Path) -> Tensor:
    try:
        if path.suffix.lower() == ".npy":
            content = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the two readers raise almost anything
        raise DataError(f"{path}: not a readable {path.suffix} file, or it holds more than numbers") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a tensor")
    return content


def write_wav(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Write (N,) within [-1, 1] as 16-bit PCM, whole or not at all; missing folders are made.

    Raises:
        OutputError: if it cannot be written.
    """

    def write(temporary: Path) -> None:
        samples = (waveform * 32767).round().short().numpy()
        soundfile.write(temporary, samples, sample_rate, format="WAV", subtype="PCM_16")

    try:
        write_atomically(path, write)
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OutputError(f"{path}: cannot be written ({reason})") from error
