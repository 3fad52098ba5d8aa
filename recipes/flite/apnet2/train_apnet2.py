"""Train a small APNet2 on speech that flite speaks, on a processor without a GPU.

python recipes/flite/make_corpus.py
python recipes/flite/apnet2/train_apnet2.py
"""

from dataclasses import dataclass, field
from pathlib import Path

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import LOSS_WEIGHTS, Apnet2Config, PredictorConfig

HERE = Path(__file__).parent


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, and those of this one."""

    batch_size: int = field(default=4, metadata={"help": "Segments of a batch. Defaults to 4."})
    seq_len: int = field(
        default=40_960, metadata={"help": "Samples of a segment, a multiple of 256. Defaults to 40960."}
    )
    eval_split_size: int = field(default=80, metadata={"help": "Recordings held out: 20 sentences in 4 voices."})
    steps: int = field(
        default=12_000, metadata={"help": "Training steps, rounded up to whole epochs. Defaults to 12000."}
    )
    lr: float = field(default=1e-3, metadata={"help": "Learning rate at the start. Defaults to 0.001."})
    num_loader_workers: int = field(default=0, metadata={"help": "Processes that read audio. Defaults to 0."})


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    wavs = HERE.parent / "flite_corpus" / "wavs"
    return recipe.parse_args(Args(), "Train a small APNet2 on flite's speech.", HERE, wavs, argv)


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run."""
    n_files = len(find_audio(args.data_path))
    settings = recipe.run_settings(args, n_files)
    settings |= dict(num_eval_loader_workers=0, print_step=50, plot_step=50, log_model_step=1000, save_step=500)
    # down to a twentieth of the learning rate at the end
    settings |= dict(
        lr_scheduler_gen_params={"gamma": 0.05 ** (1 / recipe.n_steps(args, n_files))}, save_n_checkpoints=2
    )

    # Most of the phase is noise to so small a model, and its losses are noise to the rest: ask instead for amplitudes
    # that the inverse STFT leaves as they are, which the discriminators would do otherwise.
    phase_terms = dict.fromkeys(("instantaneous_phase", "group_delay", "phase_time_difference"), 10.0)
    other_terms = {"real": 5.0, "imaginary": 5.0, "multi_resolution_stft": 200.0}
    return Apnet2Config(
        run_name="apnet2_flite",
        dataset="en/flite",
        # five times the official length: GRN pools over time, and so few layers rely on what a short segment pools
        seq_len=args.seq_len,
        # 3.0 M parameters: FreeV's start leaves little to do for the amplitude
        amplitude_start="pseudo_inverse",
        amplitude=PredictorConfig(channels=513, hidden_channels=512, blocks=1),
        phase=PredictorConfig(channels=192, hidden_channels=576, blocks=8, output_kernel_size=3),
        loss_weights=LOSS_WEIGHTS | phase_terms | other_terms,
        # no discriminators: they would take four fifths of the time
        steps_to_start_discriminator=10**9,
        **settings,
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    recipe.train(
        parse_args(argv), make_config, "Make the corpus by recipes/flite/make_corpus.py, or name it by --data_path."
    )


if __name__ == "__main__":
    main()
