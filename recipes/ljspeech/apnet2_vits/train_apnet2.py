"""Train APNet2 as the decoder of a VITS that is trained already.

python recipes/ljspeech/apnet2_vits/train_apnet2.py --vits_path FOLDER --data_path LJSpeech-1.1/wavs
python recipes/ljspeech/apnet2_vits/train_apnet2.py --vits_path FOLDER --text_path SENTENCES.txt

With a text no recordings are needed: the VITS says the sentences, and its own speech takes their place.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from TTS.tts.configs.vits_config import VitsConfig

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.errors import FinetuningError
from apnet2_tts_plugin.finetuning import latents, speech
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
    text_path: str = field(
        default="", metadata={"help": "Sentences, one a line, for the VITS to say in --speech_path: no recordings."}
    )
    speech_path: str = field(default=str(HERE / "speech"), metadata={"help": "Folder for what the VITS says."})


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    wavs = HERE.parent / "LJSpeech-1.1" / "wavs"
    return recipe.parse_args(Args(), "Train APNet2 as the decoder of a VITS.", HERE, wavs, argv)


def prepare(args: Args) -> VitsConfig:
    """Write latents, this process its share of them: of the recordings, or of what the VITS says, with its waveforms.

    Where the VITS speaks, `data_path` and `feature_path` of the arguments are set to what it says.

    Returns:
        The configuration of the VITS.
    """
    if not args.vits_path:
        raise FinetuningError("--vits_path: none, expected the folder of a trained VITS")
    return speak(args) if args.text_path else extract_latents(args)


def extract_latents(args: Args) -> VitsConfig:
    """Write the latents of all recordings; returns the configuration of the VITS."""
    files = usable(find_audio(args.data_path))
    vits = latents.load_encoder(args.vits_path).to(device())
    share = files[args.rank :: distributed.n_launched(args)]
    latents.write_latents(vits, share, args.data_path, args.feature_path)
    return vits.config


def speak(args: Args) -> VitsConfig:
    """Write what the VITS says; returns its configuration."""
    sentences = speech.read_sentences(args.text_path)
    vits = speech.load_vits(args.vits_path).to(device())
    args.data_path, args.feature_path = map(str, speech.folders(args.speech_path))
    speech.write_speech(vits, sentences, args.speech_path, slice(args.rank, None, distributed.n_launched(args)))
    return vits.config


def device() -> str:
    """Where to run the VITS."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run: the analysis of the VITS; all that is not set here is the official setting."""
    vits = prepare(args)
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
