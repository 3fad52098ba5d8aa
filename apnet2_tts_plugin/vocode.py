"""Vocoding a file: a recording is analysed and vocoded (copy synthesis), a mel or latent is vocoded as it is."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from soundfile import LibsndfileError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from apnet2_tts_plugin.audio import Source, StandardInput, at_rate, open_audio, read_recording
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import Apnet2Error, DataError, ModelError, PairingError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.scales import check_scale
from apnet2_tts_plugin.network.spectra import LogMel, whole_hops
from apnet2_tts_plugin.pairing.convert import Pairing, pair_configs
from apnet2_tts_plugin.pairing.framing import vocode_hifigan_frames
from apnet2_tts_plugin.pairing.plan import LINEAR, MEL
from apnet2_tts_plugin.pairing.report import announce, summary
from apnet2_tts_plugin.workers import Check, attempt, go_on

logger = logging.getLogger(__name__)

FEATURE_SUFFIXES = (".npy", ".pt")
MAGIC = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".pt"}
PIECE = 2048  # frames vocoded at once, 24 s at 22.05 kHz: more than that in memory is the waveform alone
BATCH = {"cpu": 12.0, "cuda": 120.0}  # seconds of audio that are vocoded at once if files are shorter, by device
NORMALIZED_PEAK = 10 ** (-1 / 20)  # 1 dB below full scale, which lossy formats need


class Features(NamedTuple):
    """What the model is given of a file.

    Attributes:
        pieces: Makes mels or latents (1, n_inputs, T) on the model's device, T = `PIECE` but for the last.
        n_frames: Frames of all pieces.
        n_samples: Samples to be heard; those behind them belong to silence that fills the last hop.
    """

    pieces: Callable[[], Iterator[Tensor]]
    n_frames: int
    n_samples: int


@dataclass(frozen=True)
class FileVocoder:
    """A model, and how it vocodes files.

    Attributes:
        model: A model from `loader.load_model`.
        resample: Convert a recording of another sample rate instead of refusing it.
        pairing: With the acoustic model that made the mels, see `pairing_for_mels`; None for natural-log mels.
        framing: Where the frames of mels in files lie: "centred", or as `pairing.framing` says of "hifigan".
        normalize: Scale the waveforms to a peak 1 dB below full scale, louder or softer.
        progress: Show how far a long file is.
    """

    model: Apnet2
    resample: bool = True
    pairing: Pairing | None = None
    framing: str = "centred"
    normalize: bool = False
    progress: bool = False

    def one(self, source: Source, check: Check = go_on) -> Tensor:
        """What the model makes of one file: (N,) in float32 on the CPU, within [-1, 1].

        N is that of a recording (after resampling), and (T - 1) * hop_length for a mel or latent of T frames, or
        T * hop_length for a mel with HiFi-GAN's framing. A waveform that goes beyond full scale is scaled down to it,
        and the log says by how much.

        Args:
            source: The file.
            check: Called between the pieces of a long file.

        Raises:
            DataError: if the file cannot be read, or is not what the model takes.
        """
        with _enough_memory(source, self.model):
            if self.framing == "hifigan" and (suffix := _feature_suffix(source)):
                mel = _features(self.model, source, suffix, self.pairing).to(self.model.device)
                waveform = vocode_hifigan_frames(self.model, mel).flatten().cpu()
            else:
                waveform = _vocode(self.model, self._read(source), self.progress, check)
        return self._finished(source, waveform)

    def several(self, sources: list[Source], check: Check = go_on) -> list[Tensor | Apnet2Error]:
        """What `one` gives of each file, or raises; in one batch, for which they had better be of like lengths.

        Args:
            sources: The files, which together fit in memory.
            check: As for `one`.
        """
        if len(sources) == 1 or self.framing == "hifigan":
            return [attempt(self.one, source, check) for source in sources]

        def read(source: Source) -> Features:
            with _enough_memory(source, self.model):
                return self._read(source)

        given = [attempt(read, source) for source in sources]
        check()
        short = [index for index, features in enumerate(given) if _is_short(features)]
        try:
            waveforms = _vocode_batch(self.model, [given[index] for index in short])
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            short, waveforms = [], []  # each on its own, then
        batched = dict(zip(short, waveforms, strict=True))

        def waveform(index: int, features: Features) -> Tensor:
            with _enough_memory(sources[index], self.model):
                found = batched[index] if index in batched else _vocode(self.model, features, self.progress, check)
            return self._finished(sources[index], found)

        return [
            features if isinstance(features, Apnet2Error) else attempt(waveform, index, features)
            for index, features in enumerate(given)
        ]

    def _read(self, source: Source) -> Features:
        """What the model is given of a file; if it has frames, they are centred."""
        model, audio = self.model, self.model.config.audio
        if suffix := _feature_suffix(source):
            features = _features(model, source, suffix, self.pairing)
            n_frames = features.shape[2]
            return Features(partial(_moved, features, model.device), n_frames, (n_frames - 1) * audio.hop_length)
        check_vocodes_recordings(source, model)
        recording = _recording(source, audio.sample_rate, self.resample)
        padded = whole_hops(recording, audio)
        return Features(partial(_analysed, padded, model), len(padded) // audio.hop_length + 1, len(recording))

    def _finished(self, source: Source, waveform: Tensor) -> Tensor:
        """A waveform as it is written."""
        if not waveform.isfinite().all():
            raise DataError(f"{source}: the model's output has NaN or infinite samples")
        return _in_range(waveform, source, self.normalize)


def _moved(features: Tensor, device: torch.device) -> Iterator[Tensor]:
    return (piece.to(device) for piece in features.split(PIECE, dim=2))


def _analysed(recording: Tensor, model: Apnet2) -> Iterator[Tensor]:
    return model.log_mel.pieces(recording.to(model.device), PIECE)


@contextmanager
def _enough_memory(source: Source, model: Apnet2) -> Iterator[None]:
    """Say of a file for which there is too little."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise DataError(f"{source}: too long for the memory of {model.device}; cut it into shorter files") from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is that; on a processor torch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error)


def _is_short(features: Features | Apnet2Error) -> bool:
    return isinstance(features, Features) and features.n_frames <= PIECE


def _vocode(model: Apnet2, features: Features, progress: bool, check: Check) -> Tensor:
    """The waveform (n_samples,), on the CPU."""
    if _is_short(features):
        return _vocode_batch(model, [features])[0]
    audio, waveforms = model.config.audio, []
    seconds = round(features.n_frames * audio.hop_length / audio.sample_rate)
    with tqdm(total=seconds, unit="s", disable=None if progress else True) as bar:
        for waveform in model.stream(features.pieces(), window=PIECE):
            check()
            waveforms.append(waveform.flatten().cpu())
            bar.update(round(waveform.shape[2] / audio.sample_rate))
    return torch.cat(waveforms)[: features.n_samples]


def _vocode_batch(model: Apnet2, batch: list[Features]) -> list[Tensor]:
    """The waveforms (n_samples,) of features of up to `PIECE` frames, on the CPU."""
    if not batch:
        return []
    frames = [next(features.pieces())[0].T for features in batch]
    lengths = torch.tensor([features.n_frames for features in batch]) if len(batch) > 1 else None
    waveforms = model.inference(pad_sequence(frames, batch_first=True).transpose(1, 2), lengths)[:, 0].cpu()
    return [waveform[: features.n_samples] for waveform, features in zip(waveforms, batch, strict=True)]


def seconds(source: Source, config: Apnet2Config) -> float:
    """The length of a file's audio in seconds, roughly, without reading all of it; 0 where there is no file.

    Mels and latents are taken to be of 32 bits, and what libsndfile does not know to have 32 kbit/s.
    """
    if not isinstance(source, Path) or not source.is_file():
        return 0.0
    size, audio = source.stat().st_size, config.audio
    if _feature_suffix(source):
        return size / (4 * config.n_inputs) * audio.hop_length / audio.sample_rate
    try:
        with open_audio(source) as file:
            return file.frames / file.samplerate
    except LibsndfileError:
        return size / 4000


def _in_range(waveform: Tensor, source: Source, normalize: bool) -> Tensor:
    peak = waveform.abs().max().item()
    if normalize:
        return waveform * (NORMALIZED_PEAK / peak) if peak else waveform
    if peak <= 1:
        return waveform
    logger.warning(
        "%s: scaled down by %.1f dB, as its peak was %.2f of full scale", source, 20 * math.log10(peak), peak
    )
    return (waveform / peak).clamp(-1, 1)


def mel_analysis(config: Apnet2Config) -> LogMel:
    """The analysis of a model that vocodes mels.

    Raises:
        ModelError: if it vocodes latents.
    """
    if config.input_features != "mel":
        raise ModelError("this model vocodes the latents of a VITS, expected one that vocodes mels")
    return LogMel.from_audio_config(config.audio)


def analyse_file(log_mel: LogMel, audio, source: Source, resample: bool = True) -> np.ndarray:
    """The natural-log mel of a recording, (n_mels, T) in float32: what `FileVocoder` vocodes of it.

    Args:
        log_mel: The analysis.
        audio: The audio config that it is of.
        source: The recording, N samples at its rate; T is what N takes in whole hops, and one more.
        resample: Convert a recording of another sample rate instead of refusing it.

    Raises:
        DataError: if the file cannot be read.
    """
    recording = _recording(source, audio.sample_rate, resample)
    return log_mel(whole_hops(recording, audio)[None])[0].numpy()


def pairing_for_mels(tts_config, ap, vocoder_config) -> Pairing:
    """How mels of an acoustic model's scale become the vocoder's; a line in the log says it.

    Raises:
        PairingError: if they cannot, if the acoustic model makes none, or if it is approximate and `APNET2_STRICT` set.
    """
    pairing = pair_configs(tts_config, ap, vocoder_config)
    if pairing.plan.output not in (MEL, LINEAR):
        given = pairing.plan.output
        raise PairingError(f"{pairing.plan.model} gives a {given} to this vocoder, expected a model that gives mels")
    logger.warning("%s", summary(announce(pairing)))
    return pairing


def _features(model: Apnet2, source: Source, suffix: str, pairing: Pairing | None) -> Tensor:
    """What the model is given of a file with a mel or latent."""
    features = _read_features(source, suffix, pairing.n_channels if pairing else model.config.n_inputs)
    try:
        if pairing:
            features = pairing.vocoder_input(features[0].T)
        if model.config.input_features == "mel":
            check_scale(features)
    except (DataError, PairingError) as error:
        raise DataError(f"{source}: {error}") from error
    return features


def _read_features(source: Source, suffix: str, n_channels: int) -> Tensor:
    """A mel or a latent as (1, n_channels, T) in float32; the file holds that or (n_channels, T), with T >= 2."""
    features = checked_features(source, _read_array(source, suffix), n_channels)
    if features.shape[2] < 2:
        raise DataError(f"{source}: has {features.shape[2]} frames, expected at least 2")
    return features


def checked_features(source: Source, features: Tensor, n_channels: int) -> Tensor:
    """A mel or a latent, (n_channels, T) or (1, n_channels, T), as (1, n_channels, T) in float32.

    Raises:
        DataError: if it is of another shape or type, or not finite.
    """
    shape = tuple(features.shape)
    if len(shape) not in (2, 3) or shape[-2] != n_channels or (len(shape) == 3 and shape[0] != 1):
        hint = "; it is transposed" if len(shape) > 1 and shape[-1] == n_channels else ""
        expected = f"({n_channels}, frames) or (1, {n_channels}, frames)"
        raise DataError(f"{source}: has shape {shape}, expected {expected}{hint}")
    if not features.is_floating_point():
        raise DataError(f"{source}: has numbers of type {features.dtype}, expected floating ones")
    features = features.detach().float().reshape(1, n_channels, -1)
    if not features.isfinite().all():
        raise DataError(f"{source}: has NaN or infinite values")
    return features


def check_vocodes_recordings(source: Source, model: Apnet2) -> None:
    """Refuse a recording for a model that vocodes latents.

    Raises:
        DataError: if it does.
    """
    if model.config.input_features == "latent":
        raise DataError(
            f"{source}: is a recording, but this model vocodes latents of a VITS; expected a "
            f"{' or '.join(FEATURE_SUFFIXES)} file of shape ({model.config.n_inputs}, frames)"
        )


def check_rate(source: Source, rate: int, sample_rate: int, resample: bool) -> None:
    """Mention that a recording is of another rate than the model's, or refuse it.

    Raises:
        DataError: if it is not to be resampled.
    """
    if rate != sample_rate and not resample:
        raise DataError(f"{source}: has {rate} Hz, expected the model's {sample_rate} Hz")
    if rate != sample_rate:
        logger.warning("%s: resampled from %d to %d Hz", source, rate, sample_rate)


def _feature_suffix(source: Source) -> str | None:
    """What kind of file with a mel or latent it is; None for one with a recording."""
    if isinstance(source, StandardInput):
        return next((suffix for magic, suffix in MAGIC.items() if source.getvalue().startswith(magic)), None)
    suffix = source.suffix.lower()
    return suffix if suffix in FEATURE_SUFFIXES else None


def _read_array(source: Source, suffix: str) -> Tensor:
    _check_there(source)
    try:
        if suffix == ".npy":
            content = torch.from_numpy(_load_npy(source))
        else:
            content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the two readers raise almost anything
        reason = getattr(error, "strerror", None) or f"not a readable {suffix} file, or it holds more than numbers"
        raise DataError(f"{source}: {reason}") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{source}: holds a {type(content).__name__}, expected a tensor")
    if content.layout != torch.strided or content.is_meta:
        raise DataError(f"{source}: holds a sparse tensor, or one without its numbers, expected a dense one")
    return content


def _load_npy(source: Source) -> np.ndarray:
    """The array of a file; on standard input those of several in a row, as `piped.MelStream` has them, end to end."""
    arrays = [np.load(source, allow_pickle=False)]
    while isinstance(source, StandardInput) and source.tell() < len(source.getbuffer()):
        arrays.append(np.load(source, allow_pickle=False))
    return np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]


def _recording(source: Source, sample_rate: int, resample: bool) -> Tensor:
    """A recording (N,) at `sample_rate`; if it has another one, that is refused or mentioned."""
    _check_there(source)
    recording, rate = read_recording(source)
    check_rate(source, rate, sample_rate, resample)
    return torch.from_numpy(at_rate(recording, rate, sample_rate))


def _check_there(source: Source) -> None:
    if isinstance(source, Path) and not source.exists():
        raise DataError(f"{source}: no such file or folder")
