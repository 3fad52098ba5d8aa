"""Variations of a spoken sentence: pitch, tempo, room and level.

One function per idea, on mono audio of shape (samples,). ``Variation`` draws how a file is varied, ``apply`` does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import fftconvolve
from scipy.signal.windows import tukey

MALE_PITCH = (0.75, 1.2)
FEMALE_PITCH = (0.75, 1.4)
TEMPO = (0.85, 1.2)
PEAK_DB = (-25.0, -0.5)
REVERBERATION = (0.15, 0.5)
DIRECT_TO_REVERBERANT_DB = (6.0, 18.0)
UNCHANGED_PITCH_SHARE = 0.4
ROOM_SHARE = 0.25

SILENCE_DB = -50.0
MARGIN = 0.15
FADE = 0.01
REFERENCE_BAND = 2000.0
TOP_SLOPE = 3.0
CROSSOVER = 400.0
HANN_POWER = 3 / 8
FIRST_REFLECTION = 0.003


@dataclass(frozen=True)
class Variation:
    """How one file differs from the plain voice.

    Attributes:
        pitch: Factor of fundamental frequency and formants.
        tempo: Factor of the speaking speed that is heard.
        reverberation: Reverberation time of the room in seconds, 0 for no room.
        direct_db: Energy of the direct sound relative to the room's in dB.
        peak_db: Peak level of the file in dB relative to full scale.
    """

    pitch: float
    tempo: float
    reverberation: float
    direct_db: float
    peak_db: float

    @classmethod
    def draw(cls, rng: np.random.Generator, male: bool) -> Variation:
        """Draw a variation for a male or a female voice."""
        low, high = MALE_PITCH if male else FEMALE_PITCH
        pitch = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return cls(
            pitch=1.0 if rng.random() < UNCHANGED_PITCH_SHARE else pitch,
            tempo=rng.uniform(*TEMPO),
            reverberation=rng.uniform(*REVERBERATION) * (rng.random() < ROOM_SHARE),
            direct_db=rng.uniform(*DIRECT_TO_REVERBERANT_DB),
            peak_db=rng.uniform(*PEAK_DB),
        )

    @property
    def speaking_speed(self) -> float:
        """Speed to ask the voice for, so that the tempo is right after the change of pitch."""
        return self.tempo / self.pitch

    def apply(
        self, audio: NDArray, source_rate: float, bandwidth: float, sample_rate: int, rng: np.random.Generator
    ) -> NDArray:
        """Vary the speech of a voice.

        Args:
            audio: Speech, shape (samples,).
            source_rate: Its sample rate in Hz.
            bandwidth: Frequency in Hz up to which it has energy.
            sample_rate: Sample rate of the result in Hz.
            rng: Source of the noise in the room and in the filled band.

        Returns:
            The varied speech, shape (other samples,), without the silence around it.
        """
        audio = change_pitch(trim(audio, source_rate), source_rate, self.pitch, sample_rate)
        audio = fill_top(audio, bandwidth * self.pitch, sample_rate, rng)
        if self.reverberation:
            audio = add_room(audio, sample_rate, self.reverberation, self.direct_db, rng)
        return set_peak(audio, self.peak_db)


def trim(audio: NDArray, sample_rate: float) -> NDArray:
    """Cut silence, SILENCE_DB or more below the peak, to at most MARGIN seconds at both ends, and fade these ends."""
    loud = np.flatnonzero(np.abs(audio) > np.abs(audio).max() * 10 ** (SILENCE_DB / 20))
    if not loud.size:
        return audio
    margin = round(MARGIN * sample_rate)
    audio = audio[max(loud[0] - margin, 0) : loud[-1] + 1 + margin]
    return audio * tukey(len(audio), alpha=min(2 * FADE * sample_rate / len(audio), 1))


def change_pitch(audio: NDArray, source_rate: float, factor: float, sample_rate: int) -> NDArray:
    """Play audio ``factor`` times as fast, which multiplies pitch and formants, and resample it to ``sample_rate``."""
    return soxr.resample(audio, source_rate * factor, sample_rate, quality="VHQ")


def fill_top(audio: NDArray, cutoff: float, sample_rate: int, rng: np.random.Generator) -> NDArray:
    """Fill the empty band above ``cutoff`` Hz with noise that follows the band just below it.

    Speech is mostly noise up there, in bursts at the rate of the pitch. The noise takes its envelope from a Hann-shaped
    band of REFERENCE_BAND Hz below the cutoff and falls by TOP_SLOPE dB per kHz from the middle of that band on. Both
    meet over CROSSOVER Hz: a sharp edge would ring through the pauses.
    """
    nyquist = sample_rate / 2
    if cutoff >= nyquist:
        return audio
    frequencies = np.fft.rfftfreq(len(audio), 1 / sample_rate)
    spectrum = np.fft.rfft(audio)
    hann = np.sin(np.pi * np.clip((cutoff - frequencies) / REFERENCE_BAND, 0, 1)) ** 2
    band = np.fft.irfft(spectrum * hann, len(audio))
    band_power = gaussian_filter1d(band**2, sigma=0.0005 * sample_rate) * nyquist / (HANN_POWER * REFERENCE_BAND)
    noise = np.fft.rfft(np.sqrt(band_power) * rng.standard_normal(len(audio)))
    slope = 10 ** (-TOP_SLOPE / 20 * (frequencies - cutoff + REFERENCE_BAND / 2) / 1000)
    turn = np.pi / 2 * np.clip((frequencies - cutoff + CROSSOVER) / CROSSOVER, 0, 1)
    return np.fft.irfft(spectrum * np.cos(turn) + noise * slope * np.sin(turn), len(audio))


def add_room(
    audio: NDArray, sample_rate: int, reverberation: float, direct_db: float, rng: np.random.Generator
) -> NDArray:
    """Add a simple room, an impulse followed by decaying noise, and keep length and RMS level.

    Args:
        audio: Shape (samples,).
        sample_rate: In Hz.
        reverberation: Time in seconds in which the room's sound decays by 60 dB.
        direct_db: Energy of the impulse relative to that of the noise in dB.
        rng: Source of the noise.

    Returns:
        Shape (samples,).
    """
    time = np.arange(1, round(reverberation * sample_rate)) / sample_rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / reverberation) * (time > FIRST_REFLECTION)
    tail *= 10 ** (-direct_db / 20) / np.linalg.norm(tail)
    wet = fftconvolve(audio, np.concatenate([[1.0], tail]))[: len(audio)]
    return wet * (np.linalg.norm(audio) / max(np.linalg.norm(wet), 1e-12))


def set_peak(audio: NDArray, peak_db: float) -> NDArray:
    """Scale audio to a peak level in dB relative to full scale."""
    return audio * (10 ** (peak_db / 20) / max(np.abs(audio).max(), 1e-12))
