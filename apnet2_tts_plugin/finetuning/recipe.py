"""Fine-tuning on the mels of a trained acoustic model: what the recipes `recipes/ljspeech/apnet2_*` share."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trainer import Trainer, TrainerArgs
from TTS.config import load_config
from TTS.tts.configs.shared_configs import BaseDatasetConfig, BaseTTSConfig
from TTS.tts.datasets import load_tts_samples

from apnet2_tts_plugin import distributed, extraction, pairing, report, teacher_forcing
from apnet2_tts_plugin.checkpoints import CONFIG_NAME, restore
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.corpus import DataError, split
from apnet2_tts_plugin.features import find_checkpoint
from apnet2_tts_plugin.loader import read_config
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.teacher_forcing import Sample

FEATURES = "teacher_forced"  # folder of recordings and mels in the output folder
INHERITED = (  # of the vocoder to start from: sizes, analysis and losses
    "audio",
    "amplitude",
    "phase",
    "amplitude_start",
    "input",
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
LEAST = {  # value of an argument
    "extraction_batch_size": 1,
    "eval_split_size": 1,
    "batch_size": 1,
    "grad_accum_steps": 1,
    "steps": 1,
    "num_loader_workers": 0,
}


class FinetuningError(ValueError):
    """An argument is missing or wrong; the message is one line."""


@dataclass
class FinetuningArgs(TrainerArgs):
    """The Trainer's own arguments, and those of the recipes; `restore_path` is the vocoder to start from."""

    tts_path: str = field(default="", metadata={"help": "Folder of the trained acoustic model, or its checkpoint."})
    data_path: str = field(default="", metadata={"help": "LJSpeech-1.1. Defaults to that beside the recipe."})
    output_path: str = field(default="", metadata={"help": "Folder for mels and runs. Defaults to the recipe's."})
    extraction_batch_size: int = field(default=16, metadata={"help": "Sentences predicted together. Defaults to 16."})
    eval_split_size: int = field(default=50, metadata={"help": "Recordings held out. Defaults to 50."})
    batch_size: int = field(default=16, metadata={"help": "Segments of a batch, on each GPU. Defaults to 16."})
    steps: int = field(default=100_000, metadata={"help": "Training steps. Defaults to 100000."})
    lr: float = field(default=5e-5, metadata={"help": "Learning rate at the start. Defaults to 0.00005."})
    num_loader_workers: int = field(default=4, metadata={"help": "Processes that read audio, per GPU. Defaults to 4."})
    mixed_precision: bool = field(default=False, metadata={"help": "Compute in bfloat16 where it does no harm."})
    allow_tf32: bool = field(default=False, metadata={"help": "Let matrix products round to TF32."})
    use_compile: bool = field(default=False, metadata={"help": "Compile the networks by torch.compile."})


def parse_args(description: str, recipe: Path, argv: list[str] | None = None) -> FinetuningArgs:
    """Read the command line of the recipe in the folder `recipe`, which is where it writes to by default."""
    args = FinetuningArgs()
    parser = args.init_argparse(arg_prefix="")
    parser.description = description
    args.parse_args(parser.parse_args(argv))
    args.data_path = args.data_path or str(recipe.parent / "LJSpeech-1.1")
    args.output_path = args.output_path or str(recipe)
    return args


def check_args(args: FinetuningArgs) -> None:
    """Refuse numbers that cannot work.

    Raises:
        FinetuningError: with the argument, its value and what is allowed.
    """
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value < least:
            raise FinetuningError(f"--{name}: {value}, expected at least {least}")
    if not 0 < args.lr < float("inf"):
        raise FinetuningError(f"--lr: {args.lr}, expected a number above 0")


def vocoder_config(restore_path: str) -> Apnet2Config:
    """The configuration of the vocoder to start from, beside its weights.

    Raises:
        FinetuningError: if no vocoder is named, or it has no configuration.
        ModelError: if the configuration cannot be used.
    """
    if not restore_path:
        raise FinetuningError("--restore_path: none, expected the weights of a trained APNet2, or their folder")
    path = Path(restore_path)
    if not path.exists():
        raise FinetuningError(f"--restore_path: {path} is not there, expected the weights of a trained APNet2")
    config_path = path / CONFIG_NAME if path.is_dir() else path.with_name(CONFIG_NAME)
    if not config_path.is_file():
        raise FinetuningError(
            f"{config_path}: no such file, expected the configuration of the weights; "
            "`apnet2 import` writes it for official files, `apnet2 export` for checkpoints"
        )
    return read_config(config_path)


def ljspeech_samples(data_path: str) -> list[Sample]:
    """The recordings and texts of an LJSpeech folder.

    Raises:
        DataError: if there is none.
    """
    dataset = BaseDatasetConfig(formatter="ljspeech", meta_file_train="metadata.csv", path=data_path)
    try:
        items, _ = load_tts_samples(BaseTTSConfig(datasets=[dataset]), eval_split=False)
    except (OSError, IndexError, AssertionError, UnicodeError) as error:
        raise DataError(
            f"{data_path}: expected LJSpeech as it is, with wavs and a metadata.csv of three columns ({error})"
        ) from error
    return [Sample(Path(item["audio_file"]), item["text"], item["speaker_name"]) for item in items]


def recordings_of(args: FinetuningArgs, samples: list[Sample]) -> list[Path]:
    """What `extract_mels` makes of the recordings; those that cannot be used are among them."""
    return [Path(args.output_path, FEATURES, "wavs", sample.path.name) for sample in samples]


def extract_mels(args: FinetuningArgs, models: tuple[str, ...], config: Apnet2Config, samples: list[Sample]) -> None:
    """Write recordings and mels to train on, unless they are there; this process its share of them.

    Args:
        args: The arguments.
        models: coqui's names of the acoustic models that the recipe is for.
        config: The configuration of the vocoder.
        samples: LJSpeech, see `ljspeech_samples`.

    Raises:
        FinetuningError: if no acoustic model is named, or it is another than those.
        CheckpointError: if the acoustic model has no checkpoint.
        TeacherForcingError: if the acoustic model cannot be loaded or forced.
        ExtractionError: if the folder has mels of another, or cannot be written to.
        PairingError: if the vocoder cannot follow the acoustic model, see `report.announce` too.
        DataError: if no recording can be used, as far as a single process can tell.
        OSError: if a file cannot be written.
    """
    if not args.tts_path:
        raise FinetuningError("--tts_path: none, expected the folder of a trained acoustic model")
    data_path, out = Path(args.data_path), Path(args.output_path, FEATURES)
    model = teacher_forcing.load_acoustic_model(args.tts_path, "cuda" if torch.cuda.is_available() else "cpu")
    if model.config.model not in models:
        raise FinetuningError(f"{args.tts_path}: a {model.config.model}, this recipe is for {' and '.join(models)}")
    paired = report.announce(pairing.pair(model, config))
    extraction.claim(out, find_checkpoint(args.tts_path), samples, data_path, config)
    share = samples[args.rank :: distributed.n_launched(args)]
    n_left_out = extraction.extract(model, share, data_path / "wavs", out, paired, args.extraction_batch_size)
    if n_left_out == len(samples):
        raise DataError(f"{data_path}: none of {n_left_out} samples can be used, for the reasons in the log")


def make_config(args: FinetuningArgs, source: Apnet2Config, run_name: str, recordings: list[Path]) -> Apnet2Config:
    """The configuration of a new run: sizes, analysis and losses of the vocoder to start from, and what is set here.

    Raises:
        DataError: if there are too few recordings.
        ConfigError: if a setting makes no sense.
    """
    features = Path(args.output_path, FEATURES)
    train_files, _ = split(recordings, args.eval_split_size)
    step_size = args.batch_size * args.grad_accum_steps * distributed.n_launched(args)
    settings = {name: source[name] for name in INHERITED} | dict(
        run_name=run_name,
        output_path=args.output_path,
        data_path=str(features / "wavs"),
        feature_path=str(features / "mels"),
        batch_size=args.batch_size,
        eval_split_size=args.eval_split_size,
        epochs=-(-args.steps // -(-len(train_files) // step_size)),
        num_loader_workers=args.num_loader_workers,
        mixed_precision=args.mixed_precision,
        allow_tf32=args.allow_tf32,
        use_compile=args.use_compile,
        run_eval=True,
        print_step=100,
        plot_step=100,
        log_model_step=5000,
        save_step=5000,
        # about where the official training ends after a million steps, 2e-4 * 0.999**1250 = 5.7e-5: more would undo it
        lr_gen=args.lr,
        lr_disc=args.lr,
        lr_scheduler_gen="ExponentialLR",
        lr_scheduler_gen_params={"gamma": 0.999},
        lr_scheduler_disc="ExponentialLR",
        lr_scheduler_disc_params={"gamma": 0.999},
        scheduler_after_epoch=True,
    )
    return Apnet2Config(**settings)


def finetune(args: FinetuningArgs, models: tuple[str, ...], run_name: str) -> None:
    """Predict the mels that are missing, then train until the steps are done; mistakes end it in a line.

    Args:
        args: The arguments.
        models: coqui's names of the acoustic models that the recipe is for.
        run_name: Name of its runs.
    """
    distributed.adopt_launcher(args)
    try:
        if args.continue_path:  # an interrupted run goes on with its own configuration, and has all of its mels
            config, recordings = load_config(os.path.join(args.continue_path, CONFIG_NAME)), []
        else:
            check_args(args)
            source, samples = vocoder_config(args.restore_path), ljspeech_samples(args.data_path)
            recordings = recordings_of(args, samples)
            config = make_config(args, source, run_name, recordings)
            restore(Apnet2(config), args.restore_path)  # what cannot be restored is known before the hours of mels
            extract_mels(args, models, config, samples)
        trainer = Trainer(
            args,
            config,
            output_path=config.output_path,
            model=Apnet2(config),
            train_samples=recordings,  # the model splits them itself, when those of all processes are there
            eval_samples=recordings,
            callbacks={"on_init_start": lambda trainer: distributed.wait_for_all()},
            parse_command_line_args=False,
        )
    except (ValueError, OSError, distributed.LaunchError) as error:
        sys.exit(f"error: {error}\nrecipes/ljspeech/README.md tells how to fine-tune, and what it needs.")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    trainer.fit()
