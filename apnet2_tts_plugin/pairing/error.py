"""How far a pairing's conversion is off, measured on a reference signal that both sides analyse.

Errors are mean absolute differences of log-mels in dB, over all bands and frames.
"""

import copy
import functools
from contextlib import suppress

import numpy as np
import soxr
import torch
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin.network.spectra import DB_PER_NEPER
from apnet2_tts_plugin.pairing.convert import Pairing, analyse
from apnet2_tts_plugin.pairing.plan import LINEAR, WAVEFORM, Plan, Verdict, top_frequency

REFERENCE_RATE = 48000
PAD_MODES = ("reflect", "constant", "edge", "symmetric")  # those that coqui-tts and NumPy have in common
NORMALISATION = (
    "signal_norm",
    "symmetric_norm",
    "max_norm",
    "clip_norm",
    "min_level_db",
    "ref_level_db",
    "spec_gain",
    "do_amp_to_db_mel",
    "do_amp_to_db_linear",
)


@functools.cache
def reference_signal(sample_rate: int) -> np.ndarray:
    """Two seconds that are spectrally like speech: gliding voice, noise and a quiet part; float32, always the same."""
    noise = np.random.default_rng(0).normal(size=2 * REFERENCE_RATE)
    time = np.arange(len(noise)) / REFERENCE_RATE
    pitch = 140 + 40 * np.sin(2 * np.pi * 0.7 * time)
    pulses = np.diff(np.floor(np.cumsum(pitch) / REFERENCE_RATE), prepend=0.0)
    voiced = np.sin(2 * np.pi * 1.5 * time) > -0.5
    source = 30 * pulses * voiced + np.where(voiced, 0.02, 0.3) * noise
    step = np.exp(-2j * np.pi * np.fft.rfftfreq(len(source)))
    response = np.ones_like(step)
    for formant, bandwidth in ((600, 80), (1400, 120), (2600, 180), (3800, 250)):
        radius = np.exp(-np.pi * bandwidth / REFERENCE_RATE)
        angle = 2 * np.pi * formant / REFERENCE_RATE
        response *= 0.3 + (1 - radius) / (1 - 2 * radius * np.cos(angle) * step + (radius * step) ** 2)
    voice = np.fft.irfft(np.fft.rfft(source) * response)
    loudness = np.where(time < 1.6, 1.0, 0.02)
    signal = (0.5 * loudness * voice / np.abs(voice).max()).astype(np.float32)
    return soxr.resample(signal, REFERENCE_RATE, sample_rate)


def mean_error_db(paired: Pairing) -> float:
    """Mean error in dB of the mel that a pairing makes of the acoustic model's analysis of the reference signal."""
    output, ap = paired.plan.output, paired.ap
    given = reference_signal(paired.sample_rate if output == WAVEFORM else ap.sample_rate)
    if output != WAVEFORM:
        given = _analysed(given, ap, output)
    reference = torch.from_numpy(reference_signal(paired.audio.sample_rate))[None]
    expected = analyse(reference, paired.audio.sample_rate, paired.audio)
    converted = paired.vocoder_input(given)
    n_frames = min(converted.shape[2], expected.shape[2])
    difference = converted[..., :n_frames] - expected[..., :n_frames]
    return DB_PER_NEPER * difference.abs().mean().item()


def _analysed(waveform: np.ndarray, ap: AudioProcessor, output: str) -> np.ndarray:
    """What `ap` makes of a waveform (N,), (T, n); configs may have a padding or preemphasis that it refuses."""
    ap = copy.copy(ap)
    ap.preemphasis = ap.preemphasis or 0.0
    if ap.stft_pad_mode not in PAD_MODES:
        ap.stft_pad_mode = "reflect"
    return (ap.spectrogram(waveform) if output == LINEAR else ap.melspectrogram(waveform)).T


def errors_db(paired: Pairing) -> dict[str, float]:
    """For each approximate setting the mean error in dB that there would be if it alone were different.

    One that coqui-tts does not allow together with the vocoder's other settings is left out.
    """
    found = {}
    for item in paired.plan.with_verdict(Verdict.APPROXIMATE):
        with suppress(ValueError, AssertionError):
            alone = paired if paired.plan.output == WAVEFORM else _with_one_setting(item.name, paired)
            found[item.name] = mean_error_db(alone)
    return found


def _with_one_setting(name: str, paired: Pairing) -> Pairing:
    """A vocoder's own analysis with one setting of an acoustic model; lengths are the same in seconds."""
    ap, audio = paired.ap, paired.audio
    lengths = {key: audio[key] for key in ("fft_size", "win_length", "hop_length")}
    changes = {name: getattr(ap, name)}
    if name == "sample_rate":
        changes = {key: _even(length * ap.sample_rate / audio.sample_rate) for key, length in lengths.items()}
        changes |= {"sample_rate": ap.sample_rate, "mel_fmax": min(top_frequency(audio), ap.sample_rate // 2)}
    elif name == "signal_norm":
        changes = {key: getattr(ap, key) for key in NORMALISATION}
        changes["log_func"] = "np.log10" if ap.base == 10 else "np.log"
    elif name in lengths:
        lengths[name] = _even(getattr(ap, name) * audio.sample_rate / ap.sample_rate)
        if name == "win_length":
            lengths["fft_size"] = max(lengths["win_length"], lengths["fft_size"])
        lengths["win_length"] = min(lengths["win_length"], lengths["fft_size"])
        changes = lengths
    elif name == "mel_fmax":
        changes = {name: min(top_frequency(ap), audio.sample_rate // 2)}
    changed = AudioProcessor(BaseAudioConfig(**{**audio.to_dict(), **changes}))
    return Pairing(Plan(paired.plan.model, paired.plan.output, ()), changed, changed.sample_rate, audio)


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
