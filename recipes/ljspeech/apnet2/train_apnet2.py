"""Train APNet2 on LJSpeech, with the official settings or those of a preset.

python recipes/ljspeech/apnet2/train_apnet2.py --data_path LJSpeech-1.1/wavs
"""

from dataclasses import dataclass, field
from pathlib import Path

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import PRESETS, Apnet2Config

HERE = Path(__file__).parent


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, and those of this one."""

    feature_path: str = field(default="", metadata={"help": "Folder of mels to train on instead of the WAVs' own."})
    preset: str = field(
        default="base",
        metadata={"help": "Sizes: base, freev, pitch or tiny, see Apnet2Config.preset. Defaults to base."},
    )
    phase_start: str = field(
        default="",
        metadata={
            "help": "'pitch' lets the phase start from it, at any size, with the preset's consistency iterations or 2; "
            "'none' starts from nothing. Defaults to the preset's."
        },
    )


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    return recipe.parse_args(Args(), "Train APNet2 on LJSpeech.", HERE, HERE.parent / "LJSpeech-1.1" / "wavs", argv)


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run: all that neither is set here nor by the preset is the official setting."""
    settings = recipe.run_settings(args, len(find_audio(args.data_path)))
    if args.phase_start:
        settings["phase_start"] = args.phase_start
    if args.phase_start == "pitch" and PRESETS.get(args.preset, {}).get("phase_start") != "pitch":
        settings |= dict(consistency_iterations=2, consistency_target="mel")
    return Apnet2Config.preset(
        args.preset,
        run_name="apnet2_ljspeech",
        dataset="en/ljspeech",
        feature_path=args.feature_path or None,
        **settings,
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    recipe.train(
        parse_args(argv), make_config, "recipes/ljspeech/README.md tells how to get LJSpeech, and how to resume."
    )


if __name__ == "__main__":
    main()
