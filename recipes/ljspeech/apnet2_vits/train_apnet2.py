"""Train APNet2 as the decoder of a VITS that is trained already.

python recipes/ljspeech/apnet2_vits/train_apnet2.py --vits_path FOLDER --data_path LJSpeech-1.1/wavs
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from TTS.tts.configs.vits_config import VitsConfig

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.errors import FinetuningError
from apnet2_tts_plugin.finetuning import latents
from apnet2_tts_plugin.pairing.vits import latent_hop
from apnet2_tts_plugin.training import distributed
from apnet2_tts_plugin.training.corpus import usable

HERE = Path(__file__).parent
SEGMENT_FRAMES = 32


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, and those of this one."""

    vits_path: str = field(default="", metadata={"help": "Folder of the VITS: its config.json and its checkpoint."})
    feature_path: str = field(default=str(HERE / "latents"), metadata={"help": "Folder for the latents of the WAVs."})


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    wavs = HERE.parent / "LJSpeech-1.1" / "wavs"
    return recipe.parse_args(Args(), "Train APNet2 as the decoder of a VITS.", HERE, wavs, argv)


def extract_latents(args: Args) -> VitsConfig:
    """Write the latents of all files, this process its share of them; returns the configuration of the VITS."""
    if not args.vits_path:
        raise FinetuningError("--vits_path: none, expected the folder of a trained VITS")
    files = usable(find_audio(args.data_path))
    vits = latents.load_encoder(args.vits_path).to("cuda" if torch.cuda.is_available() else "cpu")
    share = files[args.rank :: distributed.n_launched(args)]
    latents.write_latents(vits, share, args.data_path, args.feature_path)
    return vits.config


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run: the analysis of the VITS; all that is not set here is the official setting."""
    vits = extract_latents(args)
    hop_length = latent_hop(vits)
    return Apnet2Config(
        run_name="apnet2_vits_ljspeech",
        dataset="en/ljspeech",
        feature_path=args.feature_path,
        input_features="latent",
        latent_channels=vits.model_args.hidden_channels,
        audio=Apnet2AudioConfig(
            sample_rate=vits.audio.sample_rate,
            fft_size=vits.audio.fft_size,
            win_length=vits.audio.win_length,
            hop_length=hop_length,
            mel_fmax=None,
        ),
        seq_len=SEGMENT_FRAMES * hop_length,
        **recipe.run_settings(args, len(find_audio(args.data_path))),
    )


def main(argv: list[str] | None = None) -> None:
    """Extract the latents, then train until the steps are done."""
    recipe.train(parse_args(argv), make_config, "docs/finetuning.md tells what is needed, and how to resume.")


if __name__ == "__main__":
    main()
