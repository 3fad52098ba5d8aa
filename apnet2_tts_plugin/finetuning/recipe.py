"""Fine-tuning a vocoder: what it takes over, and for `recipes/ljspeech/apnet2_*` the mels of an acoustic model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from TTS.tts.configs.shared_configs import BaseDatasetConfig, BaseTTSConfig
from TTS.tts.datasets import load_tts_samples

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import DataError, FinetuningError
from apnet2_tts_plugin.finetuning.extraction import extract, mel_source
from apnet2_tts_plugin.finetuning.teacher_forcing import Sample, load_acoustic_model
from apnet2_tts_plugin.loader import read_config
from apnet2_tts_plugin.pairing import convert, report
from apnet2_tts_plugin.training import distributed
from apnet2_tts_plugin.training.source import note_source
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights

EXTRACTED = "teacher_forced"  # folder of recordings and mels in the output folder
INHERITED = (  # of the vocoder to start from: sizes, analysis and losses
    "audio",
    "amplitude",
    "phase",
    "amplitude_start",
    "phase_start",
    "pitch",
    "mel",
    "f0_min",
    "f0_max",
    "consistency_iterations",
    "consistency_target",
    "noise_seed",
    "input_features",
    "latent_channels",
    "speaker_channels",
    "mpd_periods",
    "mpd_channels",
    "mrd_resolutions",
    "mrd_channels",
    "loss_weights",
    "discriminator_loss_weights",
    "seq_len",
)


@dataclass
class FinetuningArgs(recipe.RecipeArgs):
    """The arguments of all recipes, and those of fine-tuning; `restore_path` is the vocoder to start from."""

    tts_path: str = field(default="", metadata={"help": "Folder of the trained acoustic model, or its checkpoint."})
    data_path: str = field(
        default="", metadata={"help": "LJSpeech's wavs, or the folder they are in. Defaults to that beside the recipe."}
    )
    extraction_batch_size: int = field(default=16, metadata={"help": "Sentences predicted together. Defaults to 16."})
    steps: int = field(default=100_000, metadata={"help": "Training steps. Defaults to 100000."})
    # about where the official training ends after a million steps: a higher one would undo it
    lr: float = field(default=5e-5, metadata={"help": "Learning rate at the start. Defaults to 0.00005."})


def parse_args(description: str, folder: Path, argv: list[str] | None = None) -> FinetuningArgs:
    """Read the command line of the recipe in `folder`."""
    return recipe.parse_args(FinetuningArgs(), description, folder, folder.parent / "LJSpeech-1.1" / "wavs", argv)


def vocoder_config(restore_path: str) -> Apnet2Config:
    """The configuration of the vocoder to start from, which has a name, or a path beside which the configuration is.

    Raises:
        FinetuningError: if no vocoder is named, or it has no configuration.
        ModelError: if the configuration cannot be used.
    """
    if not restore_path:
        raise FinetuningError("--restore_path: none, expected the weights of a trained APNet2, or their folder")
    path = store.path_of(restore_path)
    if not path.exists():
        raise FinetuningError(f"--restore_path: {path} is not there, expected the weights of a trained APNet2")
    config_path = path / CONFIG_NAME if path.is_dir() else path.with_name(CONFIG_NAME)
    if not config_path.is_file():
        raise FinetuningError(
            f"{config_path}: no such file, expected the configuration of the weights; "
            "`apnet2 import` writes it for official files, `apnet2 export` for checkpoints"
        )
    return read_config(config_path)


def inherited(source: Apnet2Config) -> dict[str, Any]:
    """The settings that a new run takes over from the vocoder it starts from."""
    return {name: source[name] for name in INHERITED}


def corpus_folder(data_path: str) -> Path:
    """The folder of LJSpeech, of which `wavs`, or that folder itself, is given."""
    path = Path(data_path).absolute()
    return path.parent if path.name == "wavs" else path


def ljspeech_samples(data_path: str) -> list[Sample]:
    """The recordings and texts of LJSpeech, see `corpus_folder`.

    Raises:
        DataError: if there is none.
    """
    dataset = BaseDatasetConfig(
        formatter="ljspeech", meta_file_train="metadata.csv", path=str(corpus_folder(data_path))
    )
    try:
        items, _ = load_tts_samples(BaseTTSConfig(datasets=[dataset]), eval_split=False)
    except (OSError, IndexError, AssertionError, UnicodeError) as error:
        raise DataError(
            f"{data_path}: expected LJSpeech as it is, with wavs and a metadata.csv of three columns ({error})"
        ) from error
    return [Sample(Path(item["audio_file"]), item["text"], item["speaker_name"]) for item in items]


def recordings_of(args: FinetuningArgs, samples: list[Sample]) -> list[Path]:
    """What `extract_mels` makes of the recordings; those that cannot be used are among them."""
    return [Path(args.output_path, EXTRACTED, "wavs", sample.path.name) for sample in samples]


def extract_mels(args: FinetuningArgs, models: tuple[str, ...], config: Apnet2Config, samples: list[Sample]) -> None:
    """Write recordings and mels to train on, unless they are there; this process its share of them.

    Args:
        args: The arguments.
        models: coqui's names of the acoustic models that the recipe is for.
        config: The configuration of the vocoder.
        samples: LJSpeech, see `ljspeech_samples`.

    Raises:
        FinetuningError: if no acoustic model is named, it is another than those, or it cannot be loaded or forced.
        CheckpointError: if the acoustic model has no checkpoint.
        PairingError: if the vocoder cannot follow the acoustic model, see `pairing.report.announce` too.
        DataError: if the folder has mels of another acoustic model, data or vocoder; if no recording can be used, as
            far as a single process can tell.
        OSError: if a file cannot be written.
    """
    if not args.tts_path:
        raise FinetuningError("--tts_path: none, expected the folder of a trained acoustic model")
    data_path, out = corpus_folder(args.data_path), Path(args.output_path, EXTRACTED)
    model = load_acoustic_model(args.tts_path, "cuda" if torch.cuda.is_available() else "cpu")
    if model.config.model not in models:
        raise FinetuningError(f"{args.tts_path}: a {model.config.model}, this recipe is for {' and '.join(models)}")
    paired = report.announce(convert.pair(model, config))
    checkpoint = find_weights(args.tts_path, checkpoint_first=True)
    note_source(out, mel_source(checkpoint, samples, data_path, config), "mels")
    share = samples[args.rank :: distributed.n_launched(args)]
    n_left_out = extract(model, share, data_path / "wavs", out, paired, args.extraction_batch_size)
    if n_left_out == len(samples):
        raise DataError(f"{data_path}: none of {n_left_out} samples can be used, for the reasons in the log")


def make_config(args: FinetuningArgs, source: Apnet2Config, run_name: str, recordings: list[Path]) -> Apnet2Config:
    """The configuration of a new run: sizes, analysis and losses of the vocoder to start from, and what is set here.

    Raises:
        ConfigError: if there are too few recordings, or a setting makes no sense.
        FinetuningError: if `extraction_batch_size` makes none.
    """
    if args.extraction_batch_size < 1:
        raise FinetuningError(f"--extraction_batch_size: {args.extraction_batch_size}, expected at least 1")
    features = Path(args.output_path, EXTRACTED)
    # the mel of the acoustic model is what is to be mended, not to be kept
    settings = inherited(source) | dict(consistency_target="amplitude") | recipe.run_settings(args, len(recordings))
    settings |= {"data_path": str(features / "wavs"), "feature_path": str(features / "mels")}
    return Apnet2Config(run_name=run_name, dataset="en/ljspeech", **settings)


def finetune(args: FinetuningArgs, models: tuple[str, ...], run_name: str) -> None:
    """Predict the mels that are missing, then train until the steps are done; mistakes end it in a line.

    Args:
        args: The arguments.
        models: coqui's names of the acoustic models that the recipe is for.
        run_name: Name of its runs.
    """

    def new_config(args: FinetuningArgs) -> Apnet2Config:
        source, samples = vocoder_config(args.restore_path), ljspeech_samples(args.data_path)
        config = make_config(args, source, run_name, recordings_of(args, samples))
        recipe.check_restorable(config, args.restore_path)  # before the hours of mels
        extract_mels(args, models, config, samples)
        return config

    recipe.train(args, new_config, "docs/finetuning.md tells how to fine-tune, and what it needs.")
