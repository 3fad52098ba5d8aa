"""APNet2 as a coqui vocoder: what the Synthesizer and the Trainer call."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from trainer import Trainer
from trainer.logging import BaseDashboardLogger
from trainer.trainer_utils import get_optimizer, get_scheduler
from TTS.vocoder.models.base_vocoder import BaseVocoder

from apnet2_tts_plugin import checkpoints, losses
from apnet2_tts_plugin.config import LOSS_RESOLUTIONS, Apnet2Config
from apnet2_tts_plugin.data import Segments, Utterances, find_audio, split, usable
from apnet2_tts_plugin.discriminators import multi_period, multi_resolution
from apnet2_tts_plugin.figures import spectrogram_figures
from apnet2_tts_plugin.generator import Generator, Prediction
from apnet2_tts_plugin.spectra import STFT, LogMel

logger = logging.getLogger(__name__)

DISCRIMINATORS, GENERATOR = 0, 1  # order of the optimizers


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
        self.knows_best_loss = False  # of the run that is resumed
        self.loss_stfts = nn.ModuleList(STFT(*resolution) for resolution in resolutions)

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
        """Spectra and waveform of a natural-log mel (B, n_mels, T); for training."""
        return self.generator(mel)

    def inference(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Speak a mel.

        Args:
            mel: Natural-log mel (B, n_mels, T) as `LogMel` makes it, floating, on the model's device, with T >= 2.
            lengths: True number of frames of each item (B,), 2 to T, for a padded batch; None when all have T.

        Returns:
            Waveform (B, 1, (T - 1) * hop_length) in float32; silence behind the end of each item.

        Raises:
            ValueError: if the mel's shape or type is not as above.
        """
        n_mels = self.config.audio.num_mels
        if mel.dim() != 3 or mel.shape[1] != n_mels:
            raise ValueError(f"mel of shape {tuple(mel.shape)}, expected (batch, {n_mels}, frames)")
        if not mel.is_floating_point():
            raise ValueError(f"mel of type {mel.dtype}, expected floating numbers")
        shortest = mel.shape[2] if lengths is None else int(lengths.min())
        if shortest < 2:
            hop_length = self.config.audio.hop_length
            raise ValueError(
                f"mel of {shortest} frames, expected at least 2: T frames give (T - 1) * {hop_length} samples"
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

    def optimize(self, batch: dict[str, Tensor], trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One training step: the discriminators on the detached waveform, then the generator against them.

        Args:
            batch: "waveform" (B, seq_len).
            trainer: The running Trainer, for optimizers, schedules and gradient scaling.

        Returns:
            "model_outputs", the generated waveforms (B, seq_len), and all losses by their names in the log.
        """
        waveform = batch["waveform"]
        adversarial = trainer.total_steps_done >= self.config.steps_to_start_discriminator
        spectrum = self.log_mel.stft(waveform)
        predicted = self.generator(self.log_mel.from_spectrum(spectrum))
        logged = {}
        if adversarial:
            terms = self._discriminator_terms(waveform, predicted.waveform.detach())
            loss = losses.weighted_sum(terms, self.config.discriminator_loss_weights)
            logged |= {f"loss_disc_{name}": term for name, term in terms.items()} | {"loss_disc": loss}
            logged["grad_norm_disc"] = self._update(DISCRIMINATORS, loss, trainer)
        terms = losses.spectral_terms(spectrum, waveform, predicted, self.log_mel.stft, self.loss_mel, self.loss_stfts)
        if adversarial:
            terms |= self._adversarial_terms(waveform, predicted.waveform)
        loss = losses.weighted_sum(terms, self.config.loss_weights)
        logged |= {f"loss_{name}": term for name, term in terms.items()} | {"loss_gen": loss}
        logged["grad_norm_gen"] = self._update(GENERATOR, loss, trainer)
        if trainer.use_amp_scaler:
            trainer.scaler.update()
        return {"model_outputs": predicted.waveform.detach()}, logged

    def _discriminator_terms(self, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
        return {
            "mpd": losses.hinge_discriminator(self.mpd(real), self.mpd(generated)),
            "mrd": losses.hinge_discriminator(self.mrd(real), self.mrd(generated)),
        }

    def _adversarial_terms(self, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
        terms = {}
        for name, discriminator in (("mpd", self.mpd), ("mrd", self.mrd)):
            discriminator.requires_grad_(False)  # the generator's step needs no gradients of these weights
            with torch.no_grad():
                judged_real = discriminator(real)
            judged_generated = discriminator(generated)
            discriminator.requires_grad_(True)
            terms[f"adversarial_{name}"] = losses.hinge_generator(judged_generated)
            terms[f"feature_matching_{name}"] = losses.feature_matching(judged_real, judged_generated)
        return terms

    def _update(self, index: int, loss: Tensor, trainer: Trainer) -> Tensor:
        """Update the network of optimizer `index` by the gradient of `loss`; returns the gradient's norm."""
        optimizer = trainer.optimizer[index]
        optimizer.zero_grad(set_to_none=True)
        self.scaled_backward(loss, trainer)
        if trainer.use_amp_scaler:
            trainer.scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        limit = self.config.grad_clip[index]
        norm = nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
        if trainer.use_amp_scaler:
            trainer.scaler.step(optimizer)
        else:
            optimizer.step()
        if not self.config.scheduler_after_epoch:
            trainer.scheduler[index].step()
        return norm

    def eval_step(
        self, batch: dict[str, Tensor], criterion: nn.Module, optimizer_idx: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Spectral losses of whole utterances; "waveform" is (1, n).

        The Trainer calls this once per optimizer; only the generator's call has something to say.
        """
        if optimizer_idx == DISCRIMINATORS:
            return {}, {}
        waveform = batch["waveform"]
        spectrum = self.log_mel.stft(waveform)
        predicted = self.generator(self.log_mel.from_spectrum(spectrum))
        terms = losses.spectral_terms(spectrum, waveform, predicted, self.log_mel.stft, self.loss_mel, self.loss_stfts)
        logged = {f"loss_{name}": term for name, term in terms.items()}
        logged["loss"] = losses.weighted_sum(terms, self.config.loss_weights)
        return {"model_outputs": predicted.waveform}, logged

    def train_log(
        self, batch: dict[str, Tensor], outputs: dict[str, Tensor], logger: BaseDashboardLogger, steps: int
    ) -> None:
        """Log spectrograms and audio of the last training batch."""
        target, generated = batch["waveform"][0], outputs["model_outputs"][0]
        logger.train_figures(steps, spectrogram_figures(self.loss_mel, target, generated))
        logger.train_audios(steps, _audios(target, generated), self.config.audio.sample_rate)

    def eval_log(
        self, batch: dict[str, Tensor], outputs: dict[str, Tensor], logger: BaseDashboardLogger, steps: int
    ) -> None:
        """Log spectrograms and audio of the last evaluated file."""
        target, generated = batch["waveform"][0], outputs[f"model_outputs_{GENERATOR}"][0]
        logger.eval_figures(steps, spectrogram_figures(self.loss_mel, target, generated))
        logger.eval_audios(steps, _audios(target, generated), self.config.audio.sample_rate)

    def on_init_end(self, trainer: Trainer) -> None:
        """Refuse what `optimize` does not do.

        Raises:
            ValueError: if gradients are to be accumulated.
        """
        steps = trainer.grad_accum_steps
        if steps != 1:
            raise ValueError(f"grad_accum_steps: {steps}, expected 1: set a larger batch_size instead")

    def on_epoch_start(self, trainer: Trainer) -> None:
        """After a resume, measure the next model by the best one so far.

        The Trainer takes its loss from the last checkpoint instead, which has none of an evaluation, and would replace
        the best model by a worse one.
        """
        if trainer.continue_run and not self.knows_best_loss:
            best = checkpoints.read_tensors(trainer.args.best_path).get("model_loss")
            known = isinstance(best, dict) and best.get("eval_loss") is not None
            trainer.best_loss = best if known else {"train_loss": float("inf"), "eval_loss": float("inf")}
        self.knows_best_loss = True

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        """Draw other segments, in another order, than in the epoch before."""
        trainer.train_loader.dataset.epoch = trainer.epochs_done
        trainer.train_loader.sampler.set_epoch(trainer.epochs_done)

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """Step the schedules, which the Trainer does only for optimizers that it steps itself."""
        if self.config.scheduler_after_epoch:
            trainer.scheduler[GENERATOR].step()
            if trainer.total_steps_done > self.config.steps_to_start_discriminator:
                trainer.scheduler[DISCRIMINATORS].step()

    def get_data_loader(
        self, config: Apnet2Config, *, is_eval: bool = False, samples: list[Any] | None = None, verbose: bool = True
    ) -> DataLoader:
        """Random segments to train on, or whole files one by one to evaluate.

        With `config.data_path` the files are those below it, split by name; `samples`, which coqui's `train_vocoder`
        splits by file-system order, are used only without it.

        Raises:
            DataError: if there is nothing to train on.
        """
        if config.data_path:
            samples = split(find_audio(config.data_path), config.eval_split_size)[is_eval]
        files = usable(samples)
        audio = config.audio
        if is_eval:
            utterances = Utterances(files, audio.sample_rate, audio.hop_length, min_samples=config.seq_len)
            return DataLoader(utterances, num_workers=config.num_eval_loader_workers)
        segments = Segments(files, audio.sample_rate, config.seq_len, config.training_seed)
        # With one replica this is a shuffle that depends on seed and epoch alone.
        sampler = DistributedSampler(segments, num_replicas=1, rank=0, shuffle=True, seed=config.training_seed)
        return DataLoader(
            segments,
            config.batch_size,
            sampler=sampler,
            num_workers=config.num_loader_workers,
            pin_memory=torch.cuda.is_available(),
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
