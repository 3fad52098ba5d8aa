"""The generator: amplitude and phase spectra from a mel, or a latent, by ConvNeXt v2 blocks, then one inverse STFT.

APNet2 (arXiv 2311.11545), section 2; the pseudo-inverse start of the amplitude is FreeV's (arXiv 2406.08196). Parameter
names are those of the official checkpoints after `weights.official.NAMES`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.network.consistency import FastGriffinLim, MelConsistency
from apnet2_tts_plugin.network.convnext import Backbone, ConvNeXtBlock, RowConv, look_aheads, masked, output_conv
from apnet2_tts_plugin.network.harmonics import NoisePhase, PulseTrain, integrate
from apnet2_tts_plugin.network.pitch import Pitch, PitchPredictor
from apnet2_tts_plugin.network.spectra import AMPLITUDE_FLOOR, ISTFT, Float32Buffers, magnitude, mel_basis


class MelPredictor(nn.Module):
    """Natural-log mel from the latent of a VITS.

    Its first and last convolution are matrix products, as the pitch's are: a mel rounded otherwise in a stream could
    give another pitch.

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to (B, n_mels, T).
    """

    MEAN = -5.0  # what it gives untrained: about the mean of speech

    def __init__(self, n_inputs: int, n_mels: int, sizes: PredictorConfig):
        super().__init__()
        self.backbone = Backbone(n_inputs, sizes, RowConv)
        self.output_conv = output_conv(sizes, n_mels, RowConv)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return masked(self.output_conv(self.backbone(x.transpose(1, 2), mask)), mask).transpose(1, 2)

    def start_at_mean(self) -> None:
        """Let the untrained predictor give the mean; to be called after all weights are drawn."""
        nn.init.constant_(self.output_conv.bias, self.MEAN)


class AmplitudePredictor(nn.Module):
    """Log-amplitude spectrum from the mel (APNet2 paper, section 2.1), or from whatever has n_inputs channels.

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to natural log-amplitude (B, n_bins, T).
    """

    def __init__(self, n_inputs: int, n_bins: int, sizes: PredictorConfig):
        super().__init__()
        self.backbone = Backbone(n_inputs, sizes)
        self.output_conv = output_conv(sizes, n_bins)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output_conv(self.backbone(x.transpose(1, 2), mask)).transpose(1, 2)


class AmplitudeRefiner(Float32Buffers):
    """Log-amplitude spectrum from the mel taken back to linear frequency (FreeV, section 2.2).

    Starts from log(max(|B^+ exp(mel)|, 1e-5)), B^+ the pseudo-inverse of the mel filters, and refines it by ConvNeXt v2
    blocks of width n_bins.

    Shape:
        mel (B, n_mels, T), mask (B, T, 1) or None, to natural log-amplitude (B, n_bins, T).
    """

    def __init__(self, basis: np.ndarray, sizes: PredictorConfig):
        super().__init__()
        self.register_buffer("inverse_basis", torch.from_numpy(np.linalg.pinv(basis)), persistent=False)
        ahead = look_aheads([sizes.kernel_size] * sizes.blocks, sizes.look_ahead)
        self.blocks = nn.ModuleList(ConvNeXtBlock(sizes, frames) for frames in ahead)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        x = masked(self.start(mel).transpose(1, 2), mask)
        for block in self.blocks:
            x = block(x, mask)
        return x.transpose(1, 2)

    def start(self, mel: Tensor) -> Tensor:
        """The log-amplitude (B, n_bins, T) that is refined."""
        with torch.autocast(mel.device.type, enabled=False):
            magnitude = self.inverse_basis @ mel.float().exp()
            return magnitude.abs().clamp(min=AMPLITUDE_FLOOR).log().to(self.blocks[0].norm.weight.dtype)


class PhasePredictor(nn.Module):
    """Pseudo real and imaginary parts, whose angle is the phase spectrum (APNet2 paper, section 2.1).

    Shape:
        x (B, n_inputs, T), mask (B, T, 1) or None, to two tensors (B, n_bins, T).
    """

    def __init__(self, n_inputs: int, n_bins: int, sizes: PredictorConfig):
        super().__init__()
        self.backbone = Backbone(n_inputs, sizes)
        self.real_conv = output_conv(sizes, n_bins)
        self.imag_conv = output_conv(sizes, n_bins)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.backbone(x.transpose(1, 2), mask)
        return self.real_conv(x).transpose(1, 2), self.imag_conv(x).transpose(1, 2)


class HarmonicPhasePredictor(nn.Module):
    """Pseudo real and imaginary parts around the spectrum of pulses, and noise.

    z = (R1 + i I1) P + (R2 + i I2) exp(i noise), with P the spectrum of `harmonics.PulseTrain`, and four predicted
    numbers a bin that begin as 1, 0, `NOISE_SHARE` and 0: the untrained predictor gives pulses, and noise between
    harmonics. With phases alone in place of P all bins between two harmonics would agree, and where the mel shows no
    valleys the sound would gather at the centres of the frames.

    Args:
        n_inputs: Channels of the mel or latent, to which the pitch is added.
        n_bins: Bins of the spectrum.
        sizes: Sizes of the backbone.
        f0_min: The frequency in Hz that log-frequencies are counted from.

    Shape:
        x (B, n_inputs, T), pitch, real and imaginary part of P (B, n_bins, T), noise (B or 1, n_bins, T), mask
        (B, T, 1) or None, to two tensors (B, n_bins, T) in float32.
    """

    NOISE_SHARE = 0.1

    def __init__(self, n_inputs: int, n_bins: int, sizes: PredictorConfig, f0_min: float):
        super().__init__()
        self.n_bins, self.f0_min = n_bins, f0_min
        self.backbone = Backbone(n_inputs + 2, sizes)
        self.output_conv = output_conv(sizes, 4 * n_bins)

    def forward(
        self, x: Tensor, pitch: Pitch, pulses: tuple[Tensor, Tensor], noise: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self.with_pitch(x, pitch).transpose(1, 2)
        return self.combine(self.output_conv(self.backbone(x, mask)).transpose(1, 2), pulses, noise)

    def with_pitch(self, x: Tensor, pitch: Pitch) -> Tensor:
        """The input of the backbone (B, n_inputs + 2, T)."""
        octaves = (pitch.f0 / self.f0_min).log2() * pitch.voiced
        return torch.cat([x, torch.stack([octaves, pitch.voiced], dim=1).to(x.dtype)], dim=1)

    def combine(self, parts: Tensor, pulses: tuple[Tensor, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        """z from the four predicted numbers a bin, (B, 4 n_bins, T)."""
        with torch.autocast(parts.device.type, enabled=False):
            real, imag, noise_real, noise_imag = parts.float().split(self.n_bins, dim=1)
            pulse_real, pulse_imag = pulses
            noise_cos, noise_sin = noise.cos(), noise.sin()
            return (
                real * pulse_real - imag * pulse_imag + noise_real * noise_cos - noise_imag * noise_sin,
                real * pulse_imag + imag * pulse_real + noise_real * noise_sin + noise_imag * noise_cos,
            )

    def start_as_given(self) -> None:
        """Let the untrained predictor give the start; to be called after all weights are drawn."""
        with torch.no_grad():
            bias = self.output_conv.bias.view(4, self.n_bins)
            bias[0] = 1.0
            bias[2] = self.NOISE_SHARE


class Prediction(NamedTuple):
    """What the generator predicts, in float32.

    log_amplitude (B, n_bins, T) is natural, phase (B, n_bins, T) in [-pi, pi], spectrum (B, n_bins, T) complex, and
    waveform (B, (T - 1) * hop_length), behind the consistency iterations if there are any. pitch_logits (B, F, T) over
    the bins of the pitch scale and voicing_logits (B, T) are there with phase_start "pitch", and the natural-log mel
    (B, n_mels, T) where it is predicted from a latent. phasor (B, n_bins, T) is the complex number whose angle is the
    phase before any iterations.
    """

    log_amplitude: Tensor
    phase: Tensor
    spectrum: Tensor
    waveform: Tensor
    pitch_logits: Tensor | None = None
    voicing_logits: Tensor | None = None
    mel: Tensor | None = None
    phasor: Tensor | None = None


class Generator(nn.Module):
    """APNet2's generator, of the sizes in `config`.

    Its input, called mel here, may be a latent (B, n_inputs, T). With amplitude_start "pseudo_inverse" a mel is
    predicted from that first; what comes behind it is a vocoder of mels, and can take the weights of one. With
    phase_start "latent" it is so but for the phase, which is predicted from the latent.
    """

    def __init__(self, config: Apnet2Config):
        super().__init__()
        audio = config.audio
        n_inputs = audio.num_mels if config.predicts_mel else config.n_inputs
        n_bins = audio.fft_size // 2 + 1
        self.hop_length, self.sample_rate, self.n_bins = audio.hop_length, audio.sample_rate, n_bins
        basis = mel_basis(audio.sample_rate, audio.fft_size, audio.num_mels, audio.mel_fmin, audio.mel_fmax)
        if config.amplitude_start == "pseudo_inverse":
            self.amplitude = AmplitudeRefiner(basis, config.amplitude)
        else:
            self.amplitude = AmplitudePredictor(n_inputs, n_bins, config.amplitude)
        self.istft = ISTFT(audio.fft_size, audio.hop_length, audio.win_length)
        iterations = (self.istft, audio.hop_length, config.consistency_iterations)
        keeps_mel = config.consistency_target == "mel"
        self.consistency = MelConsistency(*iterations, basis) if keeps_mel else FastGriffinLim(*iterations)
        self.phase_from_latent = config.phase_start == "latent"
        self.pitch = None
        if config.phase_start == "pitch":
            self.pitch = PitchPredictor(n_inputs, config.pitch, config.f0_min, config.f0_max)
            self.phase = HarmonicPhasePredictor(n_inputs, n_bins, config.phase, config.f0_min)
            self.noise = NoisePhase(n_bins, config.noise_seed)
            self.pulses = PulseTrain(audio.hop_length, audio.sample_rate, self.istft.window)
        else:
            self.phase = PhasePredictor(config.n_inputs if self.phase_from_latent else n_inputs, n_bins, config.phase)
        self.mel = MelPredictor(config.n_inputs, audio.num_mels, config.mel) if config.predicts_mel else None
        self.apply(_init_weights)
        if self.pitch is not None:
            self.phase.start_as_given()
        if self.mel is not None:
            self.mel.start_at_mean()

    def forward(self, mel: Tensor, pitch: Pitch | None = None, phi: Tensor | None = None) -> Prediction:
        """Predict spectra and waveform; for training.

        Args:
            mel: Natural-log mel (B, n_mels, T).
            pitch: That of the recording, with phase_start "pitch"; by default the predicted one.
            phi: Phase of the recording's fundamental (B, T); by default the integral of the pitch.
        """
        latent, predicted_mel = mel, None if self.mel is None else self.mel(mel)
        # no gradient goes back into it: where the logarithm behind the pseudo-inverse is steep, it explodes
        mel = mel if predicted_mel is None else predicted_mel.detach()
        log_amplitude = self.amplitude(mel)
        real, imag, *logits = self._phase(latent if self.phase_from_latent else mel, None, pitch, phi)
        with torch.autocast(mel.device.type, enabled=False):
            log_amplitude = log_amplitude.float()
            phase = torch.atan2(imag.float(), real.float())
            amplitude = log_amplitude.exp()
            spectrum = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
            waveform = self.istft(self.consistency(spectrum, amplitude, mel))
            phasor = torch.complex(real.float(), imag.float())
            pitch_logits, voicing_logits = logits or (None, None)
            return Prediction(
                log_amplitude, phase, spectrum, waveform, pitch_logits, voicing_logits, predicted_mel, phasor
            )

    @torch.no_grad()  # under inference mode a view of a parameter cannot be compiled
    def inference(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform of a mel, the same as `forward` gives but without the angles that only training needs.

        Args:
            mel: Natural-log mel (B, n_mels, T), T >= 2, on the generator's device.
            lengths: True number of frames of each item, (B,), all of them 2 to T; None when all have T.

        Returns:
            Waveform (B, (T - 1) * hop_length) in float32, zero behind the end of each item. Every item is as long and
            as loud as it would be alone.
        """
        mask = None
        if lengths is not None:
            lengths = lengths.to(mel.device)
            frames = torch.arange(mel.shape[2], device=mel.device)
            padded = frames >= lengths[:, None]
            mel = mel.masked_fill(padded[:, None], 0.0)  # whatever was there, be it -inf
            mask = (~padded)[:, :, None].to(mel.dtype)
        latent = mel
        if self.mel is not None:
            mel = self.mel(mel, mask)
        log_amplitude = self.amplitude(mel, mask)
        real, imag, *_ = self._phase(latent if self.phase_from_latent else mel, mask)
        with torch.autocast(mel.device.type, enabled=False):
            amplitude, spectrum = amplitude_and_spectrum(log_amplitude, real, imag)
            mask = None if mask is None else mask.float()
            waveform = self.istft(self.consistency(spectrum, amplitude, mel, mask, lengths), mask)
        if lengths is not None:
            samples = torch.arange(waveform.shape[1], device=mel.device)
            waveform = waveform.masked_fill(samples >= (lengths[:, None] - 1) * self.hop_length, 0.0)
        return waveform

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile `inference` as well as `forward`, with the arguments of `torch.compile`."""
        super().compile(*args, **kwargs)
        self.inference = torch.compile(self.inference, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies are not compiled, as torch has it for `forward`: they would run the original's weights."""
        state = super().__getstate__()
        state.pop("inference", None)
        return state

    def _phase(
        self, mel: Tensor, mask: Tensor | None, pitch: Pitch | None = None, phi: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Pseudo real and imaginary parts and, with phase_start "pitch", the logits of pitch and voicing."""
        if self.pitch is None:
            return self.phase(mel, mask)
        logits, voicing = self.pitch(mel, mask)
        if pitch is None:
            pitch = self.pitch.decode(logits, voicing)
        if mask is not None:
            pitch = pitch._replace(voiced=pitch.voiced * mask[..., 0])
        if phi is None:
            phi = integrate(pitch.f0, self.hop_length, self.sample_rate).float()
        with torch.autocast(mel.device.type, enabled=False):
            pulses = self.pulses(pitch, phi)
        noise = self.noise(mel.shape[2])
        return *self.phase(mel, pitch, (pulses.real, pulses.imag), noise, mask), logits, voicing


def amplitude_and_spectrum(log_amplitude: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """The amplitude, and the complex spectrum with it and the angles of pseudo real and imaginary parts."""
    amplitude, real, imag = log_amplitude.float().exp(), real.float(), imag.float()
    scale = amplitude / magnitude(real, imag, floor=1e-18)  # so no arctangent is needed
    return amplitude, torch.complex(real * scale, imag * scale)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
