"""Train APNet2 on LJSpeech, with the official settings.

python recipes/ljspeech/apnet2/train_apnet2.py --data_path LJSpeech-1.1/wavs
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from trainer import Trainer, TrainerArgs
from TTS.config import load_config

from apnet2_tts_plugin import distributed
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.corpus import find_audio, split
from apnet2_tts_plugin.model import Apnet2

HERE = Path(__file__).parent


@dataclass
class RecipeArgs(TrainerArgs):
    """The Trainer's own arguments, and those of this recipe."""

    data_path: str = field(default=str(HERE.parent / "LJSpeech-1.1" / "wavs"), metadata={"help": "Folder of the WAVs."})
    feature_path: str = field(default="", metadata={"help": "Folder of mels to train on instead of the WAVs' own."})
    output_path: str = field(default=str(HERE), metadata={"help": "Folder for the run's folder."})
    batch_size: int = field(default=16, metadata={"help": "Segments of a batch, on each GPU. Defaults to 16."})
    steps: int = field(default=1_000_000, metadata={"help": "Training steps. Defaults to 1000000."})
    num_loader_workers: int = field(default=4, metadata={"help": "Processes that read audio, per GPU. Defaults to 4."})
    mixed_precision: bool = field(default=False, metadata={"help": "Compute in bfloat16 where it does no harm."})
    allow_tf32: bool = field(default=False, metadata={"help": "Let matrix products round to TF32."})
    use_compile: bool = field(default=False, metadata={"help": "Compile the networks by torch.compile."})


def parse_args(argv: list[str] | None = None) -> RecipeArgs:
    """Read the command line."""
    args = RecipeArgs()
    parser = args.init_argparse(arg_prefix="")
    parser.description = "Train APNet2 on LJSpeech."
    args.parse_args(parser.parse_args(argv))
    return args


def make_config(args: RecipeArgs) -> Apnet2Config:
    """The configuration of a new run."""
    # hold out the last files by name
    train_files, eval_files = split(find_audio(args.data_path), n_eval=50)
    step_size = args.batch_size * args.grad_accum_steps * distributed.n_launched(args)

    # set the configuration; everything else is the official setting
    return Apnet2Config(
        run_name="apnet2_ljspeech",
        output_path=args.output_path,
        data_path=args.data_path,
        feature_path=args.feature_path or None,
        batch_size=args.batch_size,
        eval_split_size=len(eval_files),
        epochs=-(-args.steps // -(-len(train_files) // step_size)),
        num_loader_workers=args.num_loader_workers,
        mixed_precision=args.mixed_precision,
        allow_tf32=args.allow_tf32,
        use_compile=args.use_compile,
        run_eval=True,
        print_step=100,
        plot_step=100,
        log_model_step=5000,
        save_step=5000,
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    args = parse_args(argv)
    distributed.adopt_launcher(args)
    try:
        # an interrupted run goes on with its own configuration
        config = load_config(Path(args.continue_path, "config.json")) if args.continue_path else make_config(args)
        train_files, eval_files = split(find_audio(config.data_path), config.eval_split_size)

        # init the model and the trainer
        trainer = Trainer(
            args,
            config,
            output_path=config.output_path,
            model=Apnet2(config),
            train_samples=train_files,
            eval_samples=eval_files,
            parse_command_line_args=False,
        )
    except (ValueError, OSError, distributed.LaunchError) as error:
        sys.exit(
            f"error: {error}\nrecipes/ljspeech/README.md tells how to get LJSpeech, and how to resume and restore."
        )

    # and go
    trainer.fit()


if __name__ == "__main__":
    main()
