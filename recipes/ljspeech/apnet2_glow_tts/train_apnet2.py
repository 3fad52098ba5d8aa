"""Fine-tune APNet2 on the mels that a trained Glow-TTS predicts for LJSpeech, aligned with the recordings.

python recipes/ljspeech/apnet2_glow_tts/train_apnet2.py --tts_path GLOW_TTS_RUN --restore_path APNET2.pth
"""

from pathlib import Path

from apnet2_tts_plugin.finetuning import recipe

HERE = Path(__file__).parent


def parse_args(argv: list[str] | None = None) -> recipe.FinetuningArgs:
    """Read the command line."""
    return recipe.parse_args("Fine-tune APNet2 on the mels of a Glow-TTS.", HERE, argv)


def main(argv: list[str] | None = None) -> None:
    """Predict the mels that are missing, then train until the steps are done."""
    recipe.finetune(parse_args(argv), ("glow_tts",), "apnet2_glow_tts_ljspeech")


if __name__ == "__main__":
    main()
