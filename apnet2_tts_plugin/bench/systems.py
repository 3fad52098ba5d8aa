"""What is measured: our vocoders in any runtime, a plain transcription of the official one, and their peers."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from apnet2_tts_plugin.bench.plain import OfficialGenerator
from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.errors import ConfigError, MissingPackageError
from apnet2_tts_plugin.loader import load_with_runtime
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.precision import emulates_bf16
from apnet2_tts_plugin.network.spectra import LogMel
from apnet2_tts_plugin.weights.official import rename_official

PIECE = 32  # frames that a stream gets at a time
BUNDLED = ("apnet2", "apnet2-tiny")
LONGEST_IN_BATCH = 5.0  # seconds


@dataclass
class System:
    """A vocoder to measure.

    Attributes:
        words: What it was asked for by.
        run: Makes waveforms (B, ...) of natural-log mels (B, n_mels, T).
        audio: The settings of its mels.
        product_type: What it computes matrix products in.
        stream: Makes the waveform of a mel (1, n_mels, T) piece by piece; None if it cannot.
        reference: The words of the system with the same weights in plain float32, if it is another one.
    """

    words: str
    run: Callable[[Tensor], Tensor]
    audio: Apnet2AudioConfig
    product_type: torch.dtype = torch.float32
    stream: Callable[[Tensor], Iterator[Tensor]] | None = None
    reference: str | None = None

    def mel(self, seconds: float, batch: int, device: str) -> Tensor:
        """The natural-log mel (B, n_mels, T) of a voice that lasts `seconds`, the same for each item."""
        sample_rate, hop_length = self.audio.sample_rate, self.audio.hop_length
        t = torch.arange(round(seconds * sample_rate / hop_length) * hop_length, dtype=torch.float64) / sample_rate
        phase = 2 * math.pi * (120 * t + 10 * torch.sin(2 * math.pi * t))  # 57 to 183 Hz
        loudness = 0.1 + torch.sin(2 * math.pi * 1.5 * t).abs()
        voice = (loudness * sum(torch.cos(k * phase) / k for k in range(1, 30)) / 10).float()
        pieces = LogMel.from_audio_config(self.audio).pieces(voice, 4096)
        return torch.cat(list(pieces), dim=2).expand(batch, -1, -1).contiguous().to(device)


def make_system(words: str, device: str) -> System:
    """The system that `words` mean, with the same random weights at each call where it has none.

    Args:
        words: A model's name or folder, or `preset:NAME` with random weights, either with `@RUNTIME` behind it;
            `plain`, the official code with the weights of `preset:base`; one of `PEERS`; or `griffin_lim:ITERATIONS`.
        device: "cpu" or "cuda".

    Raises:
        Apnet2Error: if there is none, or it cannot be used.
    """
    torch.manual_seed(0)
    kind, _, rest = words.partition(":")
    if words == "plain":
        network = OfficialGenerator().eval().to(device)
        return System(words, network, Apnet2AudioConfig())
    if words in PEERS:
        return PEERS[words](words, device)
    if kind == "griffin_lim":
        return _griffin_lim(words, rest)
    if kind == "preset":
        return _preset(words, rest, device)
    return _ours(words, load_with_runtime(words, device))


def all_systems(device: str) -> list[str]:
    """All but those that are not installed, or not to be used on the device."""
    runtimes = ["packed", "int8"] if device == "cpu" else []
    runtimes += [] if emulates_bf16(device) else ["bfloat16"]
    ours = [f"{name}{runtime}" for name in ("preset:base", *BUNDLED) for runtime in ("", *(f"@{r}" for r in runtimes))]
    return ["plain", *ours, "preset:freev", *PEERS, "griffin_lim:32", "griffin_lim:60"]


def _ours(words: str, model: Apnet2) -> System:
    name, at, runtime = words.rpartition("@")
    at = at and not Path(words).exists()
    if model.config.input_features != "mel":
        raise ConfigError(f"{words}: vocodes the latents of a VITS, expected a model that vocodes mels")
    return System(
        words=words,
        run=model.inference,
        audio=model.config.audio,
        product_type=torch.bfloat16 if at and runtime == "bfloat16" else torch.float32,
        stream=lambda mel: model.stream(mel.split(PIECE, dim=2)),
        reference=name if at and runtime != "eager" else None,
    )


def _preset(words: str, rest: str, device: str) -> System:
    name, _, runtime = rest.partition("@")
    model = Apnet2(Apnet2Config.preset(name))
    if name == "base":
        torch.manual_seed(0)
        model.generator.load_state_dict(rename_official("generator", OfficialGenerator().state_dict()))
    model.eval().to(device)
    if runtime:
        model.use_runtime(runtime)
    return _ours(words, model)


def _coqui(words: str, device: str) -> System:
    """A generator of coqui-tts at its released size, without weight norm, as its inference has it."""
    from TTS.vocoder.configs import HifiganConfig, MultibandMelganConfig, UnivnetConfig
    from TTS.vocoder.models import setup_generator

    kinds = {"hifigan_v1": HifiganConfig, "hifigan_v2": HifiganConfig}
    kinds |= {"univnet": UnivnetConfig, "multiband_melgan": MultibandMelganConfig}
    config = kinds[words]()
    if words == "hifigan_v2":
        config.generator_model_params["upsample_initial_channel"] = 128
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old weight norm
        network = setup_generator(config).eval()
        network.remove_weight_norm()
    return System(words, network.to(device).inference, Apnet2AudioConfig())


def _vocos(words: str, device: str) -> System:
    """Vocos of the sizes of the published model vocos-mel-24khz."""
    try:
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone
    except ImportError as error:
        raise MissingPackageError("vocos: not installed: pip install vocos") from error
    head = ISTFTHead(512, 1024, 256, padding="center")
    network = nn.Sequential(VocosBackbone(100, 512, 1536, 8), head).eval().to(device)
    return System(words, network, Apnet2AudioConfig(sample_rate=24000, num_mels=100))


def _griffin_lim(words: str, iterations: str) -> System:
    """librosa's, from the linear magnitude that fits the mel best without negative values; one item after the other."""
    from apnet2_tts_plugin.evaluation.systems import GriffinLim

    griffin_lim = GriffinLim(iterations)

    def run(mel: Tensor) -> Tensor:
        return torch.stack([torch.from_numpy(griffin_lim.vocode(item.exp().numpy())) for item in mel.cpu()])

    return System(words, run, griffin_lim.audio)


PEERS: dict[str, Callable[[str, str], System]] = {
    "hifigan_v1": _coqui,
    "hifigan_v2": _coqui,
    "univnet": _coqui,
    "multiband_melgan": _coqui,
    "vocos": _vocos,
}
