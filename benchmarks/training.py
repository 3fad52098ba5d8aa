"""Speed and memory of a training step: every mode of ours against a plain transcription of the official step.

    python benchmarks/training.py --threads 2

All modes start from the same weights (seed 0), on the same noise as waveforms. Before anything is timed, the losses of
the first step of the plain transcription and of ours must agree. Then all modes run in turn, one step each a round, so
that other load on the machine falls on all alike: figures are medians over the rounds, and those in brackets are of
each mode's fastest round. The transcription gets its mels and spectra for nothing, as the official data loader makes
them beforehand; ours computes them within the step. FLOPs are those of convolutions and matrix products, multiplication
and addition counted apart. Peak memory is measured in a process of its own per mode, above what that process holds with
its libraries loaded. On CUDA float32 means float32, not TF32, unless the mode says TF32. Needs the extra `dev`.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from official import OfficialTraining, Sizes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from apnet2_tts_plugin.bench.clock import MatrixProduct, interleave
from apnet2_tts_plugin.bench.memory import memory, reset_peak
from apnet2_tts_plugin.bench.report import conditions
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.precision import emulates_bf16
from apnet2_tts_plugin.weights.official import rename_official

SAMPLE_RATE = 22050
TOLERANCE = 1e-3  # of each loss, between the plain transcription and ours
SMALL = Sizes(16, 32, 1, (4, 8, 8, 8, 8), 4)  # to try the benchmark itself


@dataclass(frozen=True)
class Mode:
    """A way to make the step; `official` is the plain transcription."""

    title: str
    official: bool = False
    fused: bool = False
    autocast: bool = False
    compiled: bool = False
    adversarial: bool = True
    tf32: bool = False

    @property
    def product_type(self) -> torch.dtype:
        """What it computes matrix products in."""
        return torch.bfloat16 if self.autocast else torch.float32


MODES = {
    "plain": Mode("Plain transcription, float32", official=True),
    "ours": Mode("APNet2, float32"),
    "fused": Mode("APNet2, float32, fused AdamW", fused=True),
    "autocast": Mode("APNet2, bf16 autocast, fused AdamW", fused=True, autocast=True),
    "compile": Mode("APNet2, float32, fused AdamW, torch.compile", fused=True, compiled=True),
    "autocast-compile": Mode(
        "APNet2, bf16 autocast, fused AdamW, torch.compile", fused=True, autocast=True, compiled=True
    ),
    "spectral": Mode("APNet2, float32, fused AdamW, before the discriminators join", fused=True, adversarial=False),
    "plain-tf32": Mode("Plain transcription, TF32", official=True, tf32=True),
    "fused-tf32": Mode("APNet2, TF32, fused AdamW", fused=True, tf32=True),
}
CPU_MODES = ("plain", "ours", "fused", "autocast", "spectral")  # by default: torch.compile takes minutes there


class Training:
    """Networks and optimizers of `mode`; a call makes one step and returns its losses by their names in the log."""

    def __init__(self, mode: Mode, sizes: Sizes, batch_size: int, samples: int, device: str):
        torch.manual_seed(0)
        self.mode = mode
        waveform = 0.1 * torch.randn(batch_size, samples)
        official = OfficialTraining(sizes)
        if mode.official:
            official.to(device)
            self.run = partial(official.step, official.features(waveform.to(device)))
        else:
            self.run = our_step(mode, official, sizes, waveform.to(device))
        self.device = device

    def __call__(self) -> dict[str, Tensor]:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.mode.tf32
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mode.autocast):
            return {name: torch.as_tensor(loss).detach() for name, loss in self.run().items()}


def our_step(mode: Mode, official: OfficialTraining, sizes: Sizes, waveform: Tensor) -> Callable[[], dict]:
    """The step of our model with the weights of the transcription."""
    config = our_config(sizes)
    config.optimizer_params["fused"] = mode.fused
    config.steps_to_start_discriminator = 0 if mode.adversarial else sys.maxsize
    model = Apnet2(config)
    model.add_discriminators()
    for name in ("generator", "mpd", "mrd"):
        getattr(model, name).load_state_dict(rename_official(name, getattr(official, name).state_dict()))
    model.to(waveform.device)
    # what a step asks of the Trainer
    trainer = SimpleNamespace(
        optimizer=model.get_optimizer(), use_amp_scaler=False, total_steps_done=0, grad_accum_steps=1
    )
    trainer.scheduler = model.get_scheduler(trainer.optimizer)
    if mode.compiled:
        for network in (model.generator, model.mpd, model.mrd):
            network.compile()
    return lambda: model.optimize({"waveform": waveform}, trainer)[1]


def our_config(sizes: Sizes) -> Apnet2Config:
    predictor = dict(channels=sizes.channels, hidden_channels=sizes.hidden_channels, blocks=sizes.blocks)
    return Apnet2Config(
        amplitude=PredictorConfig(**predictor),
        phase=PredictorConfig(**predictor),
        mpd_channels=list(sizes.mpd_channels),
        mrd_channels=sizes.mrd_channels,
    )


@dataclass
class Result:
    """Figures of one mode."""

    mode: str
    title: str
    seconds_per_step: float
    fastest_seconds_per_step: float
    ratio_to_plain: float | None  # speed over that of the plain transcription in the same rounds
    fastest_ratio_to_plain: float | None  # the same of the fastest round of each
    audio_seconds_per_second: float
    tflop_per_step: float
    share_of_matrix_product_rate: float
    peak_mb: float = 0.0


def measure(trainings: dict[str, Training], rounds: int, audio_seconds: float) -> tuple[list[Result], dict[str, float]]:
    """Figures of all modes but their memory, and GFLOP/s of a large matrix product in each type that they use."""
    device = next(iter(trainings.values())).device
    flop, logged = {}, {}
    for name, training in tqdm(trainings.items(), desc="first step", unit="mode"):
        flop[name], logged[name] = first_step(training)
    check_equal(logged)
    products = {dtype: MatrixProduct(dtype, device) for dtype in {t.mode.product_type for t in trainings.values()}}
    times = interleave({**trainings, **products}, rounds, "steps", device)
    rates = {dtype: product.flop / statistics.median(times[dtype]) for dtype, product in products.items()}
    plain = times.get("plain")
    results = []
    for name, training in trainings.items():
        median, fastest = statistics.median(times[name]), min(times[name])
        results.append(
            Result(
                mode=name,
                title=training.mode.title,
                seconds_per_step=median,
                fastest_seconds_per_step=fastest,
                ratio_to_plain=statistics.median(a / b for a, b in zip(plain, times[name], strict=True))
                if plain
                else None,
                fastest_ratio_to_plain=min(plain) / fastest if plain else None,
                audio_seconds_per_second=audio_seconds / median,
                tflop_per_step=flop[name] / 1e12,
                share_of_matrix_product_rate=flop[name] / median / rates[training.mode.product_type],
            )
        )
    return results, {str(dtype).removeprefix("torch."): rate / 1e9 for dtype, rate in rates.items()}


def check_equal(logged: dict[str, dict[str, Tensor]]) -> None:
    """Stop if the plain transcription and ours, both measured, do not have the same losses."""
    if {"plain", "ours"} <= logged.keys():
        for name, expected in logged["plain"].items():
            error = float((logged["ours"][name] / expected - 1).abs())
            if not error <= TOLERANCE:
                sys.exit(f"training.py: {name} of ours differs from the plain transcription's by {error:.1e}")


def first_step(training: Training) -> tuple[int, dict[str, Tensor]]:
    """FLOPs and losses of a step without torch.compile, which makes the same products."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        logged = training()
    return counter.get_total_flops(), logged


def peak_memory(build: Callable[[], Training], threads: int, device: str) -> float:
    """MB that training takes at most in two steps, weights included; to be run in a process of its own."""
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.cuda.init()
    before = memory("now", device)
    training = build()
    reset_peak(device)
    for _ in range(2):  # the optimizers' state comes with the first one
        training()
    return memory("peak", device) - before


def print_profile(training: Training) -> None:
    """Print what one step spends its time on."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (training.device == "cuda")
    with profile(activities=activities) as profiler:
        training()
        if training.device == "cuda":
            torch.cuda.synchronize()
    order = f"self_{training.device}_time_total"
    print(training.mode.title, profiler.key_averages().table(sort_by=order, row_limit=25), sep="\n\n")


def table(results: list[Result]) -> str:
    """Markdown, a row per mode."""
    rows = []
    for result in results:
        ratio, fastest = result.ratio_to_plain, result.fastest_ratio_to_plain
        cells = {
            "Mode": result.title,
            "s per step": f"{result.seconds_per_step:.3g} ({result.fastest_seconds_per_step:.3g})",
            "Steps per s": f"{1 / result.seconds_per_step:.3g}",
            "Times plain's speed": "" if ratio is None else f"{ratio:.2f} ({fastest:.2f})",
            "s of audio per s": f"{result.audio_seconds_per_second:.2f}",
            "TFLOP per step": f"{result.tflop_per_step:.2f}",
            "Share of matrix rate": f"{result.share_of_matrix_product_rate:.0%}",
            "Peak MB": f"{result.peak_mb:.0f}",
        }
        rows.append(f"| {' | '.join(cells.values())} |")
    return "\n".join([f"| {' | '.join(cells)} |", "|---" * len(cells) + "|", *rows])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--batch_size", type=int, default=16, help="segments of a batch")
    parser.add_argument("--samples", type=int, default=8192, help="samples of a segment")
    parser.add_argument("--rounds", type=int, default=5, help="steps of which the median is taken")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="what to measure (default: all of the device)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--profile", nargs="+", choices=MODES, default=[], help="modes whose step to profile as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the figures to")
    return parser.parse_args()


def default_modes(device: str) -> list[str]:
    """Those that pay on the device: bf16 that is emulated takes hours on some processors."""
    names = MODES if device == "cuda" else CPU_MODES
    return [name for name in names if not (MODES[name].autocast and emulates_bf16(device))]


def main() -> None:
    """Measure and print the table."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    names = args.modes or default_modes(args.device)
    sizes = SMALL if args.small else Sizes()
    build = {name: partial(Training, MODES[name], sizes, args.batch_size, args.samples, args.device) for name in MODES}
    trainings = {name: build[name]() for name in names}
    results, rates = measure(trainings, args.rounds, args.batch_size * args.samples / SAMPLE_RATE)
    del trainings
    for result in tqdm(results, desc="memory", unit="mode"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            result.peak_mb = process.submit(peak_memory, build[result.mode], args.threads, args.device).result()
    command = shlex.join(["python", *sys.argv])
    about = conditions(args.device, args.threads)
    about += " A large matrix product reaches " + ", ".join(f"{rate:.0f} GFLOP/s in {t}" for t, rate in rates.items())
    print(f"{about}. Medians of {args.rounds} rounds: `{command}`", table(results), sep="\n\n")
    if args.json:
        content = {"machine": about, "command": command, "results": [asdict(result) for result in results]}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in args.profile:
        training = build[name]()
        training()
        print_profile(training)


if __name__ == "__main__":
    main()
