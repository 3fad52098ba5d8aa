"""The generator as a module that a graph is made of: real numbers, no random ones, and no mask."""

import torch
from torch import Tensor, nn

from apnet2_tts_plugin.export.spectra import RealSpectra
from apnet2_tts_plugin.network.consistency import FLOOR, MOMENTUM, MelConsistency
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.network.harmonics import integrate


class GraphGenerator(nn.Module):
    """What `Generator.inference` does to a batch of mels of one length, in operations that ONNX has.

    Args:
        generator: The generator, in float32; its weights are shared.

    Shape:
        mel (B, n_inputs, T), T >= 2, to waveform (B, (T - 1) * hop_length) and, with phase_start "pitch", f0 in Hz and
        voiced as 0 or 1, (B, T) each.
    """

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator
        self.spectra = RealSpectra(generator.istft)

    def forward(self, mel: Tensor) -> tuple[Tensor, ...]:
        latent = mel
        if self.generator.mel is not None:
            mel = self.generator.mel(mel)
        amplitude = self.generator.amplitude(mel).exp()
        real, imag, *pitch = self._phase(latent if self.generator.phase_from_latent else mel)
        real, imag = _with_amplitude(amplitude, real, imag)
        return self.spectra.waveform(*self._consistent(real, imag, amplitude, mel)), *pitch

    def _phase(self, mel: Tensor) -> tuple[Tensor, ...]:
        """Pseudo real and imaginary parts, and the pitch that they start from, if they do."""
        generator = self.generator
        if generator.pitch is None:
            return generator.phase(mel)
        pitch = generator.pitch.decode(*generator.pitch(mel))
        phi = integrate(pitch.f0, generator.hop_length, generator.sample_rate).float()
        pulses = tuple(part.transpose(1, 2) for part in self.spectra.dft(generator.pulses.frames(pitch, phi)))
        return *generator.phase(mel, pitch, pulses, generator.noise(mel.shape[2])), *pitch

    def _consistent(self, real: Tensor, imag: Tensor, amplitude: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """The spectrum after the consistency iterations."""
        consistency = self.generator.consistency
        if isinstance(consistency, MelConsistency):
            for _ in range(consistency.iterations):
                real, imag = self.spectra.spectrum(self.spectra.waveform(real, imag))
                gain = consistency.gain(_size(real, imag), amplitude, mel)
                real, imag = real * gain, imag * gain
            return real, imag
        momentum = MOMENTUM / (1 + MOMENTUM)
        before_real, before_imag = torch.zeros_like(real), torch.zeros_like(imag)
        for _ in range(consistency.iterations):
            new_real, new_imag = self.spectra.spectrum(self.spectra.waveform(real, imag))
            real, imag = _with_amplitude(
                amplitude, new_real - momentum * before_real, new_imag - momentum * before_imag
            )
            before_real, before_imag = new_real, new_imag
        return real, imag


def _with_amplitude(amplitude: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of these angles, with another amplitude."""
    scale = amplitude / _size(real, imag)
    return real * scale, imag * scale


def _size(real: Tensor, imag: Tensor) -> Tensor:
    return (real.square() + imag.square()).sqrt().clamp(min=FLOOR)
