"""Speed and memory of inference: APNet2 against HiFi-GAN v1, Vocos and a plain transcription of the official code.

    python benchmarks/inference.py --threads 2

All systems run in turn, several rounds, so that other load on the machine falls on all alike; figures are medians over
the rounds. Weights are random (seed 0), the mel is that of a synthetic voice. FLOPs are those of convolutions and
matrix products, multiplication and addition counted apart. Peak memory is measured in a process of its own per system,
above what that process holds with its libraries loaded and no network. On CUDA float32 means float32, not TF32. Needs
the extra `dev`.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from official import OfficialGenerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from TTS.vocoder.configs.hifigan_config import HifiganConfig
from TTS.vocoder.models.hifigan_generator import HifiganGenerator
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone

from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.network.precision import emulates_bf16
from apnet2_tts_plugin.network.spectra import LogMel
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.official import rename_official

BF16 = ("ours-autocast", "ours-bf16", "bundled-bf16")  # measured by default only where there are instructions for it
BUNDLED = store.BUNDLED / "apnet2"
TOLERANCE = 1e-4  # of the peak, between the plain transcription and ours


@dataclass
class System:
    """A vocoder to measure: `run` makes waveforms of mels (1, n_mels, T) in the type of its weights."""

    title: str
    network: nn.Module
    run: Callable[[Tensor], Tensor]
    audio: Apnet2AudioConfig = field(default_factory=Apnet2AudioConfig)
    autocast: bool = False
    reference: str | None = None  # the system that has the same weights in float32

    @property
    def weight_type(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def product_type(self) -> torch.dtype:
        """What it computes matrix products in."""
        return torch.bfloat16 if self.autocast else self.weight_type

    def mel(self, seconds: float) -> Tensor:
        """Natural-log mel, on the network's device, of a voice that lasts `seconds`."""
        sample_rate, hop_length = self.audio.sample_rate, self.audio.hop_length
        t = torch.arange(round(seconds * sample_rate / hop_length) * hop_length) / sample_rate
        phase = 2 * torch.pi * (120 * t + 10 * torch.sin(2 * torch.pi * t))  # 57 to 183 Hz
        loudness = 0.1 + torch.sin(2 * torch.pi * 1.5 * t).abs()
        voice = loudness * sum(torch.cos(k * phase) / k for k in range(1, 30)) / 10
        mel = LogMel.from_audio_config(self.audio)(voice[None])
        return mel.to(next(self.network.parameters()).device, self.weight_type)

    def __call__(self, mel: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(mel.device.type, torch.bfloat16, enabled=self.autocast):
            return self.run(mel)


def plain(device: str) -> System:
    network = OfficialGenerator().to(device)
    return System("Plain transcription, float32", network, network)


def ours(device: str, precision: str = "float32") -> System:
    """Our generator of the official sizes with the weights of the plain transcription."""
    weights = rename_official("generator", OfficialGenerator().state_dict())
    network = Generator(Apnet2Config())
    network.load_state_dict(weights)
    return apnet2("APNet2", network.to(device), "ours", precision)


def bundled(device: str, precision: str = "float32") -> System:
    """The trained model that comes with the plugin."""
    model = load_model(BUNDLED, device)
    system = apnet2("APNet2, bundled model", model.generator, "bundled", precision)
    system.audio = model.config.audio
    return system


def apnet2(title: str, network: Generator, reference: str, precision: str) -> System:
    if precision == "float32":
        return System(f"{title}, float32", network, network.inference)
    if precision == "autocast":
        return System(f"{title}, bf16 autocast", network, network.inference, autocast=True, reference=reference)
    return System(f"{title}, bf16 weights", network.bfloat16(), network.inference, reference=reference)


def hifigan(device: str) -> System:
    """coqui's HiFi-GAN v1, without weight norm, as its inference has it."""
    network = HifiganGenerator(80, 1, **HifiganConfig().generator_model_params)
    network.remove_weight_norm()
    network.to(device)
    return System("HiFi-GAN v1 (coqui), float32", network, network)


def vocos(device: str) -> System:
    """Vocos of the sizes of the published model vocos-mel-24khz."""
    network = nn.Sequential(VocosBackbone(100, 512, 1536, 8), ISTFTHead(512, 1024, 256, padding="center")).to(device)
    audio = Apnet2AudioConfig(sample_rate=24000, num_mels=100)
    return System("Vocos (24 kHz), float32", network, network, audio)


SYSTEMS: dict[str, Callable[[str], System]] = {
    "plain": plain,
    "ours": ours,
    "ours-autocast": partial(ours, precision="autocast"),
    "ours-bf16": partial(ours, precision="bf16"),
    "hifigan": hifigan,
    "vocos": vocos,
}
if BUNDLED.is_dir():
    SYSTEMS |= {"bundled": bundled, "bundled-bf16": partial(bundled, precision="bf16")}


def build(name: str, device: str) -> System:
    torch.manual_seed(0)
    system = SYSTEMS[name](device)
    system.network.eval()
    return system


@dataclass
class Result:
    """Figures of one system for one length of utterance."""

    system: str
    title: str
    seconds: float  # of audio that were asked for; the figures below count what was made
    times_real_time: float
    ratio_to_plain: float | None  # speed over that of the plain transcription in the same rounds
    peak_mb: float
    gflop_per_second_of_audio: float
    share_of_matrix_product_rate: float
    snr_db: float | None  # against the same weights in float32


def measure(names: list[str], seconds: float, rounds: int, device: str) -> list[Result]:
    """Run the systems `names` on an utterance of one length; `peak_mb` is left at 0."""
    systems = {name: build(name, device) for name in names}
    mels = {name: system.mel(seconds) for name, system in systems.items()}
    outputs = {name: system(mels[name]) for name, system in systems.items()}
    check_equal(outputs)
    flop = {name: count_flop(system, mels[name]) for name, system in systems.items()}
    runs = {name: partial(system, mels[name]) for name, system in systems.items()}
    products = {dtype: MatrixProduct(dtype, device) for dtype in {s.product_type for s in systems.values()}}
    times = interleave({**runs, **products}, rounds, f"{seconds:g} s", device)
    results = []
    for name, system in systems.items():
        audio_seconds = outputs[name].numel() / system.audio.sample_rate
        median = statistics.median(times[name])
        product = products[system.product_type]
        product_rate = product.flop / statistics.median(times[system.product_type])
        ratios = [a / b for a, b in zip(times.get("plain", []), times[name], strict=False)]
        results.append(
            Result(
                system=name,
                title=system.title,
                seconds=seconds,
                times_real_time=audio_seconds / median,
                ratio_to_plain=statistics.median(ratios) if ratios else None,
                peak_mb=0.0,
                gflop_per_second_of_audio=flop[name] / audio_seconds / 1e9,
                share_of_matrix_product_rate=flop[name] / median / product_rate,
                snr_db=snr(outputs[system.reference], outputs[name]) if system.reference in outputs else None,
            )
        )
    return results


class MatrixProduct:
    """A large square matrix product, the fastest that the machine computes in `dtype`."""

    def __init__(self, dtype: torch.dtype, device: str):
        size = 8192 if device == "cuda" else 2048
        self.flop = 2 * size**3
        self.factors = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]

    def __call__(self) -> Tensor:
        return torch.mm(*self.factors)


def interleave(runs: dict, rounds: int, title: str, device: str) -> dict:
    """Seconds that each of `runs` took in each round, after one round that does not count."""
    times = {name: [] for name in runs}
    for i in tqdm(range(rounds + 1), desc=title, unit="round"):
        for name, run in runs.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if i:
                times[name].append(time.perf_counter() - start)
    return times


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def check_equal(outputs: dict[str, Tensor]) -> None:
    """Stop if the plain transcription and ours, both measured, are not the same vocoder."""
    if {"plain", "ours"} <= outputs.keys():
        expected = outputs["plain"].flatten()
        error = (outputs["ours"].flatten() - expected).abs().max() / expected.abs().max()
        if not error <= TOLERANCE:
            sys.exit(f"inference.py: ours differs from the plain transcription by {error:.1e} of the peak")


def count_flop(system: System, mel: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        system(mel)
    return counter.get_total_flops()


def snr(reference: Tensor, other: Tensor) -> float:
    """Signal-to-noise ratio in dB."""
    noise = (other - reference).square().sum()
    return float(10 * (reference.square().sum() / noise).log10())


def peak_memory(name: str, lengths: list[float], threads: int, device: str) -> list[float]:
    """MB that system `name` takes at most at each length, weights included; to be run in a process of its own."""
    torch.set_num_threads(threads)

    def prepare(system: System, seconds: float) -> Callable:
        return partial(system, system.mel(seconds))

    return peaks(partial(build, name, device), prepare, lengths, device)


def peaks(make: Callable, prepare: Callable, lengths: list[float], device: str) -> list[float]:
    """MB that what `make` makes takes at most in the runs that `prepare` makes ready, one for each of `lengths`."""
    prepare(make(), lengths[0])()  # have the libraries loaded whose code would else count as the system's memory
    reset_peak(device)
    before = memory("now", device)
    system, found = make(), []
    for seconds in lengths:
        run_once = prepare(system, seconds)
        reset_peak(device)
        run_once()
        found.append(memory("peak", device) - before)
    return found


def memory(which: str, device: str) -> float:
    """MB that this process holds "now", or held at its "peak"; on CUDA what its tensors hold."""
    if device == "cuda":
        return (torch.cuda.memory_allocated() if which == "now" else torch.cuda.max_memory_allocated()) / 1e6
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[which]
    status = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(status[status.index(field) + 1]) * 1024 / 1e6


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what building left behind is not the run's
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets the peak to what is held now


def machine(device: str, threads: int) -> str:
    """What the figures hold for, in one paragraph."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
        name = f"{models[0] if models else platform.machine()}, {threads} threads"
        name += f" ({torch.backends.cpu.get_cpu_capability()})"
    text = f"{date.today()}, {name}, torch {torch.__version__}, Python {platform.python_version()}."
    emulated = " It has no bf16 instructions, so that bf16 is emulated, and left out where nobody asks for it."
    return text + emulated * emulates_bf16(device)


def table(results: list[Result]) -> str:
    """Markdown, a row per system; memory, share and SNR are those of the longest utterance."""
    lengths = list(dict.fromkeys(result.seconds for result in results))
    columns = [f"{seconds:g} s" for seconds in lengths]
    columns += ["Peak MB", "GFLOP per s", "Share of matrix rate", "SNR dB"]
    lines = [f"| Times real time (and plain's speed) | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(result.system for result in results):
        rows = [result for result in results if result.system == name]
        last = rows[-1]
        cells = [last.title, *(speed(row) for row in rows), f"{last.peak_mb:.0f}"]
        cells += [f"{last.gflop_per_second_of_audio:.2f}", f"{last.share_of_matrix_product_rate:.0%}"]
        cells.append("" if last.snr_db is None else f"{last.snr_db:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(result: Result) -> str:
    ratio = "" if result.ratio_to_plain is None else f" ({result.ratio_to_plain:.2f})"
    return f"{result.times_real_time:.1f}{ratio}"


def make_parser(description: str, systems: Iterable[str], seconds: list[float]) -> argparse.ArgumentParser:
    """The arguments of a benchmark that compares systems."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--seconds", type=float, nargs="+", default=seconds, help="lengths of what is said")
    parser.add_argument("--rounds", type=int, default=9, help="runs of which the median is taken")
    parser.add_argument("--systems", nargs="+", choices=systems, default=list(systems), help="what to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the figures to")
    return parser


def run(args: argparse.Namespace, measure: Callable, peak_memory: Callable, table: Callable, *settings: Any) -> None:
    """Measure all systems at all lengths, and their memory in processes of their own; print and write the figures."""
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    lengths, settings = sorted(args.seconds), (args.device, *settings)
    results = [result for seconds in lengths for result in measure(args.systems, seconds, args.rounds, *settings)]
    for name in tqdm(args.systems, desc="memory", unit="system"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks = process.submit(peak_memory, name, lengths, args.threads, *settings).result()
        for result in results:
            if result.system == name:
                result.peak_mb = peaks[lengths.index(result.seconds)]
    command = shlex.join(["python", *sys.argv])
    about = machine(args.device, args.threads)
    print(f"{about} Medians of {args.rounds} rounds: `{command}`", table(results), sep="\n\n")
    if args.json:
        content = {"machine": about, "command": command, "results": [asdict(result) for result in results]}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def default_systems(device: str) -> list[str]:
    """All of them, but for those in bf16 where it is emulated: on some processors they take hours."""
    return [name for name in SYSTEMS if not (name in BF16 and emulates_bf16(device))]


def main() -> None:
    """Measure and print the table."""
    parser = make_parser(__doc__, SYSTEMS, [0.25, 1, 5, 20])
    parser.set_defaults(systems=None)
    args = parser.parse_args()
    args.systems = args.systems or default_systems(args.device)
    run(args, measure, peak_memory, table)


if __name__ == "__main__":
    main()
