"""The configuration of APNet2: one dataclass, checked whenever it is made, loaded or changed by the command line."""

import copy
import logging
import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np
from coqpit import Coqpit
from TTS.config import BaseAudioConfig
from TTS.vocoder.configs.shared_configs import BaseVocoderConfig

from apnet2_tts_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

AMPLITUDE_STARTS = ("mel", "pseudo_inverse")
PHASE_STARTS = ("none", "pitch", "latent")
CONSISTENCY_TARGETS = ("amplitude", "mel")
MAX_ITERATIONS = 1000  # a thousand change nothing any more
RESPONSE_NORMS = ("sentence", "none")
INPUT_FEATURES = ("mel", "latent")
EVAL_METRICS = ("pesq", "stoi")
LOSS_RESOLUTIONS = ((512, 128, 512), (1024, 256, 1024), (2048, 512, 2048))  # of the multi-resolution loss
LOSS_WEIGHTS = {
    "amplitude": 45.0,
    "instantaneous_phase": 100.0,
    "group_delay": 100.0,
    "phase_time_difference": 100.0,
    "stft_consistency": 20.0,
    "real": 45.0,
    "imaginary": 45.0,
    "mel": 45.0,
    "multi_resolution_stft": 0.0,
    "pitch": 1.0,
    "voicing": 1.0,
    "latent_mel": 45.0,
    "phasor": 0.0,
    "adversarial_mpd": 1.0,
    "feature_matching_mpd": 1.0,
    "adversarial_mrd": 0.1,
    "feature_matching_mrd": 0.1,
}
OFFICIAL_DECAY = 0.999 ** (1 / 809)  # of the learning rates in an update; 809 are an epoch of the official training
PITCH_TERMS = ("pitch", "voicing")  # computed with phase_start "pitch"; not in files of old
LATENT_TERMS = ("latent_mel",)  # computed where a mel is predicted from a latent; not in files of old
CHOSEN_TERMS = ("multi_resolution_stft", "phasor")  # not in the paper, and not computed where the weight is 0
DISCRIMINATOR_LOSS_WEIGHTS = {"mpd": 1.0, "mrd": 0.1}
ANALYSIS = ("fft_size", "win_length", "hop_length", "sample_rate", "num_mels", "mel_fmin", "mel_fmax")
PATHS = ("data_path", "feature_path", "f0_path", "output_path")
WRITTEN_BY_TRAINER = ("github_branch", "restore_path")  # into a run's config.json
UNUSED = {  # settings of coqui's base classes that APNet2 makes no use of, and what does it instead
    "use_noise_augment": "",
    "pad_short": "",
    "conv_pad": "",
    "use_cache": "",
    "test_delay_epochs": "",
    "eval_batch_size": ": held-out files are evaluated one by one",
    "wd": ": set weight_decay in optimizer_params",
    "lr": ": set lr_gen and lr_disc",
    "lr_scheduler": ": set lr_scheduler_gen and lr_scheduler_disc",
    "lr_scheduler_params": ": set lr_scheduler_gen_params and lr_scheduler_disc_params",
}


@dataclass
class Apnet2AudioConfig(BaseAudioConfig):
    """coqui's audio settings with APNet2's values: a plain natural-log mel, neither scaled nor normalised.

    `fft_size`, `win_length`, `hop_length`, `sample_rate`, `num_mels`, `mel_fmin` and `mel_fmax` can be chosen; of any
    other setting, which would have no effect, all values but the default are refused.

    Args:
        mel_fmax (float): Upper edge of the mel bands in Hz. Defaults to 8000.0.
        log_func (str): Logarithm of the mel. Defaults to "np.log".
        spec_gain (int): Factor on the logarithm. Defaults to 1.
        ref_level_db (int): Level subtracted from the logarithm. Defaults to 0.
        signal_norm (bool): Whether the mel is normalised; APNet2's is not. Defaults to False.
        do_trim_silence (bool): Whether silence is trimmed before analysis. Defaults to False.
    """

    mel_fmax: float = 8000.0
    log_func: str = "np.log"
    spec_gain: int = 1
    ref_level_db: int = 0
    signal_norm: bool = False
    do_trim_silence: bool = False

    def check_values(self) -> None:
        """Refuse settings that cannot work; takes the place of coqui's assertions, which do not say what is wrong.

        Raises:
            ConfigError: with the field, its value and what is allowed.
        """
        _make_plain(self)
        _check_numbers("audio.", self, ANALYSIS[:-1])
        for name in ("sample_rate", "hop_length", "num_mels"):
            _require(self[name] >= 1, f"audio.{name}", self[name], "at least 1")
        even = self.fft_size >= 4 and self.fft_size % 2 == 0
        _require(even, "audio.fft_size", self.fft_size, "an even number of at least 4")
        fits = self.hop_length < self.win_length <= self.fft_size
        allowed = f"more than audio.hop_length ({self.hop_length}) and at most audio.fft_size ({self.fft_size})"
        _require(fits, "audio.win_length", self.win_length, allowed)
        nyquist = self.sample_rate / 2
        fmax = nyquist if self.mel_fmax is None else self.mel_fmax
        allowed = f"above audio.mel_fmin ({self.mel_fmin}) and at most half the sample rate ({nyquist})"
        _require(0 <= self.mel_fmin < fmax <= nyquist, "audio.mel_fmax", self.mel_fmax, allowed)
        for setting in fields(self):
            if setting.name not in ANALYSIS:
                only = f"{setting.default!r}: APNet2's mel is a plain natural log, and knows no other value"
                _require(self[setting.name] == setting.default, f"audio.{setting.name}", self[setting.name], only)


@dataclass
class PredictorConfig(Coqpit):
    """Sizes of one spectrum predictor: convolution, ConvNeXt v2 blocks, convolution.

    Args:
        channels (int): Width of the residual stream. Defaults to 512.
        hidden_channels (int): Width inside a block, after its expansion. Defaults to 1536.
        blocks (int): Number of ConvNeXt v2 blocks. Defaults to 8.
        input_kernel_size (int): Kernel of the input convolution in frames, odd. Defaults to 7.
        kernel_size (int): Kernel of the depthwise convolutions in frames, odd. Defaults to 7.
        output_kernel_size (int): Kernel of the output convolutions in frames, odd. Defaults to 7.
        response_norm (str): What the response norm of the blocks pools over: the whole "sentence" (ConvNeXt v2), or
            "none" leaves it out, without which nothing can be streamed. Defaults to "sentence".
        look_ahead (int): Frames after its own that an output frame depends on, all convolutions together; the first
            ones take as many as they can, the others none. -1 centres all of them. Defaults to -1.
    """

    channels: int = 512
    hidden_channels: int = 1536
    blocks: int = 8
    input_kernel_size: int = 7
    kernel_size: int = 7
    output_kernel_size: int = 7
    response_norm: str = "sentence"
    look_ahead: int = -1

    def check(self, name: str) -> None:
        """Raise ConfigError when a size makes no sense; `name` is the predictor's field in the configuration."""
        _make_plain(self)
        _check_numbers(f"{name}.", self)
        for size in ("channels", "hidden_channels", "blocks"):
            _require(self[size] >= 1, f"{name}.{size}", self[size], "at least 1")
        for kernel in ("input_kernel_size", "kernel_size", "output_kernel_size"):
            odd = self[kernel] >= 1 and self[kernel] % 2 == 1
            _require(odd, f"{name}.{kernel}", self[kernel], "an odd number of at least 1")
        _require(self.response_norm in RESPONSE_NORMS, f"{name}.response_norm", self.response_norm, RESPONSE_NORMS)
        _require(self.look_ahead >= -1, f"{name}.look_ahead", self.look_ahead, "-1 or more")


def _streamable(channels: int, hidden_channels: int, blocks: int, look_ahead: int, **sizes: int) -> PredictorConfig:
    return PredictorConfig(channels, hidden_channels, blocks, response_norm="none", look_ahead=look_ahead, **sizes)


def _from_pitch(**predictors: PredictorConfig) -> dict[str, Any]:
    starts = dict(amplitude_start="pseudo_inverse", phase_start="pitch")
    return starts | dict(consistency_iterations=2, consistency_target="mel") | predictors


PRESETS = {
    "base": {},
    "freev": dict(amplitude_start="pseudo_inverse", amplitude=PredictorConfig(channels=513, blocks=1)),
    # Frames ahead: three for the pitch, one for how it glides or for the phase predictor, three for each iteration and
    # two for the inverse STFT are twelve in all. The amplitude may see as many as pitch and phase together.
    "pitch": _from_pitch(
        amplitude=_streamable(513, 512, 2, look_ahead=4),
        phase=_streamable(192, 384, 3, look_ahead=1, output_kernel_size=1),
        pitch=_streamable(160, 320, 4, look_ahead=3, output_kernel_size=1),
    ),
    "tiny": _from_pitch(
        amplitude=_streamable(513, 224, 2, look_ahead=4),
        phase=_streamable(128, 256, 2, look_ahead=1, output_kernel_size=1),
        pitch=_streamable(96, 192, 3, look_ahead=3, output_kernel_size=1),
    ),
}


@dataclass
class Apnet2Config(BaseVocoderConfig):
    """Parameters of the APNet2 vocoder. The defaults are the official LJSpeech setting.

    Example:

        >>> from TTS.vocoder.configs.apnet2_config import Apnet2Config
        >>> config = Apnet2Config(data_path="LJSpeech-1.1/wavs", batch_size=16)
        >>> config.phase.blocks
        8

    The weights in `loss_weights` are those of the generator's terms (APNet2 paper, section 2.3) by the names they have
    in the log; `multi_resolution_stft` and `phasor` are not in the paper, and are not computed where their weight is 0.
    `pitch` and `voicing`, the cross-entropies of the pitch predictor, are computed with phase_start "pitch". A file of
    old does not have them.
    `feature_path` of coqui's base class is a folder of natural-log mels to train on instead of those of the recordings,
    or of latents, one `.npy` file (n_inputs, T) for each (`training.features`). Settings of the base classes that would
    have no effect (`UNUSED`) are refused unless they have their defaults.

    Args:
        model (str): Name by which coqui finds the model class. Defaults to "apnet2".
        dataset (str): Language and name of the data it is trained on, under which coqui-tts lists the model once it is
            installed: "en/ljspeech". "" is "universal/unknown". Defaults to "".
        audio (Apnet2AudioConfig): Audio settings. Defaults to `Apnet2AudioConfig()`.
        amplitude (PredictorConfig): Sizes of the amplitude predictor. Defaults to `PredictorConfig()`.
        phase (PredictorConfig): Sizes of the phase predictor. Defaults to `PredictorConfig()`.
        amplitude_start (str): What the amplitude predictor starts from: "mel" (APNet2), the input as it is, or
            "pseudo_inverse", the mel taken back to linear frequency and refined by blocks of width `fft_size / 2 + 1`,
            without input and output convolutions (FreeV). From a latent, a mel is predicted first, and pitch and phase
            from that too, unless phase_start says otherwise. Defaults to "mel".
        mel (PredictorConfig): Sizes of the predictor of a mel from a latent, for amplitude_start "pseudo_inverse".
            Defaults to `PredictorConfig()`.
        phase_start (str): What the phase predictor starts from: "none" (APNet2), or "pitch", the spectrum of pulses
            whose f0 and voicing are read from the mel; or "latent", where the amplitude starts from a
            mel that is predicted: the phase is predicted from the latent itself, which tells the one that the decoder
            of the VITS gives. Defaults to "none".
        pitch (PredictorConfig): Sizes of the pitch predictor, for phase_start "pitch"; its channels are the bins of
            its last hidden layer. Defaults to `PredictorConfig()`.
        f0_min (float): Lowest fundamental frequency in Hz. Defaults to 50.0.
        f0_max (float): Highest fundamental frequency in Hz. Defaults to 800.0.
        consistency_iterations (int): Iterations behind the networks, in training too, towards the spectrum of a
            waveform; `APNET2_ITERATIONS` in the environment changes them for use. Defaults to 0.
        consistency_target (str): What they keep: the predicted "amplitude" (fast Griffin-Lim); or the "mel" that the
            generator is given or predicts, whose bands are then as loud as it says, whatever was predicted. Defaults
            to "amplitude".
        runtime (str): How it computes in use, see `network.runtime`: "eager", "packed", "bfloat16", "int8" or "auto";
            `APNET2_RUNTIME` in the environment goes before it, and without either it is "eager". Defaults to None.
        f0_path (str): Folder for the pitch of the recordings, found once before training with phase_start "pitch";
            "" is `f0` in `output_path`. Defaults to "".
        noise_seed (int): Seed of the phases that noise starts from, for phase_start "pitch". Defaults to 0.
        input_features (str): What the vocoder gets: a "mel", or the "latent" of a VITS, whose decoder it then is
            (`pairing.vits`). Defaults to "mel".
        latent_channels (int): Channels of the latent, `hidden_channels` of the VITS. Defaults to 192.
        speaker_channels (int): Channels of the speaker embedding below the latent, equal in all frames; 0 for a VITS
            of one speaker. Defaults to 0.
        mpd_periods (list): Periods in samples of the multi-period discriminator. Defaults to [2, 3, 5, 7, 11].
        mpd_channels (list): Channels of its convolutions. Defaults to [32, 128, 512, 1024, 1024].
        mrd_resolutions (list): FFT, hop and window length of each sub-discriminator of the multi-resolution
            discriminator. Defaults to [[1024, 256, 1024], [2048, 512, 2048], [512, 128, 512]].
        mrd_channels (int): Channels of its convolutions. Defaults to 64.
        steps_to_start_discriminator (int): Generator updates before the discriminators join. Defaults to 0.
        loss_weights (dict): Weight of each generator loss.
            Defaults to {"amplitude": 45.0, "instantaneous_phase": 100.0, "group_delay": 100.0,
            "phase_time_difference": 100.0, "stft_consistency": 20.0, "real": 45.0, "imaginary": 45.0, "mel": 45.0,
            "multi_resolution_stft": 0.0, "pitch": 1.0, "voicing": 1.0, "latent_mel": 45.0, "phasor": 0.0,
            "adversarial_mpd": 1.0, "feature_matching_mpd": 1.0, "adversarial_mrd": 0.1, "feature_matching_mrd": 0.1}.
        discriminator_loss_weights (dict): Weight of each discriminator's loss. Defaults to {"mpd": 1.0, "mrd": 0.1}.
        seq_len (int): Samples of a training segment, a multiple of the hop. Defaults to 8192.
        segments_per_file (int): Segments of each file in an epoch; with few files more of them make evaluations, which
            come after each epoch, take less of the time. Defaults to 1.
        batch_size (int): Segments of a training batch. Defaults to 16.
        eval_split_size (int): Files held out for evaluation, the last ones by name. Defaults to 10.
        num_loader_workers (int): Processes that read training audio. Defaults to 4.
        num_eval_loader_workers (int): Processes that read evaluation audio. Defaults to 1.
        epochs (int): Passes over the training files. Defaults to 1250.
        optimizer (str): Optimizer of both networks, from `torch.optim`. Defaults to "AdamW".
        optimizer_params (dict): Its arguments. Defaults to {"betas": [0.8, 0.99], "weight_decay": 0.01, "fused": True}.
        lr_gen (float): Learning rate of the generator. Defaults to 0.0002.
        lr_disc (float): Learning rate of the discriminators. Defaults to 0.0002.
        lr_scheduler_gen (str): Schedule of the generator, from `torch.optim.lr_scheduler`. Defaults to "ExponentialLR".
        lr_scheduler_gen_params (dict): Its arguments. The default is 0.999 in 809 updates, an epoch of the official
            training (12,950 files of LJSpeech in batches of 16). Defaults to {"gamma": 0.9999987632883622}.
        lr_scheduler_disc (str): Schedule of the discriminators. Defaults to "ExponentialLR".
        lr_scheduler_disc_params (dict): Its arguments. Defaults to {"gamma": 0.9999987632883622}.
        scheduler_after_epoch (bool): Step the schedules after each epoch instead of each update: then the rates depend
            on the number of files and processes, the batch size and the accumulation. Defaults to False.
        grad_clip (list): Largest gradient norm of discriminators and generator; 0 does not clip, as in the official
            training. Defaults to [0.0, 0.0].
        precision (str): What `mixed_precision` computes convolutions and matrix products in, "bf16" or "fp16"; spectra
            and losses stay in float32. Defaults to "bf16".
        use_compile (bool): Compile the networks by `torch.compile`, which takes minutes and brought nothing on a
            processor. Defaults to False.
        max_skipped_steps (int): Steps in a row that may be skipped because a loss or gradient is not finite; one more
            stops the run. Defaults to 20.
        log_term_gradients (bool): Log the gradient norm of each generator loss every `plot_step` steps, which costs a
            backward pass for each of them. Defaults to False.
        eval_metrics (list): Metrics of speech quality to evaluate, "pesq" and "stoi", as far as the extra `eval` is
            installed. Defaults to ["pesq", "stoi"].
        target_loss (str): Metric by which the best model is picked: "loss_mel" (the mean absolute error of the
            full-band natural-log mel), another "loss_<term>" that is computed, or "pesq" and "stoi", of which the
            highest is best. Defaults to "loss_mel".
    """

    model: str = "apnet2"
    dataset: str = ""
    audio: Apnet2AudioConfig = field(default_factory=Apnet2AudioConfig)

    amplitude: PredictorConfig = field(default_factory=PredictorConfig)
    phase: PredictorConfig = field(default_factory=PredictorConfig)
    amplitude_start: str = "mel"
    phase_start: str = "none"
    pitch: PredictorConfig = field(default_factory=PredictorConfig)
    mel: PredictorConfig = field(default_factory=PredictorConfig)
    f0_min: float = 50.0
    f0_max: float = 800.0
    consistency_iterations: int = 0
    consistency_target: str = "amplitude"
    runtime: str | None = None
    f0_path: str = ""
    noise_seed: int = 0

    input_features: str = "mel"
    latent_channels: int = 192
    speaker_channels: int = 0

    mpd_periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    mpd_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    mrd_resolutions: list[list[int]] = field(
        default_factory=lambda: [[1024, 256, 1024], [2048, 512, 2048], [512, 128, 512]]
    )
    mrd_channels: int = 64
    steps_to_start_discriminator: int = 0

    loss_weights: dict[str, float] = field(default_factory=LOSS_WEIGHTS.copy)
    discriminator_loss_weights: dict[str, float] = field(default_factory=DISCRIMINATOR_LOSS_WEIGHTS.copy)

    seq_len: int = 8192
    segments_per_file: int = 1
    batch_size: int = 16
    eval_split_size: int = 10
    num_loader_workers: int = 4
    num_eval_loader_workers: int = 1
    epochs: int = 1250

    optimizer: str = "AdamW"
    optimizer_params: dict[str, Any] = field(
        default_factory=lambda: {"betas": [0.8, 0.99], "weight_decay": 0.01, "fused": True}
    )
    lr_gen: float = 0.0002
    lr_disc: float = 0.0002
    lr_scheduler_gen: str = "ExponentialLR"
    lr_scheduler_gen_params: dict[str, Any] = field(default_factory=lambda: {"gamma": OFFICIAL_DECAY})
    lr_scheduler_disc: str = "ExponentialLR"
    lr_scheduler_disc_params: dict[str, Any] = field(default_factory=lambda: {"gamma": OFFICIAL_DECAY})
    scheduler_after_epoch: bool = False
    grad_clip: list[float] = field(default_factory=lambda: [0.0, 0.0])
    precision: str = "bf16"
    use_compile: bool = False
    max_skipped_steps: int = 20
    log_term_gradients: bool = False
    eval_metrics: list[str] = field(default_factory=lambda: ["pesq", "stoi"])
    target_loss: str = "loss_mel"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Apnet2Config":
        """A configuration of known sizes.

        Args:
            name: "base", the published model; "freev", FreeV's; "pitch" or "tiny", those of the bundled models, whose
                phase starts from the pitch and which can be streamed.
            changes: Fields to set otherwise.

        Raises:
            ConfigError: if there is no such preset, or a change cannot work.

        Example:

            >>> Apnet2Config.preset("tiny", batch_size=4).phase.channels
            128
        """
        _require(name in PRESETS, "preset", name, f"one of {list(PRESETS)}")
        return cls(**copy.deepcopy(PRESETS[name]) | changes)

    @property
    def n_inputs(self) -> int:
        """Channels of the vocoder's input: bands of the mel, or those of latent and speaker embedding together."""
        return self.audio.num_mels if self.input_features == "mel" else self.latent_channels + self.speaker_channels

    @property
    def predicts_mel(self) -> bool:
        """Whether a mel is predicted from the latent before anything else."""
        return self.input_features == "latent" and self.amplitude_start == "pseudo_inverse"

    def check_values(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ConfigError: with the field, its value and what is allowed.
        """
        for name, kind in (
            ("audio", Apnet2AudioConfig),
            ("amplitude", PredictorConfig),
            ("phase", PredictorConfig),
            ("pitch", PredictorConfig),
            ("mel", PredictorConfig),
        ):
            # coqpit swallows the AttributeError that a None would end in
            _require(isinstance(self[name], kind), name, self[name], f"a section of settings ({kind.__name__})")
        _make_plain(self)
        _check_numbers("", self)
        self.audio.check_values()
        self.amplitude.check("amplitude")
        self.phase.check("phase")
        defaults = {setting.name: setting for setting in fields(self)}
        for name, instead in UNUSED.items():
            setting = defaults[name]
            default = setting.default if setting.default is not MISSING else setting.default_factory()
            is_default = self[name] in (default, None)  # coqpit's command line makes None of {}
            _require(is_default, name, self[name], f"{default!r}, as it has no effect{instead}")
        _require(self.amplitude_start in AMPLITUDE_STARTS, "amplitude_start", self.amplitude_start, AMPLITUDE_STARTS)
        self._check_phase_start()
        if self.amplitude_start == "pseudo_inverse":
            bins = self.audio.fft_size // 2 + 1
            allowed = f"{bins} (audio.fft_size / 2 + 1) with amplitude_start 'pseudo_inverse'"
            _require(self.amplitude.channels == bins, "amplitude.channels", self.amplitude.channels, allowed)
        self._check_input()
        fits = not self.dataset or re.fullmatch(r"\w[\w.]*(-\w[\w.]*)*/\w[\w.]*(-\w[\w.]*)*", self.dataset)
        _require(fits, "dataset", self.dataset, "LANGUAGE/NAME of letters, digits, '_', '.' and single '-'")
        self._check_training()
        self._check_unused()

    def _check_phase_start(self) -> None:
        _require(self.phase_start in PHASE_STARTS, "phase_start", self.phase_start, PHASE_STARTS)
        fits = self.phase_start != "latent" or self.predicts_mel
        allowed = "'none' or 'pitch' without input_features 'latent' and amplitude_start 'pseudo_inverse'"
        _require(fits, "phase_start", self.phase_start, allowed)
        self.pitch.check("pitch")
        allowed = f"0 < f0_min < f0_max ({self.f0_max}) <= half the sample rate"
        fits = 0 < self.f0_min < self.f0_max <= self.audio.sample_rate / 2
        _require(fits, "f0_min", self.f0_min, allowed)
        iterations = self.consistency_iterations
        _require(0 <= iterations <= MAX_ITERATIONS, "consistency_iterations", iterations, f"0 to {MAX_ITERATIONS}")
        target = self.consistency_target
        _require(target in CONSISTENCY_TARGETS, "consistency_target", target, CONSISTENCY_TARGETS)
        fits = target != "mel" or self.input_features == "mel" or self.predicts_mel
        _require(fits, "consistency_target", target, "'amplitude' where amplitude_start 'mel' takes a latent")

    def _check_input(self) -> None:
        _require(self.input_features in INPUT_FEATURES, "input_features", self.input_features, INPUT_FEATURES)
        self.mel.check("mel")
        _require(self.latent_channels >= 1, "latent_channels", self.latent_channels, "at least 1")
        _require(self.speaker_channels >= 0, "speaker_channels", self.speaker_channels, "0 or more")

    def _check_training(self) -> None:
        hop = self.audio.hop_length
        divides = self.seq_len % hop == 0 and self.seq_len > self.audio.fft_size // 2
        allowed = f"a multiple of audio.hop_length ({hop}) above half the FFT size"
        _require(divides, "seq_len", self.seq_len, allowed)
        steps = ("save_step", "plot_step", "print_step")
        for name in ("batch_size", "segments_per_file", "eval_split_size", "epochs", "mrd_channels", *steps):
            _require(self[name] >= 1, name, self[name], "at least 1")
        for name in ("mpd_periods", "mpd_channels"):
            positive = len(self[name]) >= 1 and min(self[name]) >= 1
            _require(positive, name, self[name], "a list of numbers of at least 1")
        _require(len(self.mrd_resolutions) >= 1, "mrd_resolutions", self.mrd_resolutions, "at least one")
        for resolution in self.mrd_resolutions:
            fits = len(resolution) == 3 and 0 < resolution[1] <= resolution[2] <= resolution[0]
            _require(fits, "mrd_resolutions", resolution, "[FFT, hop, window] with hop <= window <= FFT")
            short = resolution[0] // 2 < self.seq_len
            _require(short, "mrd_resolutions", resolution, f"an FFT below twice seq_len ({self.seq_len})")
        longest = max(LOSS_RESOLUTIONS)[0] // 2
        fits = not self.loss_weights.get("multi_resolution_stft") or self.seq_len > longest
        _require(fits, "seq_len", self.seq_len, f"more than {longest} with a loss weight of multi_resolution_stft")
        for name, known in (
            ("loss_weights", LOSS_WEIGHTS),
            ("discriminator_loss_weights", DISCRIMINATOR_LOSS_WEIGHTS),
        ):
            wrong = set(self[name]) ^ set(known)
            _require(not wrong, name, sorted(self[name]), f"exactly the terms {sorted(known)}")
            for term, weight in self[name].items():
                _require(0 <= weight < float("inf"), f"{name}.{term}", weight, "a number of 0 or more")
        for name in ("lr_gen", "lr_disc"):
            _require(0 < self[name] < float("inf"), name, self[name], "a number above 0")
        fits = len(self.grad_clip) == 2 and all(0 <= limit < float("inf") for limit in self.grad_clip)
        _require(fits, "grad_clip", self.grad_clip, "[discriminators, generator], each 0 or more")
        start = self.steps_to_start_discriminator
        _require(start >= 0, "steps_to_start_discriminator", start, "0 or more")
        for name in ("lr_scheduler_gen", "lr_scheduler_disc"):
            allowed = "the name of a schedule ('ConstantLR' with {'factor': 1.0} leaves the rate as it is)"
            _require(bool(self[name]), name, self[name], allowed)
            allowed = "a schedule that is stepped without a figure, such as 'ExponentialLR' or 'CosineAnnealingLR'"
            _require(self[name] != "ReduceLROnPlateau", name, self[name], allowed)
        allowed = "an optimizer that takes a step from gradients alone, such as 'AdamW'"
        _require(self.optimizer not in ("LBFGS", "SparseAdam"), "optimizer", self.optimizer, allowed)
        _require(self.precision in ("bf16", "fp16"), "precision", self.precision, "'bf16' or 'fp16'")
        for name in ("max_skipped_steps", "num_loader_workers", "num_eval_loader_workers"):
            _require(self[name] >= 0, name, self[name], "0 or more")
        allowed = f"some of {list(EVAL_METRICS)}"
        _require(set(self.eval_metrics) <= set(EVAL_METRICS), "eval_metrics", self.eval_metrics, allowed)
        targets = [*(f"loss_{term}" for term in self._evaluated_terms()), *self.eval_metrics]
        _require(self.target_loss in targets, "target_loss", self.target_loss, f"one of {targets}")

    def _check_unused(self) -> None:
        """Refuse values of settings that have no effect together with others."""
        unused = []
        if self.input_features == "mel":
            unused += [("latent_channels", self.latent_channels, 192), ("speaker_channels", self.speaker_channels, 0)]
        if self.amplitude_start == "pseudo_inverse":
            for name in ("input_kernel_size", "output_kernel_size"):
                unused.append((f"amplitude.{name}", self.amplitude[name], getattr(PredictorConfig, name)))
        if not self.predicts_mel:
            unused.append(("mel", self.mel, PredictorConfig()))
        if self.phase_start != "pitch":
            unused.append(("pitch", self.pitch, PredictorConfig()))
            unused += [(name, self[name], getattr(Apnet2Config, name)) for name in ("f0_min", "f0_max", "f0_path")]
            unused.append(("noise_seed", self.noise_seed, 0))
        for name, value, default in unused:
            _require(value == default, name, value, f"{default!r}, as it has no effect with these other settings")

    def _evaluated_terms(self) -> list[str]:
        """The loss terms that an evaluation computes."""
        left_out = ["adversarial", "feature_matching"]
        if self.phase_start != "pitch":
            left_out += PITCH_TERMS
        if not self.predicts_mel:
            left_out += LATENT_TERMS
        left_out += [term for term in CHOSEN_TERMS if not self.loss_weights[term]]
        return [term for term in self.loss_weights if not term.startswith(tuple(left_out))]

    def make_paths_absolute(self) -> None:
        """Replace relative paths, which mean another place when a run is continued from another folder."""
        for name in PATHS:
            if self[name]:
                self[name] = os.path.abspath(self[name])

    @classmethod
    def init_argparse(cls, *, instance: "Apnet2Config | None" = None, **settings: Any) -> ArgumentParser:
        """coqpit's parser, which has the items of the default where `eval_metrics` is empty; not given, they are None.

        `parse_args` of coqpit could not set them.
        """
        parser = super().init_argparse(instance=instance, **settings)
        if instance is not None and not instance.eval_metrics:
            prefix = settings.get("arg_prefix", "coqpit")
            parser.set_defaults(**{f"{prefix}.eval_metrics.{i}": None for i in range(len(EVAL_METRICS))})
        return parser

    def parse_args(self, args: Namespace | list[str] | None = None, arg_prefix: str = "coqpit") -> None:
        """Take over settings of a command line, see `init_argparse`, and check them."""
        if not isinstance(args, Namespace):
            args = self.init_argparse(instance=self, arg_prefix=arg_prefix).parse_args(args or None)
        if not self.eval_metrics:
            items = [vars(args).pop(f"{arg_prefix}.eval_metrics.{i}", None) for i in range(len(EVAL_METRICS))]
            self.eval_metrics = [metric for metric in items if metric]
        super().parse_args(args, arg_prefix)

    def deserialize(self, data: dict[str, Any]) -> "Apnet2Config":
        """Take over the values of `data`, as read from a file, and check them."""
        _warn_of_unknown("", data, self, WRITTEN_BY_TRAINER)
        for name in ("audio", "amplitude", "phase", "pitch", "mel"):
            _warn_of_unknown(f"{name}.", data.get(name), self[name])
        if isinstance(data.get("loss_weights"), dict):
            added = {name: LOSS_WEIGHTS[name] for name in (*PITCH_TERMS, *LATENT_TERMS, "phasor")}
            data = {**data, "loss_weights": added | data["loss_weights"]}
        super().deserialize(data)
        self.check_values()
        return self


def _warn_of_unknown(prefix: str, data: Any, section: Coqpit, others: Collection[str] = ()) -> None:
    """A name that means nothing may be a typing error, or of a newer coqui-tts: say so."""
    known = {setting.name for setting in fields(section)}
    for name in sorted(set(data or ()) - known - set(others)):
        logger.warning("%s%s: no setting of APNet2, and without effect", prefix, name)


def _make_plain(section: Coqpit) -> None:
    """Replace NumPy's numbers by Python's: a checkpoint with one in it is no file of tensors and plain containers."""
    for setting in fields(section):
        section[setting.name] = _plain(section[setting.name])


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _check_numbers(prefix: str, section: Coqpit, names: Collection[str] = ()) -> None:
    """Refuse what is no number where the default is one; of all settings (None files may be kept), or those named."""
    for setting in fields(section):
        name, default = setting.name, setting.default
        if type(default) in (int, float) and (not names or name in names) and name != "save_n_checkpoints":
            is_number = isinstance(section[name], int | float) and section[name] == section[name]
            _require(is_number, f"{prefix}{name}", section[name], "a number")


def _require(condition: bool, name: str, value: Any, allowed: Any) -> None:
    if not condition:
        raise ConfigError(f"{name}: {value!r}, expected {allowed}")
