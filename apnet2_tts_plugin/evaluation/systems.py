"""What vocodes: a model of this package, any vocoder of coqui-tts, Griffin-Lim, or WAVs that something else made.

A system takes a recording to its copy: analysis to a mel, and back. Only the way back is timed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
from torch import Tensor
from TTS.utils.audio import AudioProcessor
from TTS.vocoder.configs.shared_configs import BaseVocoderConfig

from apnet2_tts_plugin.audio import SUFFIXES, at_rate, read_recording
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import DataError, ModelError, one_line
from apnet2_tts_plugin.loader import load_with_runtime
from apnet2_tts_plugin.metrics.inputs import optional_package
from apnet2_tts_plugin.network.spectra import LogMel, whole_hops
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights

LONGEST_DIFFERENCE = 0.1  # seconds by which a copy may be longer or shorter than its recording


@dataclass(frozen=True)
class Recording:
    """A file to evaluate on.

    Attributes:
        path: Where it lies.
        name: Its path below the folder that was given, by which `wavs:FOLDER` finds its copy.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Copy:
    """What a system made of a recording.

    Attributes:
        waveform: (N,) in float32.
        sample_rate: In Hz.
        seconds: How long the way from the mel to the waveform took; None if that was not seen.
    """

    waveform: np.ndarray
    sample_rate: int
    seconds: float | None


System = Callable[[Recording], Copy]


def make_system(words: str, device: str = "cpu") -> System:
    """The system that `words` mean.

    Args:
        words: `griffin_lim:ITERATIONS`, `coqui:CONFIG_OR_FOLDER`, `wavs:FOLDER`, or else a name that `store` knows or a
            folder with an APNet2 model, with `@RUNTIME` behind it for one of `network.runtime`.
        device: Where networks run.

    Raises:
        Apnet2Error: if there is no such model or folder, or it cannot be used.
    """
    kind, colon, rest = words.partition(":")
    if colon and kind == "griffin_lim":
        return GriffinLim(rest)
    if colon and kind == "coqui":
        return CoquiVocoder(Path(rest), device)
    if colon and kind == "wavs":
        return Wavs(Path(rest))
    return OurVocoder(words, device)


def aligned(copy: Copy, recording: np.ndarray, sample_rate: int) -> np.ndarray:
    """The waveform of a copy at the sample rate of a recording (N,) and of its length, cut or continued by silence.

    Raises:
        DataError: if the copy has NaN or infinite samples, or its length differs by more than 0.1 s.
    """
    if not np.isfinite(copy.waveform).all():
        raise DataError("NaN or infinite samples")
    waveform = at_rate(copy.waveform, copy.sample_rate, sample_rate)
    excess = len(waveform) - len(recording)
    if abs(excess) > LONGEST_DIFFERENCE * sample_rate:
        lengths = f"{len(waveform) / sample_rate:.2f} s, the recording has {len(recording) / sample_rate:.2f} s"
        raise DataError(f"{lengths}; they must not differ by more than {LONGEST_DIFFERENCE} s")
    return np.pad(waveform, (0, max(-excess, 0)))[: len(recording)]


class OurVocoder:
    """An APNet2 by name or folder, in a runtime if one is given, on the mel of its own analysis."""

    def __init__(self, name: str, device: str):
        self.model = load_with_runtime(name, device)
        if self.model.config.input_features != "mel":
            raise ModelError(f"{name}: vocodes the latents of a VITS, expected a model that vocodes mels")
        self.model.copy_synthesis(torch.zeros(8192), self.model.config.audio.sample_rate)  # the first call is slower

    @torch.inference_mode()
    def __call__(self, recording: Recording) -> Copy:
        settings = self.model.config.audio
        waveform = read_at(recording.path, settings.sample_rate)
        mel = self.model.log_mel(whole_hops(waveform, settings).to(self.model.device)[None])
        start = time.perf_counter()
        try:
            copy = self.model.inference(mel).flatten().cpu()
        except RuntimeError as error:  # a recording too long for the memory
            raise DataError(f"cannot be vocoded ({one_line(error)})") from error
        seconds = time.perf_counter() - start
        return Copy(copy[: len(waveform)].numpy(), settings.sample_rate, seconds)


class GriffinLim:
    """librosa's Griffin-Lim, on the mel of APNet2's default settings.

    The linear magnitude is the least-squares solution with no negative values (`mel_to_stft`); then come `iterations`
    from a random phase, always the same, with momentum 0.99. Both are timed.
    """

    def __init__(self, iterations: str):
        if not iterations.isdecimal() or int(iterations) < 1:
            raise ModelError(f"griffin_lim:{iterations}: expected a number of iterations, such as griffin_lim:60")
        self.iterations = int(iterations)
        optional_package("librosa.filters")  # a line here instead of a traceback at the first file
        self.audio = Apnet2Config().audio
        self.log_mel = LogMel.from_audio_config(self.audio)

    def __call__(self, recording: Recording) -> Copy:
        settings = self.audio
        waveform = read_at(recording.path, settings.sample_rate)
        mel = self.log_mel(whole_hops(waveform, settings)[None])[0].exp().numpy()
        start = time.perf_counter()
        copy = self.vocode(mel)
        seconds = time.perf_counter() - start
        return Copy(copy[: len(waveform)], settings.sample_rate, seconds)

    def vocode(self, mel: np.ndarray) -> np.ndarray:
        """The waveform of a mel (n_mels, T), which is not a logarithm."""
        settings = self.audio
        magnitude = librosa.feature.inverse.mel_to_stft(
            mel,
            sr=settings.sample_rate,
            n_fft=settings.fft_size,
            power=1.0,
            fmin=settings.mel_fmin,
            fmax=settings.mel_fmax,
        )
        return librosa.griffinlim(
            magnitude,
            n_iter=self.iterations,
            hop_length=settings.hop_length,
            win_length=settings.win_length,
            n_fft=settings.fft_size,
            momentum=0.99,
            random_state=0,
        )


class CoquiVocoder:
    """Any vocoder of coqui-tts, on the mel of coqui's own analysis with the vocoder's audio settings.

    Args:
        path: Its `config.json`, with the weights in the same folder, or that folder.
        device: Where it runs.
    """

    def __init__(self, path: Path, device: str):
        from TTS.config import load_config
        from TTS.vocoder.models import setup_model

        config_path = path / CONFIG_NAME if path.is_dir() else path
        if not config_path.is_file():
            raise ModelError(f"{config_path}: no such file, expected the configuration of a coqui vocoder")
        weights = find_weights(config_path.parent)
        try:
            config = load_config(config_path)
            if not isinstance(config, BaseVocoderConfig):
                raise ModelError(f"{config_path}: the configuration of a {config.model}, expected a vocoder's")
            self.ap = AudioProcessor(config.audio)
            self.model = setup_model(config)
            self.model.load_checkpoint(config, str(weights), eval=True)
            self.model.to(device)
        except ModelError:
            raise
        except Exception as error:  # coqui-tts raises almost anything
            raise ModelError(f"{path}: cannot be loaded ({type(error).__name__}: {one_line(error)})") from error
        self.device = device

    @torch.no_grad()  # WaveRNN fails in inference mode
    def __call__(self, recording: Recording) -> Copy:
        rate, hop_length = self.ap.sample_rate, self.ap.hop_length
        waveform = read_at(recording.path, rate)
        mel = torch.from_numpy(self.ap.melspectrogram(waveform.numpy()).astype(np.float32))[None].to(self.device)
        torch.manual_seed(0)  # some begin with noise
        start = time.perf_counter()
        try:
            copy = torch.as_tensor(self.model.inference(mel)).flatten().cpu()
        except Exception as error:  # coqui-tts raises almost anything
            raise DataError(f"cannot be vocoded ({type(error).__name__}: {one_line(error)})") from error
        seconds = time.perf_counter() - start
        # Some repeat the first and last frames before they vocode, and leave what these became at both ends.
        repeated = max(len(copy) - mel.shape[2] * hop_length, 0) // 2
        return Copy(copy[repeated : repeated + len(waveform)].float().numpy(), rate, seconds)


class Wavs:
    """Recordings that something else made, found by the recordings' paths without their suffixes."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder, expected one with copies of the recordings")
        self.folder = folder

    def __call__(self, recording: Recording) -> Copy:
        base = self.folder / Path(recording.name).parent / Path(recording.name).stem
        found = [path for suffix in SUFFIXES if (path := base.with_name(base.name + suffix)).is_file()]
        if not found:
            raise DataError(f"{base}: no recording of this name")
        return Copy(*read_recording(found[0]), None)


def read_at(path: Path, sample_rate: int) -> Tensor:
    """A recording as (N,) in float32 at `sample_rate` Hz.

    Raises:
        DataError: if it cannot be read, is empty, or has NaN.
    """
    waveform, rate = read_recording(path)
    return torch.from_numpy(at_rate(waveform, rate, sample_rate))
