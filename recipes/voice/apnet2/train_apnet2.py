"""Fine-tune the bundled APNet2, or another one, on recordings of one's own.

python recipes/voice/apnet2/train_apnet2.py --data_path MY_RECORDINGS
"""

from dataclasses import dataclass, field
from pathlib import Path

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.finetuning.recipe import inherited, vocoder_config

HERE = Path(__file__).parent


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, with values for an hour of recordings or less."""

    restore_path: str = field(
        default="apnet2", metadata={"help": "Name or path of the APNet2 to start from. Defaults to apnet2."}
    )
    batch_size: int = field(default=4, metadata={"help": "Segments of a batch, on each GPU. Defaults to 4."})
    segments_per_file: int = field(
        default=20, metadata={"help": "Segments of each recording between two evaluations. Defaults to 20."}
    )
    eval_split_size: int = field(default=5, metadata={"help": "Recordings held out, the last by name. Defaults to 5."})
    steps: int = field(default=5000, metadata={"help": "Training steps, rounded up to whole epochs. Defaults to 5000."})
    lr: float = field(default=1e-4, metadata={"help": "Learning rate at the start. Defaults to 0.0001."})
    num_loader_workers: int = field(default=0, metadata={"help": "Processes that read audio. Defaults to 0."})


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    wavs = HERE.parent / "wavs"
    return recipe.parse_args(Args(), "Fine-tune an APNet2 on recordings of one's own.", HERE, wavs, argv)


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run: that of the model it starts from, but for how it is trained."""
    source = vocoder_config(args.restore_path)
    n_files = len(find_audio(args.data_path))
    settings = inherited(source) | recipe.run_settings(args, n_files) | recipe.cosine_schedule(args, n_files)
    return Apnet2Config(
        run_name="apnet2_voice",
        # one that was trained without discriminators goes on without
        steps_to_start_discriminator=source.steps_to_start_discriminator,
        **settings | dict(num_eval_loader_workers=0, save_step=500, save_n_checkpoints=2),
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    recipe.train(parse_args(argv), make_config, "docs/finetuning.md tells how to fine-tune on recordings of your own.")


if __name__ == "__main__":
    main()
