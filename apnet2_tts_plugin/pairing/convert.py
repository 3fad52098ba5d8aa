"""From an acoustic model's output to the vocoder's input, as a `Plan` says: a mel of its own analysis, or a latent.

A spectrogram (T, n) is converted in this order: its scale exactly (`natural_log`), its bands approximately where they
differ (`BandProjection`), its frame rate by interpolation (`change_frame_rate`). A finished waveform is analysed as a
recording would be (`analyse`). Logarithms are natural, frequencies in Hz, lengths in samples.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin.audio import at_rate
from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.network.spectra import MEL_FLOOR, LogMel, mel_basis
from apnet2_tts_plugin.pairing.plan import (
    LATENT,
    LINEAR,
    MEL,
    WAVEFORM,
    Plan,
    Verdict,
    make_plan,
    waveform_sample_rate,
)
from apnet2_tts_plugin.pairing.vits import LatentDecoder, finite, with_decoder


class Pairing:
    """An acoustic model and a vocoder that it can be followed by.

    Args:
        plan: What has to be done.
        ap: The acoustic model's audio processor; None for a model that has none.
        sample_rate: Sample rate of the waveforms that the acoustic model makes.
        audio: The vocoder's audio config.

    Raises:
        PairingError: if the plan has something impossible in it.
    """

    def __init__(self, plan: Plan, ap: AudioProcessor | None, sample_rate: int, audio):
        self.plan = plan
        self.ap = ap
        self.sample_rate = sample_rate
        self.audio = audio
        if impossible := plan.with_verdict(Verdict.IMPOSSIBLE):
            reasons = [
                f"{item.name} is {item.acoustic}, expected {item.vocoder} ({item.remark})" for item in impossible
            ]
            raise PairingError(f"{plan.model} cannot be followed by this vocoder: {'; '.join(reasons)}")
        self.n_channels = 0
        if plan.output in (MEL, LINEAR):
            self.n_channels = ap.num_mels if plan.output == MEL else ap.fft_size // 2 + 1
            self.bands = BandProjection(ap, audio, plan.output)

    def vocoder_input(self, output: Tensor | np.ndarray) -> Tensor:
        """What the vocoder needs for one sentence.

        Args:
            output: What the plan says: the sentence's spectrogram (T, n) as scaled for the acoustic model, or its
                waveform (N,), (1, N) or (1, 1, N).

        Returns:
            Natural-log mel (1, n_mels, T'), float32 on the CPU, of at least two frames.

        Raises:
            PairingError: if the output is empty, not finite, or not what the plan says.
        """
        output = torch.as_tensor(output).detach().cpu().float()
        shape = tuple(output.shape)
        if output.numel() == 0:
            raise PairingError(f"{self.plan.model} gave nothing to vocode: shape {shape}")
        if not output.isfinite().all():
            raise PairingError(f"{self.plan.model} gave NaN or infinite values: its weights or its input are broken")
        if output.ndim == 2 and shape[1] == self.n_channels:
            return _two_frames(self._convert(output.numpy()))
        if self.plan.output == WAVEFORM and output.numel() == max(shape):
            return analyse(output.reshape(1, -1), self.sample_rate, self.audio)
        expected = "a waveform" if self.plan.output == WAVEFORM else f"a {self.plan.output} (T, {self.n_channels})"
        raise PairingError(f"{self.plan.model} gave an output of shape {shape}, expected {expected}")

    def acoustic_model(self, model: nn.Module, vocoder: nn.Module) -> nn.Module:
        """The model to call: `model` itself, or for a latent vocoder a VITS like it that has the vocoder as decoder."""
        if self.plan.output != LATENT:
            return model
        return with_decoder(model, LatentDecoder(vocoder))

    def vocode(self, output: Tensor | np.ndarray, vocoder: nn.Module) -> Tensor | np.ndarray:
        """Waveform (1, 1, N) of what `acoustic_model` gave for a sentence, or that itself if it is vocoded already.

        Raises:
            PairingError: if it cannot be vocoded, see `vocoder_input`, or the vocoder gives no finite waveform.
        """
        if self.plan.output == LATENT:
            return output
        return finite(vocoder.inference(self.vocoder_input(output).to(next(vocoder.parameters()).device)))

    def _convert(self, spectrogram: np.ndarray) -> Tensor:
        log_mel = self.bands(natural_log(spectrogram, self.ap, self.plan.output))
        ratio = (self.audio.sample_rate * self.ap.hop_length) / (self.ap.sample_rate * self.audio.hop_length)
        return torch.from_numpy(change_frame_rate(log_mel, ratio).astype(np.float32)).unsqueeze(0)


def pair(tts_model, vocoder_config) -> Pairing:
    """Pair a loaded acoustic or voice conversion model of coqui's with a vocoder of this configuration.

    Raises:
        PairingError: if they do not go together.
    """
    config, ap = tts_model.config, getattr(tts_model, "ap", None)
    return pair_configs(config, ap, vocoder_config)


def pair_configs(tts_config, ap: AudioProcessor | None, vocoder_config) -> Pairing:
    """Pair an acoustic model of this configuration and audio processor with a vocoder of that one.

    Raises:
        PairingError: if they do not go together.
    """
    plan = make_plan(tts_config, ap, vocoder_config)
    sample_rate = 0 if plan.output == LATENT else waveform_sample_rate(tts_config.audio)
    return Pairing(plan, ap, sample_rate, vocoder_config.audio)


def natural_log(spectrogram: np.ndarray, ap: AudioProcessor, output: str = MEL) -> np.ndarray:
    """Undo coqui's scaling: (T, n) to the natural logarithm of the magnitude, (n, T), at least log(1e-5).

    With S the denormalised spectrogram, that is S ln(base) / gain, or ln(S) where the model has no logarithm in it.
    """
    scaled = ap.denormalize(spectrogram.T.astype(np.float64))
    if ap.do_amp_to_db_linear if output == LINEAR else ap.do_amp_to_db_mel:
        natural = scaled * (np.log(ap.base) / ap.spec_gain)
    else:
        natural = np.log(np.maximum(scaled, MEL_FLOOR))
    return np.maximum(natural, np.log(MEL_FLOOR))


class BandProjection:
    """A log-spectrogram over the bands of an acoustic model, (n, T), to one over the vocoder's, (n_mels, T).

    A linear spectrogram is filtered. Mel bands cannot be taken apart, so that from them it is an estimate:
    log(max(B' R (max(B^+ exp(log_mel), 0) / |H|), 1e-5)), with B^+ the pseudo-inverse of the acoustic model's mel
    filters, H the frequency response of its preemphasis, R the step from its grid of frequencies to the vocoder's, and
    B' the vocoder's filters. Noise of power density P(f) has the mean squared magnitude sample_rate * P(f) * sum(w^2)
    under a window w, whose sum of squares grows as its length: magnitudes are scaled by the root of the ratio of
    sample_rate * win_length. Those of a voice grow as sum(w) instead, which is 1 dB or so more. Where the bands are
    equal, nothing else is done.
    """

    def __init__(self, ap: AudioProcessor, audio, output: str = MEL):
        filters = ap.mel_basis.astype(np.float64)  # in single precision the inverse is off by a percent
        own = mel_basis(audio.sample_rate, audio.fft_size, audio.num_mels, audio.mel_fmin, audio.mel_fmax)
        self.gain = np.sqrt(audio.sample_rate * audio.win_length / (ap.sample_rate * ap.win_length))
        is_same = output == MEL and own.shape == filters.shape and np.allclose(own, filters, atol=1e-6)
        self.is_same = is_same and not ap.preemphasis
        if self.is_same:
            return
        self.to_bins = np.linalg.pinv(filters) if output == MEL else None
        step = frequency_interpolation(ap.sample_rate, ap.fft_size, audio.sample_rate, audio.fft_size)
        self.to_bands = self.gain * (own @ step) / preemphasis_response(ap)

    def __call__(self, log_spectrogram: np.ndarray) -> np.ndarray:
        if self.is_same:
            return np.maximum(log_spectrogram + np.log(self.gain), np.log(MEL_FLOOR))
        magnitude = np.exp(log_spectrogram)
        if self.to_bins is not None:
            magnitude = np.maximum(self.to_bins @ magnitude, 0.0)
        return np.log(np.maximum(self.to_bands @ magnitude, MEL_FLOOR))


def preemphasis_response(ap: AudioProcessor) -> np.ndarray:
    """|1 - a exp(-j w)| at the frequencies of the FFT, (n_bins,), for the preemphasis a; 1 without any."""
    angle = np.linspace(0, np.pi, ap.fft_size // 2 + 1)
    return np.abs(1 - (ap.preemphasis or 0.0) * np.exp(-1j * angle))


def frequency_interpolation(sample_rate: int, fft_size: int, new_sample_rate: int, new_fft_size: int) -> np.ndarray:
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
    position = np.arange(round(last * ratio) + 1) / ratio
    return np.stack([np.interp(position, np.arange(last + 1), band) for band in log_mel])


def analyse(waveform: Tensor, sample_rate: int, audio) -> Tensor:
    """A waveform (B, N) at `sample_rate`, on the CPU, to the vocoder's log-mel (B, n_mels, T), T = N' // hop + 1.

    It is resampled to N' samples where the rates differ, and padded with silence where it is too short to analyse.
    """
    resampled = [at_rate(item, sample_rate, audio.sample_rate) for item in waveform.numpy()]
    waveform = torch.from_numpy(np.stack(resampled))
    shortest = audio.fft_size // 2 + 1  # what the reflection at the edges takes
    waveform = F.pad(waveform, (0, max(0, shortest - waveform.shape[1])))
    return LogMel.from_audio_config(audio)(waveform)


def _two_frames(log_mel: Tensor) -> Tensor:
    """A single frame twice, because T frames make (T - 1) * hop samples; anything longer as it is."""
    return log_mel.expand(-1, -1, 2) if log_mel.shape[2] == 1 else log_mel
