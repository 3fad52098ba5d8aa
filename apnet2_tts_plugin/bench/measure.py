"""The figures of generators: speed at several lengths and batches, the first sample, memory, loading."""

import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from apnet2_tts_plugin.bench import clock, memory
from apnet2_tts_plugin.bench.systems import System, make_system
from apnet2_tts_plugin.errors import DataError

PLAIN = "plain"  # what speeds are compared with where it is measured
TOLERANCE = 1e-4  # of the peak, between the plain transcription and ours


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        systems: Words that `systems.make_system` takes.
        lengths: Seconds and batch of each mel.
        rounds: Runs of which the median is taken; one where a mel is longer than `memory.STREAMED`.
        limit: Seconds; what is expected to take longer at a length is left out there.
        threads: Of the processor.
        device: "cpu" or "cuda".
    """

    systems: list[str]
    lengths: list[tuple[float, int]]
    rounds: int
    limit: float
    threads: int
    device: str

    @property
    def reference(self) -> str:
        """What all speeds are compared with."""
        return PLAIN if PLAIN in self.systems else self.systems[0]


@dataclass
class Speed:
    """One system at one length and batch.

    `ratio` has the quartiles of its speed over that of `Plan.reference`, if that takes part.
    """

    system: str
    seconds: float
    batch: int
    times_real_time: float
    ratio: tuple[float, float, float] | None
    matrix_rate_share: float | None
    peak_mb: float | None = None


@dataclass
class Figures:
    """What does not depend on the length, or is measured at one: the longest single mel that is not streamed."""

    system: str
    load_seconds: float
    first_sample_seconds: float
    gflop_per_second: float
    snr_db: float | None


@torch.inference_mode()
def measure(plan: Plan) -> tuple[list[Speed], list[Figures]]:
    """Measure all that is planned.

    Raises:
        Apnet2Error: if a system cannot be made, or ours is not the same vocoder as the plain transcription.
    """
    torch.set_num_threads(plan.threads)
    torch.backends.cudnn.allow_tf32 = False
    systems = {words: make_system(words, plan.device) for words in plan.systems}
    flop = {words: _flop(system, plan) for words, system in systems.items()}
    speeds, expected = [], dict.fromkeys(systems, 0.0)
    for seconds, batch in sorted(plan.lengths, key=lambda length: length[0] * length[1]):
        taking_part = {
            words: system
            for words, system in systems.items()
            if expected[words] * seconds * batch <= plan.limit
            and (seconds <= memory.STREAMED or system.stream is not None and batch == 1)
        }
        found = _speeds(taking_part, seconds, batch, plan, flop)
        speeds += found
        expected |= {speed.system: 1 / speed.times_real_time for speed in found}
    figures = _figures(systems, plan, flop)
    _add_memory(speeds, figures, plan)
    return speeds, figures


def _speeds(systems: dict[str, System], seconds: float, batch: int, plan: Plan, flop: dict[str, float]) -> list[Speed]:
    """All that take part at one length and batch, in turn."""
    device = plan.device
    mels = {words: system.mel(seconds, batch, device) for words, system in systems.items()}
    runs = {words: partial(memory.vocode, system, mels[words]) for words, system in systems.items()}
    types = {system.product_type for system in systems.values()}
    products = {dtype: clock.MatrixProduct(dtype, device) for dtype in types}
    rounds = plan.rounds if seconds <= memory.STREAMED else 1
    title = f"{seconds:g} s" + (f", batch {batch}" if batch > 1 else "")
    times = clock.interleave({**runs, **products}, rounds, title, device)
    found = []
    for words, system in systems.items():
        audio = system.audio
        audio_seconds = batch * (mels[words].shape[2] - 1) * audio.hop_length / audio.sample_rate
        median = statistics.median(times[words])
        product = products[system.product_type]
        rate = product.flop / statistics.median(times[system.product_type])
        share = flop[words] * audio_seconds / median / rate if flop[words] else None
        ratio = clock.ratios(times[plan.reference], times[words]) if plan.reference in times else None
        found.append(Speed(words, seconds, batch, audio_seconds / median, ratio, share))
    return found


def _figures(systems: dict[str, System], plan: Plan, flop: dict[str, float]) -> list[Figures]:
    """All but the load times, which come with the memory."""
    seconds = max(seconds for seconds, _ in plan.lengths if seconds <= memory.STREAMED)
    mels = {words: system.mel(seconds, 1, plan.device) for words, system in systems.items()}
    outputs = {words: system.run(mels[words]).flatten() for words, system in systems.items()}
    _check_equal(outputs)
    firsts = {words: partial(_first_sample, system, mels[words]) for words, system in systems.items()}
    times = clock.interleave(firsts, plan.rounds, "first sample", plan.device)
    found = []
    for words, system in systems.items():
        known = outputs.get(system.reference)
        snr = None if known is None else _snr(known, outputs[words])
        found.append(Figures(words, 0.0, statistics.median(times[words]), flop[words] / 1e9, snr))
    return found


def _add_memory(speeds: list[Speed], figures: list[Figures], plan: Plan) -> None:
    """Fill in peak memory and load times, each system in a process of its own."""
    for figure in tqdm(figures, desc="memory", unit="system"):
        own = [speed for speed in speeds if speed.system == figure.system]
        lengths = [(speed.seconds, speed.batch) for speed in own]
        arguments = figure.system, lengths, plan.threads, plan.device
        figure.load_seconds, peaks = memory.in_own_process(memory.load_and_peaks, *arguments)
        for speed, peak in zip(own, peaks, strict=True):
            speed.peak_mb = peak


def _first_sample(system: System, mel: Tensor) -> Tensor:
    """The first audio: of a stream its first piece, else all."""
    return system.run(mel) if system.stream is None else next(system.stream(mel))


def _flop(system: System, plan: Plan) -> float:
    """Floating operations of matrix products and convolutions per second of audio, 0 where none are counted.

    What a runtime has replaced is not counted, so it is the reference that is run.
    """
    if system.reference is not None:
        system = make_system(system.reference, plan.device)
    mel = system.mel(1.0, 1, plan.device)
    with FlopCounterMode(display=False) as counter:
        system.run(mel)
    return counter.get_total_flops() * system.audio.sample_rate / ((mel.shape[2] - 1) * system.audio.hop_length)


def _check_equal(outputs: dict[str, Tensor]) -> None:
    """Stop if the plain transcription and ours, both measured, are not the same vocoder."""
    if {PLAIN, "preset:base"} <= outputs.keys():
        expected = outputs[PLAIN]
        error = ((outputs["preset:base"] - expected).abs().max() / expected.abs().max()).item()
        if not error <= TOLERANCE:
            raise DataError(f"preset:base differs from the plain transcription by {error:.1e} of the peak")


def _snr(reference: Tensor, other: Tensor) -> float:
    """Signal-to-noise ratio in dB."""
    noise = (other - reference).square().sum()
    return float(10 * (reference.square().sum() / noise).log10())
