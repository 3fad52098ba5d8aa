"""From an acoustic model's output to our input: a natural-log mel (1, n_mels, T) of the vocoder's own analysis.

A mel (T, n_mels) is converted in the order of the functions here: its scale exactly (`natural_log_mel`), its bands
approximately where they differ (`change_bands`), its frame rate by interpolation (`change_frame_rate`). A finished
waveform is analysed as a recording would be (`analyse`).

`ap` is coqui's `AudioProcessor` of the acoustic model, `audio` the vocoder's audio config. Frequencies are in Hz,
lengths in samples.
"""

import functools
import logging

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from apnet2_tts_plugin.spectra import MEL_FLOOR, LogMel, mel_basis

logger = logging.getLogger(__name__)


class PairingError(ValueError):
    """An acoustic model's output cannot be vocoded; the message says why in one line."""


def vocoder_input(output: Tensor | np.ndarray, tts_model, audio) -> Tensor:
    """What the vocoder needs for one sentence of an acoustic model.

    Args:
        output: The sentence's mel (T, n_mels) as normalised for `tts_model`, or its waveform (N,), (1, N) or (1, 1, N).
        tts_model: The acoustic model, of which the audio settings are read.
        audio: The vocoder's audio config.

    Returns:
        Natural-log mel (1, n_mels, T'), float32 on the CPU, of at least two frames.

    Raises:
        PairingError: if the output is empty or neither a mel nor a waveform.
    """
    output = torch.as_tensor(output).detach().cpu().float()
    shape = tuple(output.shape)
    if output.numel() == 0:
        raise PairingError(f"the acoustic model gave nothing to vocode: shape {shape}")
    ap = getattr(tts_model, "ap", None)
    if ap is not None and output.ndim == 2 and shape[1] == ap.num_mels:
        return _two_frames(convert_mel(output.numpy(), ap, audio))
    if output.numel() == max(shape):
        return analyse(output.reshape(1, -1), waveform_sample_rate(tts_model.config.audio), audio)
    raise PairingError(f"the acoustic model's output of shape {shape} is neither a mel (T, n_mels) nor a waveform")


def convert_mel(mel: np.ndarray, ap, audio) -> Tensor:
    """A normalised mel (T, n_mels) of a coqui model to the vocoder's natural-log mel (1, n_mels, T')."""
    if ap.preemphasis:
        _warn_once(f"the acoustic model's mel has a preemphasis of {ap.preemphasis}, which is not undone")
    log_mel = natural_log_mel(mel, ap)
    log_mel = change_bands(log_mel, ap, audio)
    log_mel = change_frame_rate(log_mel, (audio.sample_rate * ap.hop_length) / (ap.sample_rate * audio.hop_length))
    return torch.from_numpy(log_mel.astype(np.float32)).unsqueeze(0)


def natural_log_mel(mel: np.ndarray, ap) -> np.ndarray:
    """Undo coqui's scaling: (T, n_mels) to the natural logarithm of the mel, (n_mels, T), at least log(1e-5).

    With S the denormalised mel, that is S ln(base) / gain, or ln(S) where the model has no logarithm in its mel.
    """
    scaled = ap.denormalize(mel.T)
    if ap.do_amp_to_db_mel:
        natural = scaled * (np.log(ap.base) / ap.spec_gain)
    else:
        natural = np.log(np.maximum(scaled, MEL_FLOOR))
    return np.maximum(natural, np.log(MEL_FLOOR))


def change_bands(log_mel: np.ndarray, ap, audio) -> np.ndarray:
    """A log-mel over the bands of `ap` (n_mels, T) to one over the bands of `audio` (n_mels', T).

    Bands cannot be taken apart, so this is an estimate: log(max(B' R max(pinv(B) exp(log_mel), 0), 1e-5)), with B and
    B' the mel filters of both sides and R the step from one grid of frequencies to the other. The magnitude of speech
    grows as sqrt(sample rate * window length), between a tone's and a noise's, and is scaled by the ratio of these.
    Where the bands are equal, nothing else is done.
    """
    ours = mel_basis(audio.sample_rate, audio.fft_size, audio.num_mels, audio.mel_fmin, audio.mel_fmax)
    theirs = ap.mel_basis
    gain = np.sqrt(audio.sample_rate * audio.win_length / (ap.sample_rate * ap.win_length))
    if ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-6):
        return np.maximum(log_mel + np.log(gain), np.log(MEL_FLOOR))
    top, our_top = (side.mel_fmax or side.sample_rate / 2 for side in (ap, audio))
    if top < our_top:
        _warn_once(f"the acoustic model's mel ends at {top:.0f} Hz, so nothing above it will sound")
    magnitude = np.maximum(np.linalg.pinv(theirs) @ np.exp(log_mel), 0.0)
    step = frequency_step(ap.sample_rate, ap.fft_size, audio.sample_rate, audio.fft_size)
    return np.log(np.maximum(gain * (ours @ step @ magnitude), MEL_FLOOR))


def frequency_step(sample_rate: int, fft_size: int, new_sample_rate: int, new_fft_size: int) -> np.ndarray:
    """Matrix (new bins, bins) that interpolates a magnitude spectrum linearly; zero above the old Nyquist frequency.

    With the same rate and size on both sides it is the identity.
    """
    old = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    new = np.arange(new_fft_size // 2 + 1) * (new_sample_rate / new_fft_size)
    columns = [np.interp(new, old, unit, right=0.0) for unit in np.eye(len(old))]
    return np.stack(columns, axis=1)


def change_frame_rate(log_mel: np.ndarray, ratio: float) -> np.ndarray:
    """(n_mels, T) to (n_mels, round((T - 1) ratio) + 1) frames, interpolated linearly; the first frames coincide.

    Args:
        log_mel: Log-mel, frames in the last axis.
        ratio: New frames per old frame; 1 returns the mel as it is.
    """
    if ratio == 1:
        return log_mel
    last = log_mel.shape[1] - 1
    position = np.minimum(np.arange(round(last * ratio) + 1) / ratio, last)
    left = np.floor(position).astype(int)
    right = np.minimum(left + 1, last)
    weight = position - left
    return log_mel[:, left] * (1 - weight) + log_mel[:, right] * weight


def analyse(waveform: Tensor, sample_rate: int, audio) -> Tensor:
    """A waveform (B, N) at `sample_rate` to the vocoder's log-mel (B, n_mels, T), T = N' // hop + 1.

    It is resampled to N' samples where the rates differ, and padded with silence where it is too short to analyse.
    """
    if sample_rate != audio.sample_rate:
        waveform = torchaudio.functional.resample(waveform, sample_rate, audio.sample_rate)
    shortest = audio.fft_size // 2 + 1  # what the reflection at the edges takes
    waveform = F.pad(waveform, (0, max(0, shortest - waveform.shape[1])))
    return LogMel.from_audio_config(audio)(waveform)


def waveform_sample_rate(audio) -> int:
    """Sample rate of the waveforms that a model with the audio config `audio` makes."""
    return audio.get("output_sample_rate", None) or audio["sample_rate"]


def _two_frames(log_mel: Tensor) -> Tensor:
    """A single frame twice, because T frames make (T - 1) * hop samples; anything longer as it is."""
    return log_mel.expand(-1, -1, 2) if log_mel.shape[2] == 1 else log_mel


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, once for all sentences."""
    logger.warning("%s", message)
