"""Speed and memory of a VITS with its own decoder and with APNet2 in its place, from tokens to waveform.

    python benchmarks/vits.py --threads 2

All systems speak the same sentences through the same text encoder, duration predictor and flow, and run in turn,
several rounds, so that other load on the machine falls on all alike; figures are medians over the rounds. Sizes are
coqui's and the official ones, weights are random (seed 0); durations are predicted, then replaced by three frames for
each token. coqui speaks with a decoder that computes its weight norm in every call, so there is also one without. FLOPs
are those of convolutions and matrix products of the decoder, multiplication and addition counted apart. Peak memory is
measured in a process of its own per system, above what that process holds with its libraries loaded and no network. On
CUDA float32 means float32, not TF32. Needs the extra `dev`.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models.vits import Vits

from apnet2_tts_plugin.bench.clock import synchronise
from apnet2_tts_plugin.bench.memory import in_own_process, peaks
from apnet2_tts_plugin.bench.report import conditions
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.pairing.vits import LatentDecoder, with_decoder

FRAMES_PER_TOKEN = 3
SMALL_VITS = dict(hidden_channels=32, num_layers_text_encoder=1, num_layers_flow=1, upsample_initial_channel_decoder=32)
SMALL_PREDICTOR = dict(channels=16, hidden_channels=32, blocks=1)
STAGES = {"before": "Text encoder, durations and flow", "decoder": "Decoder", "whole": "Whole sentence"}


class FixedDurations(nn.Module):
    """A duration predictor that is asked, and whose answer is replaced by equal durations."""

    def __init__(self, predictor: nn.Module):
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        return torch.full_like(self.predictor(x, mask, **settings), math.log(FRAMES_PER_TOKEN - 0.5))


class Timed(nn.Module):
    """A decoder that notes when it was called and when it was done, in seconds."""

    def __init__(self, decoder: nn.Module, device: str):
        super().__init__()
        self.decoder = decoder
        self.device = device
        self.start = self.end = 0.0

    def forward(self, z: Tensor, g: Tensor | None = None) -> Tensor:
        self.start = now(self.device)
        waveform = self.decoder(z, g=g)
        self.end = now(self.device)
        return waveform


def now(device: str) -> float:
    synchronise(device)
    return time.perf_counter()


def make_vits(device: str, small: bool) -> Vits:
    """A VITS of one speaker of coqui's sizes."""
    torch.manual_seed(0)
    args = VitsArgs(init_discriminator=False, **SMALL_VITS if small else {})
    vits = Vits(VitsConfig(model_args=args)).eval().to(device)
    vits.duration_predictor = FixedDurations(vits.duration_predictor)
    return vits


def own(vits: Vits, small: bool) -> nn.Module:
    return vits.waveform_decoder


def own_without_weight_norm(vits: Vits, small: bool) -> nn.Module:
    for module in list(vits.waveform_decoder.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return vits.waveform_decoder


def apnet2(vits: Vits, small: bool) -> nn.Module:
    config = Apnet2Config(input_features="latent", latent_channels=vits.args.hidden_channels)
    if small:
        config.amplitude, config.phase = PredictorConfig(**SMALL_PREDICTOR), PredictorConfig(**SMALL_PREDICTOR)
    return LatentDecoder(Apnet2(config).eval().to(vits.device))


class System(NamedTuple):
    """A decoder to measure, and how it is made for a VITS."""

    title: str
    make: Callable[[Vits, bool], nn.Module]


SYSTEMS = {
    "own": System("HiFi-GAN of the VITS", own),
    "own-plain": System("HiFi-GAN of the VITS, without weight norm", own_without_weight_norm),
    "apnet2": System("APNet2", apnet2),
}


def build(name: str, vits: Vits, device: str, small: bool) -> Vits:
    """A VITS with the decoder of a system, which is timed; `vits` is that system's own."""
    return with_decoder(vits, Timed(SYSTEMS[name].make(vits, small), device))


def sentence(vits: Vits, seconds: float) -> Tensor:
    """Tokens (1, N) of a sentence that lasts about `seconds`."""
    audio = vits.config.audio
    n_tokens = max(round(seconds * audio.sample_rate / audio.hop_length / FRAMES_PER_TOKEN), 1)
    return torch.randint(vits.args.num_chars, (1, n_tokens), generator=torch.Generator().manual_seed(1)).to(vits.device)


@dataclass
class Result:
    """Figures of one stage of a system for one length of sentence."""

    system: str
    stage: str
    seconds: float  # that were asked for; the figures below count what was made
    times_real_time: float
    ratio_to_own: float | None  # speed over that of the own decoder's system in the same rounds
    decoder_gflop_per_second_of_audio: float
    peak_mb: float


def measure(names: list[str], seconds: float, rounds: int, device: str, small: bool) -> list[Result]:
    """Run the systems `names` on one sentence; `peak_mb` is left at 0."""
    models = {name: build(name, make_vits(device, small), device, small) for name in names}
    config, tokens = models[names[0]].config, sentence(models[names[0]], seconds)
    outputs = {name: speak(model, tokens) for name, model in models.items()}
    check_equal(outputs)
    flop = {name: count_flop(model.waveform_decoder, outputs[name]) for name, model in models.items()}
    times = {(name, stage): [] for name in names for stage in STAGES}
    for _ in tqdm(range(rounds), desc=f"{seconds:g} s", unit="round"):
        for name, model in models.items():
            for stage, taken in stage_times(model, tokens, device).items():
                times[name, stage].append(taken)
    audio_seconds = outputs[names[0]]["model_outputs"].numel() / config.audio.sample_rate
    return [
        Result(
            system=name,
            stage=stage,
            seconds=seconds,
            times_real_time=audio_seconds / statistics.median(taken),
            ratio_to_own=ratio(times.get(("own", stage)), taken),
            decoder_gflop_per_second_of_audio=flop[name] / audio_seconds / 1e9,
            peak_mb=0.0,
        )
        for (name, stage), taken in times.items()
    ]


def speak(model: Vits, tokens: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)  # of the prior's noise
    return model.inference(tokens)


def stage_times(model: Vits, tokens: Tensor, device: str) -> dict[str, float]:
    """Seconds that each stage of a sentence takes."""
    start = now(device)
    speak(model, tokens)
    end = now(device)
    decoder = model.waveform_decoder
    return {"before": decoder.start - start, "decoder": decoder.end - decoder.start, "whole": end - start}


def ratio(own_times: list[float] | None, times: list[float]) -> float | None:
    """Median over the rounds of how many times as fast as the own decoder's system it was."""
    return statistics.median(a / b for a, b in zip(own_times, times, strict=True)) if own_times else None


def check_equal(outputs: dict[str, dict[str, Tensor]]) -> None:
    """Stop if the systems do not speak the same latent for the same time."""
    first, *others = outputs.values()
    for other in others:
        same_length = other["model_outputs"].shape == first["model_outputs"].shape
        if not same_length or not torch.equal(other["z"], first["z"]):
            sys.exit("vits.py: the systems do not decode the same latent to the same number of samples")


@torch.no_grad()  # in inference mode the counter cannot follow weight norm
def count_flop(decoder: nn.Module, outputs: dict[str, Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        decoder(outputs["z"] * outputs["y_mask"])
    return counter.get_total_flops()


def peak_memory(name: str, lengths: list[float], threads: int, device: str, small: bool) -> list[float]:
    """MB that system `name` takes at most at each length, weights included; to be run in a process of its own."""
    torch.set_num_threads(threads)

    def prepare(model: Vits, seconds: float) -> Callable:
        return partial(speak, model, sentence(model, seconds))

    return peaks(lambda: build(name, make_vits(device, small), device, small), prepare, lengths, device)


def table(results: list[Result]) -> str:
    """Markdown, a row per stage and system; memory and GFLOP are those of the longest sentence."""
    lengths = list(dict.fromkeys(result.seconds for result in results))
    columns = [f"{seconds:g} s" for seconds in lengths] + ["GFLOP per s", "Peak MB"]
    lines = [f"| Times real time (and the own decoder's speed) | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    names = list(dict.fromkeys(result.system for result in results))
    for stage, title in STAGES.items():
        for name in names[:1] if stage == "before" else names:  # which is the same in all systems
            rows = [result for result in results if (result.system, result.stage) == (name, stage)]
            heading = title if stage == "before" else f"{title}: {SYSTEMS[name].title}"
            gflop = f"{rows[-1].decoder_gflop_per_second_of_audio:.2f}" if stage == "decoder" else ""
            peak = f"{rows[-1].peak_mb:.0f}" if stage == "whole" else ""
            lines.append(f"| {' | '.join([heading, *(speed(row) for row in rows), gflop, peak])} |")
    return "\n".join(lines)


def speed(result: Result) -> str:
    compared = result.stage != "before" and result.ratio_to_own is not None
    return f"{result.times_real_time:.1f}" + (f" ({result.ratio_to_own:.2f})" if compared else "")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 5, 20], help="lengths of what is said")
    parser.add_argument("--rounds", type=int, default=9, help="runs of which the median is taken")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="what to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the figures to")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the benchmark itself")
    return parser.parse_args()


def main() -> None:
    """Measure all systems at all lengths, and their memory in processes of their own; print and write the figures."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    lengths, settings = sorted(args.seconds), (args.device, args.small)
    results = [result for seconds in lengths for result in measure(args.systems, seconds, args.rounds, *settings)]
    for name in tqdm(args.systems, desc="memory", unit="system"):
        found = in_own_process(peak_memory, name, lengths, args.threads, *settings)
        for result in results:
            if result.system == name:
                result.peak_mb = found[lengths.index(result.seconds)]
    command = shlex.join(["python", *sys.argv])
    about = conditions(args.device, args.threads)
    print(f"{about} Medians of {args.rounds} rounds: `{command}`", table(results), sep="\n\n")
    if args.json:
        content = {"machine": about, "command": command, "results": [asdict(result) for result in results]}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
