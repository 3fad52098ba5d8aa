"""Train a small APNet2 on speech that flite speaks, on a processor without a GPU.

python recipes/flite/make_corpus.py
python recipes/flite/apnet2/train_apnet2.py
"""

import argparse
import sys
from pathlib import Path

from trainer import Trainer, TrainerArgs
from TTS.config import load_config

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.corpus import find_audio, split
from apnet2_tts_plugin.model import Apnet2

HERE = Path(__file__).parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small APNet2 on flite's speech.")
    parser.add_argument("--data_path", default=HERE.parent / "flite_corpus" / "wavs", help="folder of the WAV files")
    parser.add_argument("--output_path", default=HERE, help="folder for the run's folder")
    parser.add_argument("--batch_size", type=int, default=4, help="segments of a batch (4)")
    parser.add_argument("--seq_len", type=int, default=40_960, help="samples of a segment, a multiple of 256 (40960)")
    parser.add_argument("--steps", type=int, default=12_000, help="training steps (12000)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate at the start (0.001)")
    parser.add_argument("--num_loader_workers", type=int, default=0, help="processes that read audio (0)")
    parser.add_argument("--continue_path", default="", help="folder of an interrupted run to go on with, as it was set")
    parser.add_argument("--restore_path", default="", help="checkpoint to start from, with a new schedule")
    return parser.parse_args(argv)


def make_config(args: argparse.Namespace) -> Apnet2Config:
    """The configuration of a new run."""
    # hold out the last 20 sentences with their four voices
    train_files, eval_files = split(find_audio(args.data_path), n_eval=80)

    # set the configuration
    n_batches = -(-len(train_files) // args.batch_size)
    config = Apnet2Config(
        run_name="apnet2_flite",
        output_path=str(args.output_path),
        data_path=str(args.data_path),
        batch_size=args.batch_size,
        # five times the official length: GRN pools over time, and so few layers rely on what a short segment pools
        seq_len=args.seq_len,
        eval_split_size=len(eval_files),
        epochs=-(-args.steps // n_batches),
        num_loader_workers=args.num_loader_workers,
        num_eval_loader_workers=0,
        run_eval=True,
        print_step=50,
        plot_step=50,
        log_model_step=1000,
        save_step=500,
        save_n_checkpoints=2,
        # 3.0 M parameters: FreeV's start leaves little to do for the amplitude
        amplitude_start="pseudo_inverse",
        amplitude=PredictorConfig(channels=513, hidden_channels=512, blocks=1),
        phase=PredictorConfig(channels=192, hidden_channels=576, blocks=8, output_kernel_size=3),
        # no discriminators: they would take four fifths of the time
        steps_to_start_discriminator=args.steps + n_batches,
        lr_gen=args.lr,
        # down to a twentieth of the learning rate at the end
        scheduler_after_epoch=False,
        lr_scheduler_gen_params={"gamma": 0.05 ** (1 / args.steps)},
    )

    # Most of the phase is noise to so small a model, and its losses are noise to the rest: ask instead for amplitudes
    # that the inverse STFT leaves as they are, which the discriminators would do otherwise.
    for term in ("instantaneous_phase", "group_delay", "phase_time_difference"):
        config.loss_weights[term] = 10.0
    for term in ("real", "imaginary"):
        config.loss_weights[term] = 5.0
    config.loss_weights["multi_resolution_stft"] = 200.0
    return config


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    args = parse_args(argv)

    try:
        # an interrupted run goes on with its own configuration
        config = load_config(Path(args.continue_path, "config.json")) if args.continue_path else make_config(args)
        train_files, eval_files = split(find_audio(config.data_path), config.eval_split_size)

        # init the model and the trainer
        trainer = Trainer(
            TrainerArgs(continue_path=args.continue_path, restore_path=args.restore_path),
            config,
            output_path=config.output_path,
            model=Apnet2(config),
            train_samples=train_files,
            eval_samples=eval_files,
            parse_command_line_args=False,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}\nMake the corpus by recipes/flite/make_corpus.py, or name its folder by --data_path.")

    # and go
    trainer.fit()


if __name__ == "__main__":
    main()
