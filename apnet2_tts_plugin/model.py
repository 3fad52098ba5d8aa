"""APNet2 as a coqui vocoder: what the Synthesizer and the Trainer call."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainer import Trainer
from trainer.logging import BaseDashboardLogger
from trainer.trainer_utils import get_optimizer, get_scheduler
from TTS.utils.audio import AudioProcessor
from TTS.vocoder.models.base_vocoder import BaseVocoder

from apnet2_tts_plugin.audio import at_rate
from apnet2_tts_plugin.config import MAX_ITERATIONS, Apnet2Config
from apnet2_tts_plugin.errors import ConfigError, DataError, MetricError, one_line
from apnet2_tts_plugin.metrics import speech
from apnet2_tts_plugin.network.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.network.generator import Generator, Prediction
from apnet2_tts_plugin.network.runtime import check_name, use_runtime
from apnet2_tts_plugin.network.spectra import LogMel, as_tensor, as_waveform, whole_hops
from apnet2_tts_plugin.network.streaming import WINDOW, open_stream
from apnet2_tts_plugin.training import distributed, losses
from apnet2_tts_plugin.training.data import evaluation_loader, find_files, training_loader
from apnet2_tts_plugin.training.guard import NonFiniteGuard
from apnet2_tts_plugin.training.plots import spectrogram_plot
from apnet2_tts_plugin.training.session import Session
from apnet2_tts_plugin.training.step import (
    DISCRIMINATOR_OPTIMIZER,
    GENERATOR_OPTIMIZER,
    Networks,
    micro_batches,
    not_finite,
    training_step,
)
from apnet2_tts_plugin.weights.restore import load_weights

logger = logging.getLogger(f"trainer.{__name__}")  # a run's own log, on the terminal and in its folder

MAX_CLIPS = 3  # held-out files to be heard in the log


class Apnet2(BaseVocoder):
    """The APNet2 vocoder: generator, discriminators, losses and data as `config` has them.

    Attributes:
        config: The configuration.
        generator: The network that vocodes.
        log_mel: The analysis (`network.spectra.LogMel`): waveform (B, N) within [-1, 1], a tensor or an array, at
            `config.audio.sample_rate` to natural-log mel (B, n_mels, N // hop_length + 1).

    Example:

        >>> model = Apnet2(Apnet2Config())
        >>> mel = model.log_mel(torch.zeros(1, 8192))
        >>> mel.shape
        torch.Size([1, 80, 33])
        >>> model.inference(mel).shape
        torch.Size([1, 1, 8192])
    """

    config: Apnet2Config

    def __init__(self, config: Apnet2Config):
        super(BaseVocoder, self).__init__()  # for what BaseVocoder's own does, see `ap`
        self.config = config
        config.check_values()
        self.generator = Generator(config)
        self.next_runtime: str | None = None  # for the generator, from its next use on
        self.mpd = self.mrd = None  # until training needs them: see add_discriminators
        self.log_mel = LogMel.from_audio_config(config.audio)
        self.criterion = losses.SpectralCriterion(config)
        self.guard = NonFiniteGuard(config.max_skipped_steps)
        self.session: Session | None = None  # from here on: what a Trainer sets
        self.grad_accum_steps = 1
        self.small_run: int | None = None
        self.clips: list[tuple[str, Tensor, Tensor]] = []  # evaluated files to log: path, target, generated

    @cached_property
    def ap(self) -> AudioProcessor:
        """coqui's audio processor, which each of its vocoders has; made when it is asked for.

        It needs librosa's filters, hence numba and scipy: a second of imports, and a folder to write compiled code to.
        """
        return AudioProcessor(self.config.audio)

    def add_discriminators(self) -> None:
        """Make the discriminators, larger than the generator and of no use to vocode with, unless they are there."""
        if self.mpd is None:
            config = self.config
            self.mpd = multi_period(config.mpd_periods, config.mpd_channels).to(self.device)
            self.mrd = multi_resolution(config.mrd_resolutions, config.mrd_channels).to(self.device)

    @classmethod
    def init_from_config(cls, config: Apnet2Config) -> "Apnet2":
        """Make the model of `config`."""
        return cls(config)

    def forward(self, mel: Tensor) -> Prediction:
        """Spectra and waveform of a natural-log mel, or latent, (B, n_inputs, T); for training."""
        return self.generator(mel)

    def inference(self, mel: Tensor | np.ndarray, lengths: Tensor | None = None) -> Tensor:
        """Vocode a mel, or the latent of a VITS, whichever is the configuration's `input_features`.

        Args:
            mel: Natural-log mel (B, n_mels, T) as `log_mel` makes it, or latent (B, n_inputs, T) as
                `pairing.vits.vocoder_latent` makes it; floating, with T >= 2; a tensor on the model's device, or an
                array.
            lengths: True number of frames of each item (B,), 2 to T, for a padded batch; None when all have T.

        Returns:
            Waveform (B, 1, (T - 1) * hop_length) in float32; silence behind the end of each item.

        Raises:
            DataError: if the input's shape or type is not as above.
        """
        mel = self._features(mel)
        self._check_length(mel.shape[2] if lengths is None else int(lengths.min()))
        if lengths is not None and (lengths.shape != mel.shape[:1] or lengths.max() > mel.shape[2]):
            raise DataError(f"lengths {lengths.tolist()}, expected {mel.shape[0]} numbers of 2 to {mel.shape[2]}")
        return self._vocoder().inference(mel, lengths)[:, None]

    def stream(self, pieces: Iterable[Tensor | np.ndarray], window: int = WINDOW) -> Iterator[Tensor]:
        """Vocode a mel, or latent, while it arrives.

        The samples are those of `inference` on the whole, to about a millionth of the peak, where no layer pools over
        the sentence (`response_norm` "none", as in the bundled models). Those with the published layers vocode windows
        that overlap, which sounds alike but is not equal, and begin 32 frames after the first window. What is held in
        memory does not grow.

        Args:
            pieces: The next frames (B, n_mels, any T), each of the same B; together at least 2.
            window: Frames of a window, where layers pool; 32 more before and after each are vocoded with it.

        Yields:
            Waveform (B, 1, N) in float32, whenever samples are complete; all together (T - 1) * hop_length of them.

        Raises:
            DataError: if a piece's shape or type is not as above, or all are fewer than 2 frames.

        Example:

            >>> from apnet2_tts_plugin import load_model
            >>> model = load_model("apnet2")
            >>> pieces = torch.zeros(1, 80, 100).split(40, dim=2)
            >>> torch.cat(list(model.stream(pieces)), dim=2).shape
            torch.Size([1, 1, 25344])
        """
        stream, n_frames = open_stream(self._vocoder(), window), 0
        for piece in pieces:
            piece = self._features(piece)
            n_frames += piece.shape[2]
            waveform = stream.push(piece)
            if waveform.shape[1]:
                yield waveform[:, None]
        self._check_length(n_frames)
        yield stream.push(piece[:, :, :0], last=True)[:, None]

    @torch.inference_mode()
    def copy_synthesis(self, waveform: Tensor | np.ndarray, sample_rate: int) -> Tensor:
        """Analyse a recording and vocode its mel.

        Args:
            waveform: Recording (N,), floating within [-1, 1], at least one sample.
            sample_rate: Its sample rate in Hz; it is resampled if that is not `config.audio.sample_rate`.

        Returns:
            Waveform (N',) in float32 on the model's device at `config.audio.sample_rate`; N' is N, or what resampling
            makes of it.

        Raises:
            DataError: if the recording is not as above or not finite, or the model vocodes latents.

        Example:

            >>> model = Apnet2(Apnet2Config())
            >>> model.copy_synthesis(torch.zeros(44100), sample_rate=44100).shape
            torch.Size([22050])
        """
        audio = self.config.audio
        if self.config.input_features != "mel":
            raise DataError("copy_synthesis: the model vocodes the latents of a VITS, expected one that vocodes mels")
        waveform = as_waveform(waveform, self.device)
        if waveform.dim() != 1 or not len(waveform):
            raise DataError(f"waveform of shape {tuple(waveform.shape)}, expected (samples,), channels mixed down")
        if not waveform.isfinite().all():
            raise DataError("waveform with NaN or infinite samples, expected finite ones")
        if not isinstance(sample_rate, Integral) or sample_rate < 1:
            raise DataError(f"sample_rate {sample_rate!r}, expected a whole number of Hz, at least 1")
        if sample_rate != audio.sample_rate:
            resampled = at_rate(waveform.float().cpu().numpy(), int(sample_rate), audio.sample_rate)
            waveform = torch.from_numpy(resampled)
        waveform = waveform.float().to(self.device)
        mel = self.log_mel(whole_hops(waveform, audio)[None])
        return self.inference(mel).flatten()[: len(waveform)]

    def _features(self, mel: Tensor | np.ndarray) -> Tensor:
        """What the model vocodes, checked but for its length, in float32."""
        mel = as_tensor(mel, self.device)
        name, n_inputs = self.config.input_features, self.config.n_inputs
        if mel.dim() != 3 or mel.shape[1] != n_inputs:
            raise DataError(f"{name} of shape {tuple(mel.shape)}, expected (batch, {n_inputs}, frames)")
        if not mel.is_floating_point():
            raise DataError(f"{name} of type {mel.dtype}, expected floating numbers")
        return mel.float()

    def _check_length(self, n_frames: int) -> None:
        if n_frames < 2:
            name, hop_length = self.config.input_features, self.config.audio.hop_length
            raise DataError(
                f"{name} of {n_frames} frames, expected at least 2: T frames give (T - 1) * {hop_length} samples"
            )

    def use_runtime(self, name: str) -> str:
        """Let the generator compute otherwise from now on; to be called once, on the device that the model stays on.

        Args:
            name: A runtime, see `network.runtime.use_runtime`.

        Returns:
            The runtime's name, which "auto" leaves open.

        Raises:
            ConfigError: if there is none of this name, or it cannot be used here.
        """
        self.next_runtime = None
        return use_runtime(self.generator, name)

    def _vocoder(self) -> Generator:
        """The generator, ready for use: not before now is it known where coqui-tts has moved it."""
        if self.next_runtime is not None:
            self.use_runtime(self.next_runtime)
        return self.generator

    def set_iterations(self, iterations: int | str | None) -> None:
        """Use another number of consistency iterations than `config.consistency_iterations`; None leaves it as it is.

        Raises:
            ConfigError: if it is no number from 0 to 1000.
        """
        if iterations is None:
            return
        if not str(iterations).isdecimal() or int(iterations) > MAX_ITERATIONS:
            raise ConfigError(f"consistency_iterations: {iterations!r}, expected 0 to {MAX_ITERATIONS}")
        self.generator.consistency.iterations = int(iterations)

    def load_checkpoint(
        self,
        config: Apnet2Config,
        checkpoint_path: str | os.PathLike[Any],
        *,
        eval: bool = False,
        strict: bool = True,
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load weights from a Trainer checkpoint (`.pth`) or from `model.safetensors`.

        Args:
            config: Not used; the weights must be those of the configuration that the model was made of.
            checkpoint_path: The file.
            eval: Load the generator alone and switch to evaluation; without it, the discriminators as well.
            strict: Not used; missing and extra tensors are always refused.
            cache: Not used.

        Raises:
            CheckpointError: if the file cannot be read or its tensors do not fit; nothing is changed then.
            ConfigError: if `APNET2_ITERATIONS` in the environment, see `set_iterations`, is no number, or
                `APNET2_RUNTIME` or the configuration's runtime no runtime.
        """
        if not eval:
            self.add_discriminators()
        load_weights(self, checkpoint_path, generator_only=eval)
        if eval:
            self.mpd = self.mrd = None
            self.eval()
            self.set_iterations(os.environ.get("APNET2_ITERATIONS") or None)
            self.next_runtime = os.environ.get("APNET2_RUNTIME") or self.config.runtime or "eager"
            check_name(self.next_runtime)

    def optimize(self, batch: dict[str, Any], trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One training step: the discriminators on the detached waveform, then the generator against them.

        An update whose gradient is not finite is left out. With `grad_accum_steps` N the batch has N times
        `batch_size` segments, which go through the networks in N pieces, but make one update of each network.

        Args:
            batch: "waveform" (B, N), "path" (B names of files), and "features" (B, n_inputs, T) where the generator's
                inputs are not to be the mels of the waveforms.
            trainer: The running Trainer, for optimizers, schedules and gradient scaling.

        Returns:
            "model_outputs", generated waveforms (B, seq_len) of the first piece, and all finite losses and gradient
            norms by their names in the log; they are those of the whole batch, of all processes.

        Raises:
            DivergedError: if more than `max_skipped_steps` steps in a row were not finite.
        """
        networks = Networks(self.generator, self.mpd, self.mrd, self.log_mel)
        waveform, values = training_step(networks, self.criterion, self.config, trainer, batch)
        faults = not_finite(values)
        self.guard.step(trainer.total_steps_done, faults, batch.get("path", []))
        return {"model_outputs": waveform}, {name: value for name, value in values.items() if name not in faults}

    def eval_step(
        self, batch: dict[str, Any], criterion: nn.Module, optimizer_idx: int | None = None
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any] | None]:
        """Spectral losses and speech metrics of a whole utterance; (None, None) if its file could not be read, or one
        of the losses is not finite.

        Args:
            batch: "waveform" (1, n) and, where the input is not to be the waveform's mel, "features" (1, n_inputs, T).
            criterion: Not used.
            optimizer_idx: The Trainer calls once per optimizer; only the generator's call has something to say.
        """
        if optimizer_idx == DISCRIMINATOR_OPTIMIZER:
            if self.session is not None:
                self.session.evaluates()
            return {}, {}
        if "waveform" not in batch:
            return None, None
        (utterance,) = micro_batches(self.log_mel, batch)
        predicted = self.generator(utterance.features)
        terms = self.criterion(utterance.spectrum, utterance.waveform, predicted, utterance.f0)
        logged = {f"loss_{name}": term for name, term in terms.items()}
        logged["loss"] = losses.weighted_sum(terms, self.config.loss_weights)
        (path,) = batch.get("path", ["a file"])
        if faults := not_finite(logged | {"waveform": predicted.waveform.abs().max()}):
            logger.warning("Left out of the evaluation: %s: %s not finite", path, ", ".join(faults))
            return None, None
        if len(self.clips) < MAX_CLIPS:
            self.clips.append((path, utterance.waveform[0], predicted.waveform[0]))
        logged |= self._speech_metrics(utterance.waveform[0], predicted.waveform[0])
        return {"model_outputs": predicted.waveform}, logged

    def _speech_metrics(self, target: Tensor, generated: Tensor) -> dict[str, float]:
        """The metrics of `eval_metrics` that are installed, as far as the file has enough speech for them."""
        waveforms = [waveform.cpu().numpy() for waveform in (target, generated)]
        values = {}
        for name in speech.installed(self.config.eval_metrics):
            with suppress(MetricError):
                values[name] = speech.SPEECH_METRICS[name](*waveforms, self.config.audio.sample_rate)
        return values

    def train_log(
        self, batch: dict[str, Tensor], outputs: dict[str, Tensor], logger: BaseDashboardLogger, steps: int
    ) -> None:
        """Log spectrograms and audio of the last training batch."""
        self._log(batch["waveform"][0], outputs["model_outputs"][0], logger.train_figures, logger.train_audios, steps)

    def eval_log(
        self, batch: dict[str, Tensor], outputs: dict[str, Tensor], logger: BaseDashboardLogger, steps: int
    ) -> None:
        """Log spectrograms and audio of the first evaluated files."""
        for i, (path, target, generated) in enumerate(self.clips, start=1):
            name = os.fsencode(Path(path).stem).decode(errors="replace")
            self._log(target, generated, logger.eval_figures, logger.eval_audios, steps, f"/{i}_{name}")
        self.clips = []

    def _log(
        self, target: Tensor, generated: Tensor, log_figures: Any, log_audios: Any, steps: int, suffix: str = ""
    ) -> None:
        """Log waveforms (N,), unless that which is generated is not finite: the log tells why."""
        if not generated.isfinite().all():
            return
        log_figures(steps, {f"log_mel{suffix}": spectrogram_plot(self.criterion.log_mel, target, generated)})
        audios = {f"target{suffix}": target, f"generated{suffix}": generated}
        audios = {name: audio.clamp(-1, 1).cpu().numpy() for name, audio in audios.items()}
        log_audios(steps, audios, self.config.audio.sample_rate)

    def on_init_start(self, trainer: Trainer) -> None:
        """Choose the checkpoint to go on from, or restore the weights to start from.

        Raises:
            CheckpointError: if there is none to go on from, or its weights do not fit.
            LaunchError: if this is one of several processes that cannot find each other.
        """
        self.small_run, self.grad_accum_steps = trainer.args.small_run, trainer.grad_accum_steps
        self.session = Session(self, trainer)

    def on_init_end(self, trainer: Trainer) -> None:
        """Look at the data, then take up the run or save its beginning.

        Raises:
            DataError: if there is nothing to train on, or to evaluate.
            MissingPackageError: if the best model is to be picked by a metric that cannot be had.
        """
        speech.require(self.config.target_loss)
        left_out = set(self.config.eval_metrics) - set(speech.installed(self.config.eval_metrics))
        if left_out and self.config.run_eval and distributed.rank() == 0:
            advice = "pip install 'apnet2-tts-plugin[eval]', or leave them out of eval_metrics"
            logger.warning("Not evaluated, as not installed: %s (%s)", " and ".join(sorted(left_out)), advice)
        if trainer.train_loader is None:
            trainer.train_loader = trainer.get_train_dataloader(trainer.train_samples)
        if trainer.eval_loader is None and self.config.run_eval and distributed.rank() == 0:
            trainer.eval_loader = trainer.get_eval_dataloader(trainer.eval_samples)
        if self.config.use_compile:
            for network in (self.generator, self.mpd, self.mrd):
                network.compile()
        self.session.begin()

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        """Draw other segments, in another order, than in the epoch before; after a resume, those that are left."""
        self.session.epoch_starts()

    def on_train_step_start(self, trainer: Trainer) -> None:
        """Save nothing until the step is done."""
        self.session.step_starts()

    def on_train_step_end(self, trainer: Trainer) -> None:
        """Save, if it is time, and stop, if a signal asked for it."""
        self.session.step_ends()

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """Step the schedules, which the Trainer does only for optimizers that it steps itself."""
        self.session.training_ends()
        if self.config.scheduler_after_epoch:
            trainer.scheduler[GENERATOR_OPTIMIZER].step()
            if trainer.total_steps_done > self.config.steps_to_start_discriminator:
                trainer.scheduler[DISCRIMINATOR_OPTIMIZER].step()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """The next epoch begins."""
        self.session.epoch_ends()

    def on_keyboard_interrupt(self, trainer: Trainer) -> None:
        """Say how to go on."""
        self.session.interrupted()

    def get_data_loader(
        self, config: Apnet2Config, *, is_eval: bool = False, samples: list[Any] | None = None, verbose: bool = True
    ) -> DataLoader:
        """Random segments to train on, or whole files one by one to evaluate.

        With `config.data_path` the files are those below it, split by name; `samples`, which coqui's `train_vocoder`
        splits by file-system order, are used only without it.

        Raises:
            DataError: if there is nothing to train on, or no latents for a model that vocodes them.
        """
        files = find_files(config, is_eval, samples, self.small_run)
        return evaluation_loader(config, files) if is_eval else training_loader(config, files, self.grad_accum_steps)

    def get_criterion(self) -> list[nn.Module]:
        """Placeholders, one per optimizer, as the Trainer wants them: `optimize` has the losses."""
        return [nn.Identity(), nn.Identity()]

    def get_optimizer(self) -> list[torch.optim.Optimizer]:
        """Optimizers of the discriminators, which are made now, and of the generator, in this order.

        Raises:
            ConfigError: if there is no such optimizer, or it has no such arguments.
        """
        self.add_discriminators()
        config = self.config
        discriminators = [*self.mpd.parameters(), *self.mrd.parameters()]
        name, params = config.optimizer, config.optimizer_params
        try:
            return [
                get_optimizer(name, params, config.lr_disc, parameters=discriminators),
                get_optimizer(name, params, config.lr_gen, self.generator),
            ]
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"optimizer: {name!r} with {params}, expected one of torch.optim ({one_line(error)})"
            ) from error

    def get_lr(self) -> list[float]:
        """Initial learning rates in the order of the optimizers."""
        return [self.config.lr_disc, self.config.lr_gen]

    def get_scheduler(self, optimizer: list[torch.optim.Optimizer]) -> list[torch.optim.lr_scheduler.LRScheduler]:
        """Schedules in the order of the optimizers.

        Raises:
            ConfigError: if there is no such schedule, or it has no such arguments.
        """
        schedules = []
        for kind, of in zip(("disc", "gen"), optimizer, strict=True):
            name, params = self.config[f"lr_scheduler_{kind}"], self.config[f"lr_scheduler_{kind}_params"]
            try:
                schedules.append(get_scheduler(name, params, of))
            except (AttributeError, TypeError, ValueError) as error:
                expected = f"one of torch.optim.lr_scheduler ({one_line(error)})"
                raise ConfigError(f"lr_scheduler_{kind}: {name!r} with {params}, expected {expected}") from error
        return schedules
