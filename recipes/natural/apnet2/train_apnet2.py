"""Train a small APNet2 whose phase starts from the pitch, on natural synthetic voices, without a GPU.

python recipes/natural/make_corpus.py
python recipes/natural/apnet2/train_apnet2.py
"""

from dataclasses import dataclass, field
from pathlib import Path

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import LOSS_WEIGHTS, Apnet2Config

HERE = Path(__file__).parent


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, and those of this one."""

    batch_size: int = field(default=4, metadata={"help": "Segments of a batch. Defaults to 4."})
    seq_len: int = field(
        default=16_384, metadata={"help": "Samples of a segment, a multiple of 256. Defaults to 16384."}
    )
    eval_split_size: int = field(
        default=20, metadata={"help": "Recordings held out, the last by name. Defaults to 20."}
    )
    preset: str = field(
        default="pitch", metadata={"help": "'pitch' or 'tiny', see Apnet2Config.preset. Defaults to pitch."}
    )
    steps: int = field(
        default=15_000, metadata={"help": "Training steps, rounded up to whole epochs. Defaults to 15000."}
    )
    lr: float = field(default=1e-3, metadata={"help": "Learning rate at the start. Defaults to 0.001."})
    num_loader_workers: int = field(default=0, metadata={"help": "Processes that read audio. Defaults to 0."})


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    wavs = HERE.parent / "natural_corpus" / "wavs"
    return recipe.parse_args(Args(), "Train a small APNet2 on natural synthetic voices.", HERE, wavs, argv)


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run."""
    n_files = len(find_audio(args.data_path))
    settings = recipe.run_settings(args, n_files) | recipe.cosine_schedule(args, n_files)
    settings |= dict(num_eval_loader_workers=0, print_step=100, plot_step=500, log_model_step=1000, save_step=500)
    settings |= dict(eval_metrics=[], save_n_checkpoints=2)  # an epoch takes half a minute, speech metrics as long

    # what the mel does not show of the phase is noise to its losses
    phase_terms = {"instantaneous_phase": 3.0, "group_delay": 5.0, "phase_time_difference": 5.0}
    other_terms = {"real": 10.0, "imaginary": 10.0, "multi_resolution_stft": 60.0, "pitch": 10.0, "voicing": 10.0}
    return Apnet2Config.preset(
        args.preset,
        run_name=f"apnet2_{args.preset}",
        dataset="en/natural",
        seq_len=args.seq_len,
        loss_weights=LOSS_WEIGHTS | phase_terms | other_terms,
        # no discriminators: they would take most of the time
        steps_to_start_discriminator=10**9,
        **settings,
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    recipe.train(
        parse_args(argv), make_config, "Make the corpus by recipes/natural/make_corpus.py, or name it by --data_path."
    )


if __name__ == "__main__":
    main()
