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

PLAIN = "plain"  # what speeds are compared with where it is measured,
BASE = "preset:base"  # and what has its weights
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
    """What does not depend on the length, or is measured at one: the longest single mel that is not streamed.

    Without a stream the first sample comes with the last. None is what was not measured.
    """

    system: str
    gflop_per_second: float
    first_sample_seconds: float | None
    snr_db: float | None
    load_seconds: float | None = None


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
    figures = _figures(systems, plan, flop, speeds)
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


def _figures(systems: dict[str, System], plan: Plan, flop: dict[str, float], speeds: list[Speed]) -> list[Figures]:
    """All but the load times, which come with the memory."""
    single = [speed for speed in speeds if speed.batch == 1 and speed.seconds <= memory.STREAMED]
    seconds = max((speed.seconds for speed in single), default=1.0)
    first_samples = {speed.system: seconds / speed.times_real_time for speed in single if speed.seconds == seconds}
    streams = {
        words: partial(_first_piece, system, system.mel(seconds, 1, plan.device))
        for words, system in systems.items()
        if system.stream is not None
    }
    times = clock.interleave(streams, plan.rounds, "first sample", plan.device)
    first_samples |= {words: statistics.median(times[words]) for words in streams}
    snrs = _snrs(systems, seconds, plan.device)
    return [Figures(words, flop[words] / 1e9, first_samples.get(words), snrs.get(words)) for words in systems]


def _first_piece(system: System, mel: Tensor) -> Tensor:
    return next(system.stream(mel))


def _snrs(systems: dict[str, System], seconds: float, device: str) -> dict[str, float]:
    """Signal-to-noise ratios in dB of those whose reference is measured too.

    Raises:
        DataError: if ours and the plain transcription, both measured, are not the same vocoder.
    """
    compared = {words: system.reference for words, system in systems.items() if system.reference in systems}
    wanted = {*compared, *compared.values()} | {PLAIN, BASE} & systems.keys()
    outputs = {words: systems[words].run(systems[words].mel(seconds, 1, device)).flatten() for words in wanted}
    _check_equal(outputs)
    return {words: _snr(outputs[reference], outputs[words]) for words, reference in compared.items()}


def _add_memory(speeds: list[Speed], figures: list[Figures], plan: Plan) -> None:
    """Fill in peak memory and load times, each system in a process of its own."""
    for figure in tqdm(figures, desc="memory", unit="system"):
        own = [speed for speed in speeds if speed.system == figure.system]
        lengths = [(speed.seconds, speed.batch) for speed in own]
        if lengths:
            arguments = figure.system, lengths, plan.threads, plan.device
            figure.load_seconds, peaks = memory.in_own_process(memory.load_and_peaks, *arguments)
            for speed, peak in zip(own, peaks, strict=True):
                speed.peak_mb = peak


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
    if {PLAIN, BASE} <= outputs.keys():
        expected = outputs[PLAIN]
        error = ((outputs[BASE] - expected).abs().max() / expected.abs().max()).item()
        if not error <= TOLERANCE:
            raise DataError(f"{BASE} differs from the plain transcription by {error:.1e} of the peak")


def _snr(reference: Tensor, other: Tensor) -> float:
    """Signal-to-noise ratio in dB."""
    noise = (other - reference).square().sum()
    return float(10 * (reference.square().sum() / noise).log10())
