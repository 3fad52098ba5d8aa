"""The same time of one thread for several vocoders: what each has learned after so many minutes.

    python benchmarks/equal_time.py hifigan --data recipes/natural/natural_corpus/wavs --out runs --minutes 1 2 5 10
    apnet2 evaluate recordings/ --system coqui:runs/hifigan/10 --system runs/pitch/10 --out report
    python benchmarks/equal_time.py plot --report report --out docs/equal_time.svg

Each trains in coqui's Trainer: `hifigan` is HiFi-GAN v1 with the settings of coqui's recipe, `published` an APNet2 with
its published losses and discriminators, `freev` the same with FreeV's start of the amplitude, and `pitch`, by
recipes/natural, the one whose phase starts from the pitch. The APNet2s have about as many parameters. All have batches
of 4 segments, as long as in their recipes, and no evaluation on the way. Time is that of the processor, from the first
step on, so that other load on the machine does not count; reading the corpus is in it, finding its pitch beforehand is
not. After each of the minutes the networks are written to OUT/SYSTEM/MINUTES, and a line to OUT/SYSTEM/log.tsv.
`--spectral-only` trains without discriminators, which take most of a step of `published` and `freev`.
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from trainer import Trainer, TrainerArgs
from TTS.vocoder.configs import HifiganConfig
from TTS.vocoder.datasets.preprocess import load_wav_data
from TTS.vocoder.models.gan import GAN

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes" / "natural" / "apnet2"))
import train_apnet2

BATCH_SIZE = 4
HELD_OUT = 20
REFINER = PredictorConfig(channels=513, hidden_channels=512, blocks=2)
SMALL = PredictorConfig(channels=160, hidden_channels=320, blocks=3)


class Stopwatch:
    """Writes the networks whenever so many minutes of processor time have gone, and stops behind the last of them."""

    def __init__(self, folder: Path, minutes: list[float]):
        self.folder, self.minutes = folder, sorted(minutes)
        self.started = None

    def start(self, _: Trainer) -> None:
        """Let the time begin with the first step."""
        self.started = self.started or time.process_time()

    def look(self, trainer: Trainer) -> None:
        """After each step."""
        minutes = (time.process_time() - self.started) / 60
        while self.minutes and minutes >= self.minutes[0]:
            folder = self.folder / f"{self.minutes.pop(0):g}"
            folder.mkdir(parents=True, exist_ok=True)
            trainer.config.save_json(str(folder / "config.json"))
            torch.save({"model": trainer.model.state_dict()}, folder / "model.pth")
            with open(self.folder / "log.tsv", "a") as log:
                print(folder.name, trainer.total_steps_done, f"{minutes:.2f}", sep="\t", file=log, flush=True)
        if not self.minutes:
            os._exit(0)  # the Trainer takes sys.exit for a failure, and deletes its folder


def hifigan(args: argparse.Namespace) -> tuple[HifiganConfig, GAN, dict]:
    """HiFi-GAN v1 as in coqui's recipe for LJSpeech."""
    config = HifiganConfig(
        seq_len=8192, pad_short=2000, use_noise_augment=True, eval_split_size=HELD_OUT, lr_gen=1e-4, lr_disc=1e-4,
        data_path=str(args.data), **run_settings(args),
    )  # fmt: skip
    held_out, samples = load_wav_data(config.data_path, config.eval_split_size)
    return config, GAN(config), {"train_samples": samples, "eval_samples": held_out}


def published(args: argparse.Namespace) -> tuple[Apnet2Config, Apnet2, dict]:
    """APNet2's own losses and settings."""
    return apnet2(args, Apnet2Config(amplitude=SMALL, phase=SMALL, data_path=str(args.data), **run_settings(args)))


def freev(args: argparse.Namespace) -> tuple[Apnet2Config, Apnet2, dict]:
    """The same from FreeV's start."""
    sizes = dict(amplitude_start="pseudo_inverse", amplitude=REFINER, phase=SMALL)
    return apnet2(args, Apnet2Config(data_path=str(args.data), **sizes, **run_settings(args)))


def pitch(args: argparse.Namespace) -> tuple[Apnet2Config, Apnet2, dict]:
    """The phase from the pitch, by the recipe; its learning rate falls until `--steps`."""
    recipe_args = train_apnet2.parse_args(["--data_path", str(args.data), "--steps", str(args.steps)])
    config = train_apnet2.make_config(recipe_args)
    config.update({**run_settings(args), "f0_path": str(args.f0 or args.out / "f0")})
    return apnet2(args, config)


def apnet2(args: argparse.Namespace, config: Apnet2Config) -> tuple[Apnet2Config, Apnet2, dict]:
    """With a model, which finds its files itself."""
    config.eval_split_size = HELD_OUT
    if args.spectral_only:
        config.steps_to_start_discriminator = 10**9
    return config, Apnet2(config), {}


def run_settings(args: argparse.Namespace) -> dict:
    """What all have alike."""
    return dict(
        batch_size=BATCH_SIZE, num_loader_workers=0, num_eval_loader_workers=0, run_eval=False, epochs=10**6,
        print_step=100, plot_step=10**9, log_model_step=10**9, save_step=10**9,
        output_path=str(args.out / args.system / "run"),
    )  # fmt: skip


def plot(report: Path, figure: Path) -> None:
    """PESQ and DNSMOS over the minutes, from the report of an evaluation of folders named OUT/SYSTEM/MINUTES."""
    means = json.loads((report / "summary.json").read_text())["means"]
    curves = defaultdict(list)
    for name, values in means.items():
        folder = Path(name.removeprefix("coqui:"))
        curves[str(folder.parent)].append((float(folder.name), values["pesq_wb"], values["dnsmos"]))
    _, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for folder, points in sorted(curves.items()):
        minutes, *figures = zip(*sorted(points), strict=True)
        for axis, values in zip(axes, figures, strict=True):
            axis.plot(minutes, values, "o-", label="/".join(Path(folder).parts[-2:]))
    for axis, title in zip(axes, ("PESQ-WB", "DNSMOS overall"), strict=True):
        axis.set(title=title, xlabel="minutes of one thread", xscale="log", xticks=[1, 2, 5, 10])
        axis.xaxis.set_major_formatter("{x:g}")
    axes[1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.02, 1))
    plt.savefig(figure)


SYSTEMS = {function.__name__: function for function in (hifigan, published, freev, pitch)}


def main() -> None:
    """Train one system, or plot what they learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=[*SYSTEMS, "plot"])
    parser.add_argument("--data", type=Path, help="Folder of WAVs at 22.05 kHz.")
    parser.add_argument("--report", type=Path, help="What to plot: the folder of an evaluation.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the results, or name of the plot.")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5, 10], help="Defaults to 1 2 5 10.")
    parser.add_argument("--steps", type=int, default=4000, help="Of `pitch`'s schedule. Defaults to 4000.")
    parser.add_argument("--spectral-only", action="store_true", help="No discriminators in an APNet2's training.")
    parser.add_argument("--f0", type=Path, help="Folder of the pitch, if it has been found before.")
    args = parser.parse_args()
    if args.system == "plot":
        plot(args.report, args.out)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, model, samples = SYSTEMS[args.system](args)
    print(f"{args.system}: {sum(weight.numel() for weight in generator(model).parameters()):,} parameters", flush=True)
    watch = Stopwatch(args.out / args.system, args.minutes)
    callbacks = {"on_train_step_start": watch.start, "on_train_step_end": watch.look}
    Trainer(
        TrainerArgs(), config, output_path=config.output_path, model=model, parse_command_line_args=False,
        callbacks=callbacks, **samples,
    ).fit()  # fmt: skip


def generator(model: GAN | Apnet2) -> torch.nn.Module:
    """The network that speaks."""
    return model.model_g if isinstance(model, GAN) else model.generator


if __name__ == "__main__":
    main()
