"""APNet2 as a coqui vocoder: what the Synthesizer and the Trainer call."""

import os
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainer import Trainer
from trainer.logging import BaseDashboardLogger
from trainer.trainer_utils import get_optimizer, get_scheduler
from TTS.vocoder.models.base_vocoder import BaseVocoder

from apnet2_tts_plugin import checkpoints, distributed, losses, metrics
from apnet2_tts_plugin.config import LOSS_RESOLUTIONS, Apnet2Config
from apnet2_tts_plugin.corpus import DataError, find_audio, split, usable, with_features
from apnet2_tts_plugin.data import PADDING, EpochBatches, Segments, Utterances
from apnet2_tts_plugin.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.figures import spectrogram_figures
from apnet2_tts_plugin.generator import Generator, Prediction
from apnet2_tts_plugin.run import Run, Watch, leave_signals_to_parent
from apnet2_tts_plugin.spectra import STFT, LogMel
from apnet2_tts_plugin.step import DISCRIMINATORS, GENERATOR, Step, not_finite, parts, spectral_terms


class Apnet2(BaseVocoder):
    """The APNet2 vocoder: generator, discriminators, losses and data as `config` has them.

    Example:

        >>> model = Apnet2(Apnet2Config())
        >>> model.inference(torch.zeros(1, 80, 33)).shape
        torch.Size([1, 1, 8192])
    """

    config: Apnet2Config

    def __init__(self, config: Apnet2Config):
        super().__init__(config)
        config.check_values()
        self.generator = Generator(config)
        self.mpd = self.mrd = None  # until training needs them: see add_discriminators
        self.log_mel = LogMel.from_audio_config(config.audio)
        self.loss_mel = LogMel.from_audio_config(config.audio, full_band=True)
        resolutions = LOSS_RESOLUTIONS if config.loss_weights["multi_resolution_stft"] else ()
        self.loss_stfts = nn.ModuleList(STFT(*resolution) for resolution in resolutions)
        self.watch = Watch(config.max_skipped_steps)
        self.run: Run | None = None  # from here on: what a Trainer sets
        self.grad_accum_steps = 1
        self.small_run: int | None = None

    def add_discriminators(self) -> None:
        """Make the discriminators, larger than the generator and of no use to speak with, unless they are there."""
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

    def inference(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Speak a mel, or the latent of a VITS, whichever is the configuration's `input`.

        Args:
            mel: Natural-log mel (B, n_mels, T) as `LogMel` makes it, or latent (B, n_inputs, T) as
                `latents.vocoder_latent` makes it; floating, on the model's device, with T >= 2.
            lengths: True number of frames of each item (B,), 2 to T, for a padded batch; None when all have T.

        Returns:
            Waveform (B, 1, (T - 1) * hop_length) in float32; silence behind the end of each item.

        Raises:
            ValueError: if the input's shape or type is not as above.
        """
        name, n_inputs = self.config.input, self.config.n_inputs
        if mel.dim() != 3 or mel.shape[1] != n_inputs:
            raise ValueError(f"{name} of shape {tuple(mel.shape)}, expected (batch, {n_inputs}, frames)")
        if not mel.is_floating_point():
            raise ValueError(f"{name} of type {mel.dtype}, expected floating numbers")
        shortest = mel.shape[2] if lengths is None else int(lengths.min())
        if shortest < 2:
            hop_length = self.config.audio.hop_length
            raise ValueError(
                f"{name} of {shortest} frames, expected at least 2: T frames give (T - 1) * {hop_length} samples"
            )
        if lengths is not None and (lengths.shape != mel.shape[:1] or lengths.max() > mel.shape[2]):
            raise ValueError(f"lengths {lengths.tolist()}, expected {mel.shape[0]} numbers of 2 to {mel.shape[2]}")
        dtype = next(self.generator.parameters()).dtype
        return self.generator.inference(mel.to(dtype), lengths)[:, None]

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
        """
        checkpoints.load_model(self, checkpoint_path, generator_only=eval)
        if eval:
            self.mpd = self.mrd = None
            self.eval()

    def optimize(self, batch: dict[str, Any], trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One training step: the discriminators on the detached waveform, then the generator against them.

        An update whose gradient is not finite is left out. With `grad_accum_steps` N the batch has N times
        `batch_size` segments, which go through the networks in N parts, but make one update of each network.

        Args:
            batch: "waveform" (B, seq_len), "path", the names of their files, and "mel" (B, n_inputs, T) where the
                inputs are not to be the mels of the waveforms.
            trainer: The running Trainer, for optimizers, schedules and gradient scaling.

        Returns:
            "model_outputs", generated waveforms (B, seq_len) of the first part, and all finite losses and gradient
            norms by their names in the log; they are those of the whole batch, of all processes.

        Raises:
            DivergedError: if more than `max_skipped_steps` steps in a row were not finite.
        """
        step = Step(self, trainer, batch)
        figures = step.run()
        faults = not_finite(figures)
        self.watch.step(trainer.total_steps_done, faults, batch.get("path", []))
        finite = {name: value for name, value in figures.items() if name not in faults}
        return {"model_outputs": step.first_waveform}, finite

    def eval_step(
        self, batch: dict[str, Any], criterion: nn.Module, optimizer_idx: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Spectral losses and speech metrics of a whole utterance.

        Args:
            batch: "waveform" (1, n) and, where the input is not to be the waveform's mel, "mel" (1, n_inputs, T).
            criterion: Not used.
            optimizer_idx: The Trainer calls once per optimizer; only the generator's call has something to say.
        """
        if optimizer_idx == DISCRIMINATORS:
            if self.run is not None:
                self.run.evaluates()
            return {}, {}
        (part,) = parts(self, batch)
        predicted = self.generator(part.mel)
        terms = spectral_terms(self, part, predicted)
        logged = {f"loss_{name}": term for name, term in terms.items()}
        logged["loss"] = losses.weighted_sum(terms, self.config.loss_weights)
        logged |= self._speech_metrics(part.waveform[0], predicted.waveform[0])
        return {"model_outputs": predicted.waveform}, logged

    def _speech_metrics(self, target: Tensor, generated: Tensor) -> dict[str, float]:
        """The metrics of `eval_metrics` that are installed, as far as the file has enough speech for them."""
        names = metrics.installed(self.config.eval_metrics)
        if not generated.isfinite().all():
            return dict.fromkeys(names, float("nan"))
        waveforms = [waveform.cpu().numpy() for waveform in (target, generated)]
        figures = {}
        for name in names:
            with suppress(metrics.MetricError):
                figures[name] = metrics.SPEECH_METRICS[name](*waveforms, self.config.audio.sample_rate)
        return figures

    def train_log(
        self, batch: dict[str, Tensor], outputs: dict[str, Tensor], logger: BaseDashboardLogger, steps: int
    ) -> None:
        """Log spectrograms and audio of the last training batch."""
        target, generated = batch["waveform"][0], outputs["model_outputs"][0]
        if not generated.isfinite().all():
            return  # there is nothing to draw, and the log tells why
        logger.train_figures(steps, spectrogram_figures(self.loss_mel, target, generated))
        logger.train_audios(steps, _audios(target, generated), self.config.audio.sample_rate)

    def eval_log(
        self, batch: dict[str, Tensor], outputs: dict[str, Tensor], logger: BaseDashboardLogger, steps: int
    ) -> None:
        """Log spectrograms and audio of the last evaluated file."""
        target, generated = batch["waveform"][0], outputs[f"model_outputs_{GENERATOR}"][0]
        if not generated.isfinite().all():
            return
        logger.eval_figures(steps, spectrogram_figures(self.loss_mel, target, generated))
        logger.eval_audios(steps, _audios(target, generated), self.config.audio.sample_rate)

    def on_init_start(self, trainer: Trainer) -> None:
        """Choose the checkpoint that the Trainer is about to restore, or restore what it cannot read.

        Raises:
            CheckpointError: if there is none to go on from, or its weights do not fit.
            LaunchError: if this is one of several processes that cannot find each other.
        """
        self.small_run, self.grad_accum_steps = trainer.args.small_run, trainer.grad_accum_steps
        self.run = Run(self, trainer)

    def on_init_end(self, trainer: Trainer) -> None:
        """Look at the data, then take up the run or save its beginning.

        Raises:
            DataError: if there is nothing to train on.
            MissingPackageError: if the best model is to be picked by a figure that cannot be had.
        """
        metrics.require(self.config.target_loss)
        if trainer.train_loader is None:
            trainer.train_loader = trainer.get_train_dataloader(trainer.train_samples)
        if self.config.use_compile:
            for network in (self.generator, self.mpd, self.mrd):
                network.compile()
        self.run.begin()

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        """Draw other segments, in another order, than in the epoch before; after a resume, those that are left."""
        self.run.epoch_starts()

    def on_train_step_start(self, trainer: Trainer) -> None:
        """Save nothing until the step is done."""
        self.run.step_starts()

    def on_train_step_end(self, trainer: Trainer) -> None:
        """Save, if it is time, and stop, if a signal asked for it."""
        self.run.step_ends()

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """Step the schedules, which the Trainer does only for optimizers that it steps itself."""
        self.run.training_ends()
        if self.config.scheduler_after_epoch:
            trainer.scheduler[GENERATOR].step()
            if trainer.total_steps_done > self.config.steps_to_start_discriminator:
                trainer.scheduler[DISCRIMINATORS].step()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """The next epoch begins."""
        self.run.epoch_ends()

    def get_data_loader(
        self, config: Apnet2Config, *, is_eval: bool = False, samples: list[Any] | None = None, verbose: bool = True
    ) -> DataLoader:
        """Random segments to train on, or whole files one by one to evaluate.

        With `config.data_path` the files are those below it, split by name; `samples`, which coqui's `train_vocoder`
        splits by file-system order, are used only without it.

        Raises:
            DataError: if there is nothing to train on, or no latents for a model that speaks them.
        """
        if config.input == "latent" and not config.feature_path:
            raise DataError(
                "feature_path: none, expected the folder of latents, as input is 'latent'; "
                "recipes/ljspeech/apnet2_vits makes them with a VITS"
            )
        if config.data_path:
            samples = split(find_audio(config.data_path), config.eval_split_size)[is_eval]
        files, audio = usable(samples[: self.small_run]), config.audio
        settings = {
            "generator": torch.Generator(),  # or the loader draws from the global one whenever it starts or resumes
            "worker_init_fn": leave_signals_to_parent,
        }
        if config.feature_path:
            sizes = (config.n_inputs, audio.sample_rate, audio.hop_length)
            files = with_features(files, config.data_path, config.feature_path, *sizes, kind=config.input)
        lengths, padding = (audio.sample_rate, audio.hop_length, config.seq_len), PADDING[config.input]
        if is_eval:
            utterances = Utterances(files, *lengths, padding=padding)
            return DataLoader(utterances, num_workers=config.num_eval_loader_workers, **settings)
        segments = Segments(files, *lengths, config.training_seed, padding=padding)
        return DataLoader(
            segments,
            batch_sampler=EpochBatches(
                len(segments),
                config.batch_size * self.grad_accum_steps,
                config.training_seed,
                distributed.rank(),
                distributed.world_size(),
            ),
            num_workers=config.num_loader_workers,
            persistent_workers=config.num_loader_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **settings,
        )

    def get_criterion(self) -> list[nn.Module]:
        """Placeholders, one per optimizer, as the Trainer wants them: the losses are functions of `losses`."""
        return [nn.Identity(), nn.Identity()]

    def get_optimizer(self) -> list[torch.optim.Optimizer]:
        """Optimizers of the discriminators, which are made now, and of the generator, in this order."""
        self.add_discriminators()
        config = self.config
        discriminators = [*self.mpd.parameters(), *self.mrd.parameters()]
        name, params = config.optimizer, config.optimizer_params
        return [
            get_optimizer(name, params, config.lr_disc, parameters=discriminators),
            get_optimizer(name, params, config.lr_gen, self.generator),
        ]

    def get_lr(self) -> list[float]:
        """Initial learning rates in the order of the optimizers."""
        return [self.config.lr_disc, self.config.lr_gen]

    def get_scheduler(self, optimizer: list[torch.optim.Optimizer]) -> list[torch.optim.lr_scheduler.LRScheduler]:
        """Schedules in the order of the optimizers."""
        config = self.config
        return [
            get_scheduler(config.lr_scheduler_disc, config.lr_scheduler_disc_params, optimizer[DISCRIMINATORS]),
            get_scheduler(config.lr_scheduler_gen, config.lr_scheduler_gen_params, optimizer[GENERATOR]),
        ]


def _audios(target: Tensor, generated: Tensor) -> dict[str, Any]:
    return {"target": target.cpu().numpy(), "generated": generated.cpu().numpy()}
