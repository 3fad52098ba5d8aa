"""One training step: the discriminators are updated on the detached waveform, then the generator against them."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from apnet2_tts_plugin import distributed, losses
from apnet2_tts_plugin.discriminators import Discriminator
from apnet2_tts_plugin.generator import Prediction

if TYPE_CHECKING:
    from trainer import Trainer

    from apnet2_tts_plugin.model import Apnet2

DISCRIMINATORS, GENERATOR = 0, 1  # order of the optimizers


class Part(NamedTuple):
    """Segments that go through the networks together.

    `share` is theirs in the batch; waveform (B, N), its complex spectrum (B, n_bins, T), and mel (B, n_mels, T), which
    the generator gets.
    """

    share: float
    waveform: Tensor
    spectrum: Tensor
    mel: Tensor


class Network(NamedTuple):
    """What one optimizer updates: its index, names in the log, weights of the loss terms, modules by short names."""

    index: int
    name: str
    prefix: str
    loss_weights: dict[str, float]
    modules: dict[str, nn.Module]

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for module in self.modules.values() for parameter in module.parameters()]


class Step:
    """One step of `model` in `trainer` on a batch; see `Apnet2.optimize`."""

    def __init__(self, model: "Apnet2", trainer: "Trainer", batch: dict[str, Any]):
        config = model.config
        self.model = model
        self.trainer = trainer
        self.config = config
        self.parts = list(parts(model, batch))
        # One forward pass serves both updates. With several parts each update makes its own: one graph fits at a time.
        self.shared = model.generator(self.parts[0].mel) if len(self.parts) == 1 else None
        self.adversarial = trainer.total_steps_done >= config.steps_to_start_discriminator
        self.first_waveform: Tensor | None = None

    def run(self) -> dict[str, float]:
        """Make the updates; returns losses and gradient norms of the whole batch, of all processes."""
        model, config = self.model, self.config
        logged = {}
        if self.adversarial:
            modules = {"mpd": model.mpd, "mrd": model.mrd}
            weights = config.discriminator_loss_weights
            logged |= self._update(Network(DISCRIMINATORS, "disc", "loss_disc_", weights, modules))
        logged |= self._update(Network(GENERATOR, "gen", "loss_", config.loss_weights, {"gen": model.generator}))
        if self.trainer.use_amp_scaler:
            self.trainer.scaler.update()
        values = distributed.mean(torch.stack([value.float() for value in logged.values()]))
        return dict(zip(logged, values.tolist(), strict=True))

    def _update(self, network: Network) -> dict[str, Tensor]:
        """Update a network by the gradient of all parts, unless that is not finite; returns what is to be logged."""
        is_generator = network.index == GENERATOR
        self.trainer.optimizer[network.index].zero_grad(set_to_none=True)
        logged: dict[str, Tensor] = {}
        for part in self.parts:
            terms = self._generator_terms(part) if is_generator else self._discriminator_terms(part)
            loss = losses.weighted_sum(terms, network.loss_weights)
            if is_generator and part is self.parts[0] and self._logs_term_gradients():
                logged |= term_gradient_norms(terms, network)
            self.model.scaled_backward(part.share * loss, self.trainer)
            for name, term in terms.items():
                _add(logged, f"{network.prefix}{name}", part.share * term.detach())
            _add(logged, f"loss_{network.name}", part.share * loss.detach())
        return logged | self._take_step(network)

    def _take_step(self, network: Network) -> dict[str, Tensor]:
        trainer, limit = self.trainer, self.config.grad_clip[network.index]
        optimizer = trainer.optimizer[network.index]
        parameters = network.parameters()
        distributed.average_gradients(parameters)
        if trainer.use_amp_scaler:
            trainer.scaler.unscale_(optimizer)
        norms = {name: gradient_norm(p.grad for p in module.parameters()) for name, module in network.modules.items()}
        norms[network.name] = norm = torch.stack(list(norms.values())).norm()
        if norm.isfinite():
            if limit > 0:
                nn.utils.clip_grads_with_norm_(parameters, limit, norm)
            if trainer.use_amp_scaler:
                trainer.scaler.step(optimizer)
            else:
                optimizer.step()
            if not self.config.scheduler_after_epoch:
                trainer.scheduler[network.index].step()
        return {f"grad_norm_{name}": value for name, value in norms.items()}

    def _predict(self, part: Part) -> Prediction:
        return self.model.generator(part.mel) if self.shared is None else self.shared

    def _discriminator_terms(self, part: Part) -> dict[str, Tensor]:
        with torch.no_grad():
            generated = self._predict(part).waveform.detach()
        torch.clear_autocast_cache()  # weights cast without a graph must not serve the next pass, which has one
        return discriminator_terms(self.model, part.waveform, generated)

    def _generator_terms(self, part: Part) -> dict[str, Tensor]:
        predicted = self._predict(part)
        if self.first_waveform is None:
            self.first_waveform = predicted.waveform.detach()
        terms = spectral_terms(self.model, part, predicted)
        return terms | adversarial_terms(self.model, part.waveform, predicted.waveform) if self.adversarial else terms

    def _logs_term_gradients(self) -> bool:
        return self.config.log_term_gradients and self.trainer.total_steps_done % self.config.plot_step == 0


def parts(model: "Apnet2", batch: dict[str, Any]) -> Iterator[Part]:
    """The parts of a batch, one unless gradients are accumulated.

    "waveform" (B, N); "mel" (B, n_mels, T) only where it is not to be that of the waveform.
    """
    n_segments = len(batch["waveform"])
    size = model.config.batch_size if model.grad_accum_steps > 1 else n_segments
    waveforms = batch["waveform"].split(size)
    mels = batch["mel"].split(size) if "mel" in batch else [None] * len(waveforms)
    for waveform, mel in zip(waveforms, mels, strict=True):
        spectrum = model.log_mel.stft(waveform)
        mel = model.log_mel.from_spectrum(spectrum) if mel is None else mel
        yield Part(len(waveform) / n_segments, waveform, spectrum, mel)


def spectral_terms(model: "Apnet2", part: Part, predicted: Prediction) -> dict[str, Tensor]:
    """The generator's terms that need no discriminator."""
    stft = model.log_mel.stft
    return losses.spectral_terms(part.spectrum, part.waveform, predicted, stft, model.loss_mel, model.loss_stfts)


def discriminator_terms(model: "Apnet2", real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """The hinge losses of both discriminators for waveforms (B, N)."""
    return {
        "mpd": losses.hinge_discriminator(*model.mpd.pair(real, generated)),
        "mrd": losses.hinge_discriminator(*model.mrd.pair(real, generated)),
    }


def adversarial_terms(model: "Apnet2", real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """The generator's terms against both discriminators, whose own weights get no gradients."""
    discriminators: dict[str, Discriminator] = {"mpd": model.mpd, "mrd": model.mrd}
    terms = {}
    for name, discriminator in discriminators.items():
        discriminator.requires_grad_(False)
        with torch.no_grad():
            judged_real = discriminator(real)
        judged_generated = discriminator(generated)
        discriminator.requires_grad_(True)
        terms[f"adversarial_{name}"] = losses.hinge_generator(judged_generated)
        terms[f"feature_matching_{name}"] = losses.feature_matching(judged_real, judged_generated)
    return terms


def term_gradient_norms(terms: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Norm of the gradient that each weighted term alone has in the network's parameters."""
    parameters = network.parameters()
    norms = {}
    for name, term in terms.items():
        weighted = network.loss_weights[name] * term
        gradients = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True)
        norms[f"grad_norm_{name}"] = gradient_norm(gradients)
    return norms


def gradient_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """L2 norm of all gradients together."""
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def not_finite(figures: dict[str, float]) -> list[str]:
    """The names of the figures that are NaN or infinite."""
    return [name for name, value in figures.items() if not math.isfinite(value)]


def _add(figures: dict[str, Tensor], name: str, value: Tensor) -> None:
    figures[name] = figures[name] + value if name in figures else value
