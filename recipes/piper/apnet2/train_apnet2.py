"""Distil the decoder of a VITS into a small APNet2, without recordings and without a GPU.

python recipes/piper/convert_voice.py en_US-joe-medium.onnx joe
python recipes/piper/apnet2/train_apnet2.py --vits_path joe --mixed_precision true
"""

from dataclasses import dataclass, field
from pathlib import Path

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import LOSS_WEIGHTS, Apnet2AudioConfig, Apnet2Config, PredictorConfig
from apnet2_tts_plugin.errors import FinetuningError
from apnet2_tts_plugin.finetuning import speech
from apnet2_tts_plugin.finetuning.recipe import vocoder_config
from apnet2_tts_plugin.pairing.vits import latent_hop

HERE = Path(__file__).parent
SENTENCES = HERE.parent.parent / "flite" / "sentences.txt"


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, and those of this one."""

    vits_path: str = field(default="", metadata={"help": "Folder of the VITS: its config.json and its checkpoint."})
    text_path: str = field(default=str(SENTENCES), metadata={"help": "What the VITS is to say, a sentence a line."})
    speech_path: str = field(default=str(HERE / "speech"), metadata={"help": "Folder for what it says."})
    batch_size: int = field(default=8, metadata={"help": "Segments of a batch. Defaults to 8."})
    seq_len: int = field(
        default=16_384, metadata={"help": "Samples of a segment, a multiple of the hop. Defaults to 16384."}
    )
    segments_per_file: int = field(
        default=8, metadata={"help": "Segments of each sentence between two evaluations. Defaults to 8."}
    )
    eval_split_size: int = field(default=30, metadata={"help": "Sentences held out, the last ones. Defaults to 30."})
    steps: int = field(default=2500, metadata={"help": "Training steps, rounded up to whole epochs. Defaults to 2500."})
    restore_path: str = field(
        default="apnet2-tiny",
        metadata={"help": "Vocoder of mels to take the amplitude's predictor from. Defaults to apnet2-tiny."},
    )
    lr: float = field(default=2e-3, metadata={"help": "Learning rate at the start. Defaults to 0.002."})
    num_loader_workers: int = field(default=0, metadata={"help": "Processes that read audio. Defaults to 0."})


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    return recipe.parse_args(Args(), "Distil the decoder of a VITS into a small APNet2.", HERE, HERE / "speech", argv)


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run, once the VITS has said all sentences."""
    if not args.vits_path:
        raise FinetuningError("--vits_path: none, expected the folder of a trained VITS")
    vits = speech.load_vits(args.vits_path)
    speech.write_speech(vits, speech.read_sentences(args.text_path), args.speech_path)
    wavs, latents = speech.folders(args.speech_path)
    args.data_path = str(wavs)
    n_files = len(find_audio(args.data_path))
    settings = recipe.run_settings(args, n_files) | recipe.cosine_schedule(args, n_files)
    settings |= dict(num_eval_loader_workers=0, print_step=100, plot_step=500, log_model_step=1000, save_step=500)
    settings |= dict(eval_metrics=[], save_n_checkpoints=2)  # an epoch takes a minute, speech metrics as long
    audio = vits.config.audio
    return Apnet2Config(
        mel=PredictorConfig(128, 256, 3, input_kernel_size=5, output_kernel_size=1, response_norm="none"),
        amplitude_start="pseudo_inverse",
        amplitude=vocoder_config(args.restore_path).amplitude,  # whose weights it takes
        phase_start="latent",
        phase=PredictorConfig(256, 512, 6, output_kernel_size=1, response_norm="none"),
        consistency_iterations=1,
        consistency_target="mel",
        run_name="apnet2_vits",
        dataset="en/vits",
        feature_path=str(latents),
        input_features="latent",
        latent_channels=vits.config.model_args.hidden_channels,
        audio=Apnet2AudioConfig(
            sample_rate=audio.sample_rate,
            fft_size=audio.fft_size,
            win_length=audio.win_length,
            hop_length=latent_hop(vits.config),
        ),
        seq_len=args.seq_len,
        # mel and phase fit those of what the VITS says; the amplitude's predictor stays as it is
        loss_weights=dict.fromkeys(LOSS_WEIGHTS, 0.0) | {"latent_mel": 1.0, "phasor": 1.0},
        target_loss="loss_phasor",
        steps_to_start_discriminator=10**9,
        **settings,
    )


def main(argv: list[str] | None = None) -> None:
    """Let the VITS speak, then train until the steps are done."""
    recipe.train(parse_args(argv), make_config, "recipes/piper/README.md tells what is needed, and how to resume.")


if __name__ == "__main__":
    main()
