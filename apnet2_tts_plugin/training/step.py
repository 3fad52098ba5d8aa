"""One training step: the discriminators are updated on the detached waveform, then the generator against them."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from trainer import Trainer

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.network.discriminators import Discriminator
from apnet2_tts_plugin.network.generator import Generator, Prediction
from apnet2_tts_plugin.network.harmonics import fundamental_phase
from apnet2_tts_plugin.network.pitch import Pitch
from apnet2_tts_plugin.network.spectra import LogMel
from apnet2_tts_plugin.training import distributed, losses
from apnet2_tts_plugin.training.losses import SpectralCriterion

DISCRIMINATOR_OPTIMIZER, GENERATOR_OPTIMIZER = 0, 1  # their order in the Trainer


class Networks(NamedTuple):
    """What is trained, and the analysis that makes the generator's input."""

    generator: Generator
    mpd: Discriminator
    mrd: Discriminator
    log_mel: LogMel


class MicroBatch(NamedTuple):
    """Segments that go through the networks together.

    `weight` is their share of the batch; waveform is (B, N), its complex spectrum (B, n_bins, T), and features, which
    the generator gets, (B, n_inputs, T); f0 is the pitch in Hz (B, T), 0 where nothing is voiced, None where it is not
    asked for.
    """

    weight: float
    waveform: Tensor
    spectrum: Tensor
    features: Tensor
    f0: Tensor | None = None


def training_step(
    networks: Networks, criterion: SpectralCriterion, config: Apnet2Config, trainer: Trainer, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, float]]:
    """Update the discriminators and the generator once; an update whose gradient is not finite is left out.

    Args:
        networks: The networks.
        criterion: The spectral losses.
        config: Weights of the losses, clipping, and when the discriminators join.
        trainer: The running Trainer, for optimizers, schedules and gradient scaling.
        batch: As `micro_batches` takes it.

    Returns:
        Waveforms (B, N) generated for the first micro-batch, and losses and gradient norms by their names in the log:
        those of the whole batch, of all processes.
    """
    generator, discriminators = networks.generator, {"mpd": networks.mpd, "mrd": networks.mrd}
    parts = micro_batches(networks.log_mel, batch, trainer.grad_accum_steps)
    adversarial = trainer.total_steps_done >= config.steps_to_start_discriminator
    logs_term_gradients = config.log_term_gradients and trainer.total_steps_done % config.plot_step == 0
    logged: dict[str, Tensor] = {}

    # One forward pass serves both updates; of several micro-batches each makes its own, as one graph fits at a time.
    shared = predict(networks, parts[0]) if len(parts) == 1 else None

    if adversarial:
        trainer.optimizer[DISCRIMINATOR_OPTIMIZER].zero_grad(set_to_none=True)
        for part in parts:
            with torch.no_grad():
                predicted = predict(networks, part) if shared is None else shared
            torch.clear_autocast_cache()  # weights cast without a graph must not serve the next pass, which has one
            generated = predicted.waveform.detach()
            terms = {
                name: losses.hinge_discriminator(*discriminator.pair(part.waveform, generated))
                for name, discriminator in discriminators.items()
            }
            loss = losses.weighted_sum(terms, config.discriminator_loss_weights)
            backward(part.weight * loss, trainer)
            log_terms(logged, {**_prefixed("loss_disc_", terms), "loss_disc": loss}, part.weight)
        logged |= update(DISCRIMINATOR_OPTIMIZER, "disc", discriminators, config, trainer)

    trainer.optimizer[GENERATOR_OPTIMIZER].zero_grad(set_to_none=True)
    first_waveform = None
    for part in parts:
        predicted = predict(networks, part) if shared is None else shared
        terms = criterion(part.spectrum, part.waveform, predicted, part.f0)
        if adversarial:
            for name, discriminator in discriminators.items():
                terms |= adversarial_terms(name, discriminator, part.waveform, predicted.waveform)
        loss = losses.weighted_sum(terms, config.loss_weights)
        if first_waveform is None:
            first_waveform = predicted.waveform.detach()
            if logs_term_gradients:
                logged |= term_gradient_norms(terms, config.loss_weights, generator)
        backward(part.weight * loss, trainer)
        log_terms(logged, {**_prefixed("loss_", terms), "loss_gen": loss}, part.weight)
    logged |= update(GENERATOR_OPTIMIZER, "gen", {"gen": generator}, config, trainer)

    if trainer.use_amp_scaler:
        trainer.scaler.update()
    values = distributed.mean(torch.stack([value.float() for value in logged.values()]))
    return first_waveform, dict(zip(logged, values.tolist(), strict=True))


def micro_batches(log_mel: LogMel, batch: dict[str, Any], n: int = 1) -> list[MicroBatch]:
    """A batch in up to `n` pieces of equal size, the last one perhaps smaller.

    Args:
        log_mel: The generator's analysis.
        batch: "waveform" (B, N), "features" (B, n_inputs, T) only where they are not the mel of the waveform, and "f0"
            (B, T) only where the generator starts from the pitch.
        n: Number of pieces.
    """
    n_segments = len(batch["waveform"])
    size = -(-n_segments // n)
    waveforms = batch["waveform"].split(size)
    given = [batch[key].split(size) if key in batch else [None] * len(waveforms) for key in ("features", "f0")]
    parts = []
    for waveform, features, f0 in zip(waveforms, *given, strict=True):
        spectrum = log_mel.stft(waveform)
        mel = log_mel.from_spectrum(spectrum) if features is None else features
        parts.append(MicroBatch(len(waveform) / n_segments, waveform, spectrum, mel, f0))
    return parts


def predict(networks: Networks, part: MicroBatch) -> Prediction:
    """What the generator predicts, with pitch and phase of the recordings' fundamentals where it starts from them.

    So what is left to predict is a function of the envelope, which the mel shows, and not of where a period begins.
    """
    generator = networks.generator
    if part.f0 is None:
        return generator(part.features)
    pitch = Pitch(part.f0.clamp(min=generator.pitch.f0_min), (part.f0 > 0).float())
    phi = fundamental_phase(part.waveform, pitch, generator.hop_length, generator.sample_rate, generator.istft.window)
    return generator(part.features, pitch, phi)


def adversarial_terms(name: str, discriminator: Discriminator, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """The generator's terms against a discriminator, whose own weights get no gradients; waveforms are (B, N)."""
    discriminator.requires_grad_(False)
    with torch.no_grad():
        judged_real = discriminator(real)
    judged_generated = discriminator(generated)
    discriminator.requires_grad_(True)
    return {
        f"adversarial_{name}": losses.hinge_generator(judged_generated),
        f"feature_matching_{name}": losses.feature_matching(judged_real, judged_generated),
    }


def backward(loss: Tensor, trainer: Trainer) -> None:
    """Add the gradients of a loss, scaled if the Trainer scales them."""
    (trainer.scaler.scale(loss) if trainer.use_amp_scaler else loss).backward()


def update(
    index: int, name: str, modules: dict[str, nn.Module], config: Apnet2Config, trainer: Trainer
) -> dict[str, Tensor]:
    """Step optimizer `index` by the gradients of all processes, unless they are not finite.

    Args:
        index: Which optimizer.
        name: What all modules together are called in the log.
        modules: The modules that it updates, by their names in the log.
        config: Clipping and schedule.
        trainer: The running Trainer.

    Returns:
        The gradient norms of each module and of all together, before clipping.
    """
    optimizer, limit = trainer.optimizer[index], config.grad_clip[index]
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    distributed.average_gradients(parameters)
    if trainer.use_amp_scaler:
        trainer.scaler.unscale_(optimizer)
    norms = {key: gradient_norm(p.grad for p in module.parameters()) for key, module in modules.items()}
    norms[name] = norm = torch.stack(list(norms.values())).norm()
    if norm.isfinite():
        if limit > 0:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        if trainer.use_amp_scaler:
            trainer.scaler.step(optimizer)
        else:
            optimizer.step()
        if not config.scheduler_after_epoch:
            trainer.scheduler[index].step()
    return {f"grad_norm_{key}": value for key, value in norms.items()}


def term_gradient_norms(terms: dict[str, Tensor], weights: dict[str, float], generator: Generator) -> dict[str, Tensor]:
    """Norm of the gradient that each weighted term alone has in the generator's parameters."""
    parameters = list(generator.parameters())
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(weights[name] * term, parameters, retain_graph=True, allow_unused=True)
        norms[f"grad_norm_{name}"] = gradient_norm(gradients)
    return norms


def gradient_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """L2 norm of all gradients together."""
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def not_finite(values: dict[str, float]) -> list[str]:
    """The names of the values that are NaN or infinite."""
    return [name for name, value in values.items() if not math.isfinite(value)]


def log_terms(logged: dict[str, Tensor], terms: dict[str, Tensor], weight: float) -> None:
    """Add terms of a micro-batch, times its weight, to what is logged."""
    for name, term in terms.items():
        logged[name] = logged.get(name, 0.0) + weight * term.detach()


def _prefixed(prefix: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": term for name, term in terms.items()}
