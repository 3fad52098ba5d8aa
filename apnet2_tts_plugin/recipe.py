"""What the recipes share: arguments, the settings of a run, the run itself, and how mistakes end it."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trainer import Trainer, TrainerArgs

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import Apnet2Error, ConfigError
from apnet2_tts_plugin.loader import read_config
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.training import distributed
from apnet2_tts_plugin.weights.find import CONFIG_NAME
from apnet2_tts_plugin.weights.restore import restore


@dataclass
class RecipeArgs(TrainerArgs):
    """The Trainer's own arguments, and those of all recipes."""

    data_path: str = field(
        default="", metadata={"help": "Folder of the recordings, WAV or FLAC. Defaults to that beside the recipe."}
    )
    output_path: str = field(default="", metadata={"help": "Folder for the run's folder. Defaults to the recipe's."})
    batch_size: int = field(default=16, metadata={"help": "Segments of a batch, on each GPU. Defaults to 16."})
    eval_split_size: int = field(
        default=50, metadata={"help": "Recordings held out, the last by name. Defaults to 50."}
    )
    segments_per_file: int = field(
        default=1, metadata={"help": "Segments of each recording between two evaluations. Defaults to 1."}
    )
    steps: int = field(
        default=1_000_000, metadata={"help": "Training steps, rounded up to whole epochs. Defaults to 1000000."}
    )
    lr: float = field(default=2e-4, metadata={"help": "Learning rate at the start. Defaults to 0.0002."})
    num_loader_workers: int = field(default=4, metadata={"help": "Processes that read audio, per GPU. Defaults to 4."})
    mixed_precision: bool = field(default=False, metadata={"help": "Compute in bfloat16 where it does no harm."})
    allow_tf32: bool = field(default=False, metadata={"help": "Let matrix products round to TF32."})
    use_compile: bool = field(default=False, metadata={"help": "Compile the networks by torch.compile."})


Args = TypeVar("Args", bound=RecipeArgs)


def parse_args(args: Args, description: str, recipe: Path, data_path: Path, argv: list[str] | None = None) -> Args:
    """Read the command line of a recipe.

    Args:
        args: Its arguments with their defaults.
        description: What it does, for `--help`.
        recipe: Its folder, which it writes to by default.
        data_path: Where its data is by default.
        argv: The command line; that of the process by default.
    """
    parser: argparse.ArgumentParser = args.init_argparse(arg_prefix="")
    parser.description = description
    args.parse_args(parser.parse_args(argv))
    args.data_path = args.data_path or str(data_path)
    args.output_path = args.output_path or str(recipe)
    return args


def run_settings(args: RecipeArgs, n_files: int) -> dict[str, Any]:
    """Settings of a new run, for `Apnet2Config`.

    Args:
        args: The recipe's arguments.
        n_files: Number of recordings, the held-out ones included.

    Raises:
        ConfigError: if an argument cannot work.
    """
    for name in ("batch_size", "grad_accum_steps", "segments_per_file", "eval_split_size", "steps"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: {getattr(args, name)}, expected at least 1")
    if args.eval_split_size >= n_files:
        raise ConfigError(f"--eval_split_size: {args.eval_split_size}, expected fewer than the {n_files} recordings")
    return {
        "output_path": args.output_path,
        "data_path": args.data_path,
        "batch_size": args.batch_size,
        "segments_per_file": args.segments_per_file,
        "eval_split_size": args.eval_split_size,
        "epochs": -(-args.steps // _steps_per_epoch(args, n_files)),
        "lr_gen": args.lr,
        "lr_disc": args.lr,
        "num_loader_workers": args.num_loader_workers,
        "mixed_precision": args.mixed_precision,
        "allow_tf32": args.allow_tf32,
        "use_compile": args.use_compile,
        "run_eval": True,
        "print_step": 100,
        "plot_step": 100,
        "log_model_step": 5000,
        "save_step": 5000,
    }


def n_steps(args: RecipeArgs, n_files: int) -> int:
    """Steps of a new run, of all its epochs; arguments as for `run_settings`, which checks them."""
    per_epoch = _steps_per_epoch(args, n_files)
    return -(-args.steps // per_epoch) * per_epoch


def cosine_schedule(args: RecipeArgs, n_files: int) -> dict[str, Any]:
    """Settings by which the generator's learning rate is down to nothing at the end; arguments as for `n_steps`."""
    # behind T_max the rate would rise again
    return {"lr_scheduler_gen": "CosineAnnealingLR", "lr_scheduler_gen_params": {"T_max": n_steps(args, n_files)}}


def _steps_per_epoch(args: RecipeArgs, n_files: int) -> int:
    n_segments = (n_files - args.eval_split_size) * args.segments_per_file
    return -(-n_segments // (args.batch_size * args.grad_accum_steps * distributed.n_launched(args)))


def train(args: Args, make_config: Callable[[Args], Apnet2Config], advice: str) -> None:
    """Train until the steps are done; mistakes end it in a line.

    Args:
        args: The recipe's arguments.
        make_config: The configuration of a new run; an interrupted one (`--continue_path`) goes on with its own.
        advice: A second line below mistakes.
    """
    with mistakes_in_one_line(advice):
        distributed.adopt_launcher(args)
        config = read_config(Path(args.continue_path, CONFIG_NAME)) if args.continue_path else make_config(args)
        if args.restore_path and not args.continue_path:
            check_restorable(config, args.restore_path)
        model = Apnet2(config)  # which finds the files itself
        trainer = Trainer(args, config, output_path=config.output_path, model=model, parse_command_line_args=False)
    trainer.fit()


def check_restorable(config: Apnet2Config, restore_path: str) -> None:
    """See whether weights can be restored, before a run has its folder.

    Raises:
        CheckpointError: if they cannot be read or do not fit.
    """
    model = Apnet2(config)
    model.add_discriminators()
    restore(model, restore_path)


@contextmanager
def mistakes_in_one_line(advice: str) -> Iterator[None]:
    """End the process by a line, and `advice` in a second one, at an error of this package or of a file."""
    try:
        yield
    except (Apnet2Error, OSError) as error:
        sys.exit(f"error: {error}\n{advice}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
