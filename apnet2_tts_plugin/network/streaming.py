"""The generator on a mel that comes in pieces.

Where no layer pools over the sentence, every convolution keeps the frames that its kernel still reaches: nothing is
computed twice, and the waveform is that of the whole mel. Only the spectra of the last frames go through the inverse
STFT again, and through the iterations before it. A generator that pools, as the published one does, vocodes windows
that overlap. In here frames are the second dimension, (B, T, C).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from apnet2_tts_plugin.network.convnext import Backbone, ConvNeXtBlock, FrameConv, GlobalResponseNorm
from apnet2_tts_plugin.network.generator import AmplitudeRefiner, Generator, amplitude_and_spectrum
from apnet2_tts_plugin.network.harmonics import integrate
from apnet2_tts_plugin.network.pitch import Pitch

# Of a matrix product. Fewer of them the libraries compute in another order; and a frequency rounded to the other side,
# once, shifts the phases of all that follows.
MIN_ROWS = 16

# Of a generator that pools: frames that a window brings to hear, and those before and after them.
WINDOW, CONTEXT = 128, 32


def open_stream(generator: Generator, window: int = WINDOW) -> "GeneratorStream | WindowStream":
    """What vocodes one mel in pieces with this generator; `window` is for those that pool, as in `WindowStream`."""
    pools = any(isinstance(module, GlobalResponseNorm) for module in generator.modules())
    return WindowStream(generator, window) if pools else GeneratorStream(generator)


class Frames:
    """Frames that wait until those of other sources have come as well.

    Args:
        n_sources: Number of sources.
    """

    def __init__(self, n_sources: int):
        self.waiting: list[Tensor | None] = [None] * n_sources

    def push(self, *arrived: Tensor) -> list[Tensor]:
        """Take what each source has next, (B, any T, any C), and give as many frames of each as all have."""
        for i, frames in enumerate(arrived):
            before = self.waiting[i]
            self.waiting[i] = frames if before is None else torch.cat([before, frames], dim=1)
        n_common = min(frames.shape[1] for frames in self.waiting)
        common = [frames[:, :n_common] for frames in self.waiting]
        self.waiting = [frames[:, n_common:] for frames in self.waiting]
        return common


class ConvStream:
    """A convolution over frames; the whole input is padded with zeros at both ends.

    Args:
        conv: The convolution, of all its groups or depthwise.
    """

    def __init__(self, conv: FrameConv):
        self.conv = conv
        self.ahead, self.behind = conv.look_ahead, conv.behind
        self.kept: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """The outputs that are complete now, and the inputs of the same frames; with `last` all that are left."""
        if self.kept is None:
            self.kept = x.new_zeros(len(x), self.behind, x.shape[2])
        ends = [x.new_zeros(len(x), self.ahead, x.shape[2])] if last else []
        x = torch.cat([self.kept, x, *ends], dim=1)
        n_complete = max(x.shape[1] - self.behind - self.ahead, 0)
        self.kept = x[:, n_complete:]
        same_frames = x[:, self.behind : self.behind + n_complete]
        if not n_complete:
            return x.new_zeros(len(x), 0, self.conv.out_channels), same_frames
        x = F.pad(x, (0, 0, 0, max(MIN_ROWS - n_complete, 0)))
        return self.conv.inside(x)[:, :n_complete], same_frames


class BlockStream:
    """A ConvNeXt v2 block that does not pool over the frames."""

    def __init__(self, block: ConvNeXtBlock):
        self.block = block
        self.depthwise = ConvStream(block.depthwise)

    def push(self, x: Tensor, last: bool) -> Tensor:
        hidden, x = self.depthwise.push(x, last)
        n_frames = hidden.shape[1]
        hidden = F.pad(hidden, (0, 0, 0, max(MIN_ROWS - n_frames, 0)))
        return self.block.mix(hidden)[:, :n_frames] + x


class BackboneStream:
    """A backbone and the convolutions behind it."""

    def __init__(self, backbone: Backbone, *output_convs: FrameConv):
        self.backbone = backbone
        self.input_conv = ConvStream(backbone.input_conv)
        self.blocks = [BlockStream(block) for block in backbone.blocks]
        self.output_convs = [ConvStream(conv) for conv in output_convs]

    def push(self, x: Tensor, last: bool) -> list[Tensor]:
        x = self.backbone.input_norm(self.input_conv.push(x.to(self.backbone.dtype), last)[0])
        for block in self.blocks:
            x = block.push(x, last)
        x = self.backbone.output_norm(x)
        return [conv.push(x, last)[0] for conv in self.output_convs]


class RefinerStream:
    """`AmplitudeRefiner`."""

    def __init__(self, refiner: AmplitudeRefiner):
        self.refiner = refiner
        self.blocks = [BlockStream(block) for block in refiner.blocks]

    def push(self, mel: Tensor, last: bool) -> list[Tensor]:
        x = self.refiner.start(mel.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block.push(x, last)
        return [x]


class PulseStream:
    """`PulseTrain` of the pitch: its phase goes on where it was, and the slope of a frame waits for the next one."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.kept: Pitch | None = None  # the frame that waits, and the one before
        self.phi: Tensor | None = None  # of the first of them, (B,)
        self.n_behind = 0  # frames among the kept ones whose pulses are out

    def push(self, pitch: Pitch, last: bool) -> Tensor:
        """The spectra (B, T, n_bins) that are complete now; with `last` all that are left."""
        if self.kept is not None:
            pitch = Pitch(*(torch.cat(pair, dim=1) for pair in zip(self.kept, pitch, strict=True)))
        n_frames, generator = pitch.f0.shape[1], self.generator
        complete = slice(self.n_behind, n_frames if last else n_frames - 1)
        if complete.start >= complete.stop:
            self.kept = pitch
            return torch.zeros(len(pitch.f0), 0, generator.n_bins, dtype=torch.complex64, device=pitch.f0.device)
        phi = integrate(pitch.f0, generator.hop_length, generator.sample_rate, self.phi)
        spectra = generator.pulses(pitch, phi.float())[:, :, complete].transpose(1, 2)
        first = complete.stop - 1
        self.kept, self.phi, self.n_behind = Pitch(*(part[:, first:] for part in pitch)), phi[:, first], 1
        return spectra


class PitchPhaseStream:
    """Pitch, its pulses, and `HarmonicPhasePredictor`."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.pitch = BackboneStream(generator.pitch.backbone, generator.pitch.output_conv)
        self.phase = BackboneStream(generator.phase.backbone, generator.phase.output_conv)
        self.pulses = PulseStream(generator)
        self.mel_and_logits, self.parts_and_start = Frames(2), Frames(3)
        self.n_frames = 0  # that have their noise

    def push(self, mel: Tensor, last: bool) -> list[Tensor]:
        generator = self.generator
        mel, logits = self.mel_and_logits.push(mel, *self.pitch.push(mel, last))
        pitch = generator.pitch.decode(*generator.pitch.split(logits.transpose(1, 2)))
        given = generator.phase.with_pitch(mel.transpose(1, 2), pitch).transpose(1, 2)
        noise = generator.noise(mel.shape[1], self.n_frames).transpose(1, 2)
        self.n_frames += mel.shape[1]
        frames = self.parts_and_start.push(*self.phase.push(given, last), self.pulses.push(pitch, last), noise)
        parts, pulses, noise = (part.transpose(1, 2) for part in frames)
        return [part.transpose(1, 2) for part in generator.phase.combine(parts, (pulses.real, pulses.imag), noise)]


class WaveformStream:
    """The consistency iterations and the inverse STFT, which overlap the frames.

    A sample depends on `reach` frames to either side of its own: half a window for the inverse STFT, and for each
    iteration that and half a window for the STFT.
    """

    def __init__(self, generator: Generator):
        self.generator = generator
        half_window = -(-generator.istft.n_fft // (2 * generator.hop_length))
        self.reach = generator.consistency.iterations * (2 * half_window - 1) + half_window
        self.kept: tuple[Tensor, ...] | None = None
        self.n_behind = 0  # frames among the kept ones whose samples are out

    def push(self, spectrum: Tensor, amplitude: Tensor, mel: Tensor, last: bool) -> Tensor:
        """Samples (B, N) that are complete now; with `last` all that are left."""
        frames = spectrum, amplitude, mel
        if self.kept is not None:
            frames = tuple(torch.cat(pair, dim=1) for pair in zip(self.kept, frames, strict=True))
        n_frames = frames[0].shape[1]
        end = n_frames - 1 if last else n_frames - self.reach
        if end <= self.n_behind:
            self.kept = frames
            return torch.zeros(len(spectrum), 0, device=spectrum.device)
        generator, hop_length = self.generator, self.generator.hop_length
        waveform = generator.istft(generator.consistency(*(part.transpose(1, 2) for part in frames)))
        waveform = waveform[:, self.n_behind * hop_length : end * hop_length]
        first = max(end - self.reach, 0)
        self.kept, self.n_behind = tuple(part[:, first:] for part in frames), end - first
        return waveform


class GeneratorStream:
    """A generator without pooling over the sentence, on pieces of a mel: the waveform of the whole, piece by piece.

    Args:
        generator: The generator, none of whose blocks has a response norm; one stream is for one mel.

    Example:

        >>> from apnet2_tts_plugin import load_model
        >>> generator = load_model("apnet2").generator
        >>> mel = torch.full((1, 80, 100), -5.0)
        >>> stream = GeneratorStream(generator)
        >>> pieces = [stream.push(piece, last=i == 3) for i, piece in enumerate(mel.split(25, dim=2))]
        >>> torch.allclose(torch.cat(pieces, dim=1), generator.inference(mel), atol=1e-5)
        True
    """

    def __init__(self, generator: Generator):
        self.generator = generator
        amplitude, phase, mel = generator.amplitude, generator.phase, generator.mel
        self.mel = None if mel is None else BackboneStream(mel.backbone, mel.output_conv)
        refines = isinstance(amplitude, AmplitudeRefiner)
        self.amplitude = (
            RefinerStream(amplitude) if refines else BackboneStream(amplitude.backbone, amplitude.output_conv)
        )
        if generator.pitch is not None:
            self.phase = PitchPhaseStream(generator)
        else:
            self.phase = BackboneStream(phase.backbone, phase.real_conv, phase.imag_conv)
        self.spectra_and_mel = Frames(4)
        self.waveform = WaveformStream(generator)

    @torch.inference_mode()
    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """The samples that are complete with the next piece of the mel.

        Args:
            mel: Natural-log mel (B, n_mels, any T), of the same B in all pieces.
            last: Whether it ends here; nothing may follow.

        Returns:
            Waveform (B, N) in float32, N a multiple of the hop. All together are (T - 1) * hop_length samples.
        """
        frames = latent = mel.transpose(1, 2)
        if self.mel is not None:
            (frames,) = self.mel.push(frames, last)
        phase = self.phase.push(latent if self.generator.phase_from_latent else frames, last)
        *spectra, frames = self.spectra_and_mel.push(*self.amplitude.push(frames, last), *phase, frames)
        amplitude, spectrum = amplitude_and_spectrum(*spectra)
        return self.waveform.push(spectrum, amplitude, frames, last)


class WindowStream:
    """Any generator, on windows of a mel that overlap: nearly the waveform of the whole, which its layers pool over.

    Args:
        generator: The generator; one stream is for one mel.
        window: Frames that each brings to hear, besides those of `CONTEXT` before and after.
    """

    def __init__(self, generator: Generator, window: int = WINDOW):
        self.generator = generator
        self.window = window
        self.kept: Tensor | None = None  # frames, of which the first `n_before` are context only
        self.n_before = 0

    @torch.inference_mode()
    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """The samples that are complete with the next piece of the mel: as `GeneratorStream.push`."""
        self.kept = mel if self.kept is None else torch.cat([self.kept, mel], dim=2)
        pieces = [mel.new_zeros(len(mel), 0, dtype=torch.float32)]
        while self.kept.shape[2] >= self.n_before + self.window + CONTEXT:
            pieces.append(self._vocode(self.n_before + self.window, CONTEXT))
        if last and self.kept.shape[2] - 1 > self.n_before:
            pieces.append(self._vocode(self.kept.shape[2] - 1, 1))
        return torch.cat(pieces, dim=1)

    def _vocode(self, end: int, n_after: int) -> Tensor:
        """The samples between the frames `n_before` and `end`, which is the next window's beginning."""
        hop_length = self.generator.hop_length
        waveform = self.generator.inference(self.kept[:, :, : end + n_after])
        waveform = waveform[:, self.n_before * hop_length : end * hop_length]
        first = max(end - CONTEXT, 0)
        self.kept, self.n_before = self.kept[:, :, first:], end - first
        return waveform
