"""What an acoustic model and a vocoder have to agree on, setting by setting, and what is done where they do not.

Names of settings are those of coqui's audio configs. Frequencies are in Hz, lengths in samples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.network.spectra import MEL_FLOOR
from apnet2_tts_plugin.pairing.vits import mismatch

MEL, LINEAR, WAVEFORM, LATENT, WAVLM = "mel", "linear spectrogram", "waveform", "latent", "WavLM features"
OUTPUTS = {
    "tacotron": LINEAR,
    "vits": WAVEFORM,
    "delightful_tts": WAVEFORM,
    "xtts": WAVEFORM,
    "bark": WAVEFORM,
    "tortoise": WAVEFORM,
    "freevc": WAVEFORM,
    "openvoice": WAVEFORM,
    "knnvc": WAVLM,
}

# Magnitudes of speech at full scale in dB: softer than the bottom is silence, and few peaks are louder than the top.
SPEECH_RANGE = {MEL: (-80.0, 20.0), LINEAR: (-80.0, 40.0)}


class Verdict(IntEnum):
    """How well one side's setting serves the other, the best first."""

    SAME = 0
    EXACT = 1  # converted without loss
    APPROXIMATE = 2
    IMPOSSIBLE = 3


@dataclass(frozen=True)
class Item:
    """One setting: its values on both sides, the verdict and, unless it is the same, what is done or what is wrong."""

    name: str
    acoustic: str
    vocoder: str
    verdict: Verdict
    remark: str = ""


@dataclass(frozen=True)
class Plan:
    """How the output of an acoustic model becomes the input of a vocoder.

    Attributes:
        model: coqui's name of the acoustic model's architecture.
        output: What the vocoder is given of it: `MEL`, `LINEAR`, `WAVEFORM`, `LATENT` or `WAVLM`.
        items: All settings that matter.
    """

    model: str
    output: str
    items: tuple[Item, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all settings."""
        return max((item.verdict for item in self.items), default=Verdict.SAME)

    def with_verdict(self, verdict: Verdict) -> list[Item]:
        """The settings that have this verdict."""
        return [item for item in self.items if item.verdict == verdict]


def make_plan(tts_config, ap: AudioProcessor | None, vocoder_config) -> Plan:
    """Compare an acoustic model with a vocoder.

    Args:
        tts_config: The acoustic model's configuration.
        ap: Its audio processor, whose settings are those in effect; None for a model that has none.
        vocoder_config: The vocoder's configuration, an `Apnet2Config`.
    """
    model = tts_config.model.lower()  # coqui finds its models in any case
    output = OUTPUTS.get(model, MEL if ap is not None else WAVEFORM)
    audio = vocoder_config.audio
    if vocoder_config.input_features == "latent":
        return Plan(model, LATENT, tuple(_latent_items(tts_config, vocoder_config)))
    if output == WAVLM:
        item = Item("output", WAVLM, MEL, Verdict.IMPOSSIBLE, "there is no mel to convert: use its own vocoder")
        return Plan(model, output, (item,))
    if output == WAVEFORM:
        return Plan(model, output, (_waveform_rate(tts_config.audio, audio),))
    return Plan(model, output, (*_frame_items(ap, audio), *_band_items(ap, audio, output), *_scale_items(ap, output)))


def check_output(model: str) -> None:
    """Refuse a model whose output is of no use to any APNet2, by its name alone, before it is downloaded.

    Raises:
        PairingError: if it is one of these.
    """
    if OUTPUTS.get(model) == WAVLM:
        raise PairingError(f"{model} gives {WAVLM}, no mel, to a vocoder of its own: leave --vocoder_name out")


def waveform_sample_rate(audio) -> int:
    """Sample rate of the waveforms that a model with the audio config `audio` makes."""
    return audio.get("output_sample_rate", None) or audio["sample_rate"]


def top_frequency(audio) -> float:
    """Upper edge of the mel bands of an audio config or processor."""
    return float(audio.mel_fmax or audio.sample_rate / 2)


def _latent_items(tts_config, vocoder_config) -> Iterator[Item]:
    if tts_config.model.lower() != "vits":
        remark = "only a VITS has the latent that this vocoder takes"
        yield Item("input_features", tts_config.model, "latent of a VITS", Verdict.IMPOSSIBLE, remark)
        return
    reasons = mismatch(tts_config, vocoder_config)
    for reason in reasons:
        yield Item("input_features", "VITS", "latent of a VITS", Verdict.IMPOSSIBLE, reason)
    if not reasons:
        channels = f"{vocoder_config.n_inputs} channels"
        yield Item("input_features", channels, channels, Verdict.SAME)


def _waveform_rate(tts_audio, audio) -> Item:
    rate = waveform_sample_rate(tts_audio)
    remark = f"the waveform is resampled{_missing_top(rate / 2, audio)}"
    return _equal("sample_rate", rate, audio.sample_rate, remark)


def _frame_items(ap: AudioProcessor, audio) -> Iterator[Item]:
    """Sample rate, and what follows in seconds: FFT, window and hop."""
    remark = f"frequencies are interpolated{_missing_top(ap.sample_rate / 2, audio)}"
    yield _equal("sample_rate", ap.sample_rate, audio.sample_rate, remark)
    for name, remark in (
        ("fft_size", "frequencies are interpolated"),
        ("win_length", "only the level is corrected"),
        ("hop_length", "frames are interpolated in time"),
    ):
        lengths = getattr(ap, name), audio[name]
        is_same = lengths[0] * audio.sample_rate == lengths[1] * ap.sample_rate
        verdict = Verdict.SAME if is_same else Verdict.APPROXIMATE
        rates = ap.sample_rate, audio.sample_rate
        texts = [f"{n} ({1000 * n / rate:.1f} ms)" for n, rate in zip(lengths, rates, strict=True)]
        yield Item(name, *texts, verdict, "" if is_same else remark)
    yield _equal("stft_pad_mode", ap.stft_pad_mode, "reflect", "the first and last frames differ")


def _band_items(ap: AudioProcessor, audio, output: str) -> Iterator[Item]:
    if output == LINEAR:
        for name in ("num_mels", "mel_fmin", "mel_fmax"):
            yield Item(name, "linear", _text(audio[name]), Verdict.EXACT, "the vocoder's mel filters are applied")
    else:
        remark = "projected onto other bands"
        yield _equal("num_mels", ap.num_mels, audio.num_mels, remark)
        yield _equal("mel_fmin", float(ap.mel_fmin or 0.0), float(audio.mel_fmin), remark)
        top = top_frequency(ap)
        yield _equal("mel_fmax", top, top_frequency(audio), f"{remark}{_missing_top(top, audio)}")
    if abs(ap.preemphasis or 0) < 1:
        yield _equal("preemphasis", float(ap.preemphasis or 0), 0.0, "divided out of the spectrum")
    else:
        remark = "expected a number between -1 and 1: it cannot be undone"
        yield Item("preemphasis", _text(ap.preemphasis), "0", Verdict.IMPOSSIBLE, remark)


def _scale_items(ap: AudioProcessor, output: str) -> Iterator[Item]:
    """Logarithm, gain, normalisation and statistics."""
    switch = "do_amp_to_db_linear" if output == LINEAR else "do_amp_to_db_mel"
    if not getattr(ap, switch):
        yield Item(switch, "False", "True", Verdict.EXACT, "the logarithm is taken")
    elif not hasattr(ap, "base"):
        yield Item("log_func", "unknown", "np.log", Verdict.IMPOSSIBLE, "expected 'np.log' or 'np.log10'")
    else:
        name = "np.log10" if ap.base == 10 else "np.log"
        yield _equal("log_func", name, "np.log", "the base is changed", Verdict.EXACT)
        yield _equal("spec_gain", ap.spec_gain, 1, "divided out", Verdict.EXACT)
    if not ap.signal_norm:
        yield Item("signal_norm", "False", "False", Verdict.SAME)
    elif hasattr(ap, "mel_scaler"):
        yield _statistics(ap, output)
    else:
        yield _normalisation(ap, output)


def _normalisation(ap: AudioProcessor, output: str) -> Item:
    values = f"{-ap.max_norm if ap.symmetric_norm else 0:g} to {ap.max_norm:g}"
    if not ap.clip_norm:
        return Item("signal_norm", values, "False", Verdict.EXACT, "undone")
    bottom, top = known_range(ap, output)
    needed_bottom, needed_top = SPEECH_RANGE[output]
    remark = f"undone; what is below {bottom:.0f} dB or above {top:.0f} dB was cut in its training"
    is_wide = bottom <= needed_bottom and top >= needed_top
    return Item("signal_norm", values, "False", Verdict.EXACT if is_wide else Verdict.APPROXIMATE, remark)


def known_range(ap: AudioProcessor, output: str) -> tuple[float, float]:
    """Lowest and highest magnitude in dB that a clipped, normalised spectrogram can have."""
    ends = ap.min_level_db + ap.ref_level_db, ap.ref_level_db
    if ap.do_amp_to_db_linear if output == LINEAR else ap.do_amp_to_db_mel:
        return tuple(end * 20 * math.log10(ap.base) / ap.spec_gain for end in ends)
    return tuple(20 * math.log10(max(end, MEL_FLOOR)) for end in ends)


def _statistics(ap: AudioProcessor, output: str) -> Item:
    path, scaler = str(ap.stats_path), ap.mel_scaler
    if output == LINEAR:
        remark = "coqui-tts cannot undo the statistics of a linear spectrogram"
        return Item("stats_path", path, "None", Verdict.IMPOSSIBLE, remark)
    shapes = {np.shape(scaler.mean_), np.shape(scaler.scale_)}
    if shapes != {(ap.num_mels,)} or not np.isfinite([scaler.mean_, scaler.scale_]).all():
        remark = f"expected a finite mean and deviation of each of {ap.num_mels} bands in it"
        return Item("stats_path", path, "None", Verdict.IMPOSSIBLE, remark)
    return Item("stats_path", path, "None", Verdict.EXACT, "mean and variance are undone")


def _equal(name: str, acoustic, vocoder, remark: str, otherwise: Verdict = Verdict.APPROXIMATE) -> Item:
    """`SAME` if the values are equal, otherwise another verdict with a remark."""
    if acoustic == vocoder:
        return Item(name, _text(acoustic), _text(vocoder), Verdict.SAME)
    return Item(name, _text(acoustic), _text(vocoder), otherwise, remark)


def _missing_top(top: float, audio) -> str:
    return f"; nothing above {top:g} Hz will sound" if top < top_frequency(audio) else ""


def _text(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
