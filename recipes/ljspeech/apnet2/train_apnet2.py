"""Train APNet2 on LJSpeech, with the official settings.

python recipes/ljspeech/apnet2/train_apnet2.py --data_path LJSpeech-1.1/wavs
"""

import argparse
import sys
from pathlib import Path

from trainer import Trainer, TrainerArgs
from TTS.config import load_config

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.data import DataError, find_audio, split
from apnet2_tts_plugin.model import Apnet2

HERE = Path(__file__).parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train APNet2 on LJSpeech.")
    parser.add_argument("--data_path", default=HERE.parent / "LJSpeech-1.1" / "wavs", help="folder of the WAV files")
    parser.add_argument("--output_path", default=HERE, help="folder for the run's folder")
    parser.add_argument("--batch_size", type=int, default=16, help="segments of a batch (16)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="training steps (1000000)")
    parser.add_argument("--num_loader_workers", type=int, default=4, help="processes that read audio (4)")
    parser.add_argument("--continue_path", default="", help="folder of an interrupted run to go on with, as it was set")
    parser.add_argument("--restore_path", default="", help="checkpoint to start from, with a new schedule")
    return parser.parse_args(argv)


def make_config(args: argparse.Namespace) -> Apnet2Config:
    """The configuration of a new run."""
    # hold out the last files by name
    train_files, eval_files = split(find_audio(args.data_path), n_eval=50)

    # set the configuration; everything else is the official setting
    return Apnet2Config(
        run_name="apnet2_ljspeech",
        output_path=str(args.output_path),
        data_path=str(args.data_path),
        batch_size=args.batch_size,
        eval_split_size=len(eval_files),
        epochs=-(-args.steps // -(-len(train_files) // args.batch_size)),
        num_loader_workers=args.num_loader_workers,
        run_eval=True,
        print_step=100,
        plot_step=100,
        log_model_step=5000,
        save_step=5000,
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    args = parse_args(argv)

    # an interrupted run goes on with its own configuration
    try:
        config = load_config(Path(args.continue_path, "config.json")) if args.continue_path else make_config(args)
        train_files, eval_files = split(find_audio(config.data_path), config.eval_split_size)
    except (DataError, FileNotFoundError) as error:
        sys.exit(f"error: {error}\nGet LJSpeech as recipes/ljspeech/README.md says, or name its folder by --data_path.")

    # init the model
    model = Apnet2(config)

    # init the trainer and go
    trainer = Trainer(
        TrainerArgs(continue_path=args.continue_path, restore_path=args.restore_path),
        config,
        output_path=config.output_path,
        model=model,
        train_samples=train_files,
        eval_samples=eval_files,
        parse_command_line_args=False,
    )
    trainer.fit()


if __name__ == "__main__":
    main()
