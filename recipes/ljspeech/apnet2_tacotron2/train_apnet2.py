"""Fine-tune APNet2 on the mels that a trained Tacotron 2 predicts for LJSpeech, with teacher forcing.

python recipes/ljspeech/apnet2_tacotron2/train_apnet2.py --tts_path TACOTRON_RUN --restore_path APNET2.pth
"""

from pathlib import Path

from apnet2_tts_plugin.finetuning import recipe

HERE = Path(__file__).parent


def parse_args(argv: list[str] | None = None) -> recipe.FinetuningArgs:
    """Read the command line."""
    return recipe.parse_args("Fine-tune APNet2 on the mels of a Tacotron 2.", HERE, argv)


def main(argv: list[str] | None = None) -> None:
    """Predict the mels that are missing, then train until the steps are done."""
    recipe.finetune(parse_args(argv), ("tacotron2", "tacotron"), "apnet2_tacotron2_ljspeech")


if __name__ == "__main__":
    main()
