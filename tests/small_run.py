"""Training runs of seconds: a tiny APNet2 in the real Trainer, in this process or in children that may be killed."""

import functools
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import soundfile as sf
import torch
from golden_weights import golden_waveform
from trainer import Trainer, TrainerArgs

from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.model import Apnet2

SMALL = {"channels": 16, "hidden_channels": 32, "blocks": 1}


def make_corpus(folder: Path, n_files: int = 7, n_samples: int = 12000) -> Path:
    """Files of noise with pauses."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_files):
        sf.write(folder / f"{i:02}.wav", golden_waveform(n_samples, i), 22050, subtype="PCM_16")
    return folder


def small_config(corpus: Path, out: Path, **settings) -> Apnet2Config:
    """Two epochs of two steps, saved often; figures and speech metrics, which take longest, are left out."""
    defaults = {
        "run_name": "test",
        "output_path": str(out),
        "data_path": str(corpus),
        "eval_split_size": 1,
        "batch_size": 3,
        "epochs": 2,
        "num_loader_workers": 0,
        "num_eval_loader_workers": 0,
        "run_eval": True,
        "print_step": 1,
        "plot_step": 100,
        "log_model_step": 100,
        "save_step": 2,
        "eval_metrics": [],
        "amplitude": PredictorConfig(**SMALL),
        "phase": PredictorConfig(**SMALL),
        "mpd_periods": [2, 3],
        "mpd_channels": [4, 8],
        "mrd_resolutions": [[512, 128, 512]],
        "mrd_channels": 4,
    }
    return Apnet2Config(**defaults | settings)


def make_trainer(
    config: Apnet2Config, model: Apnet2 | None = None, callbacks: dict | None = None, figures=False, **args
) -> Trainer:
    """The Trainer of a small run, as recipes make theirs, with the same first weights at each call."""
    torch.manual_seed(0)
    model = model or Apnet2(config)
    if not figures:
        model.train_log = model.eval_log = lambda *args: None
    return Trainer(
        TrainerArgs(**args),
        config,
        output_path=config.output_path,
        model=model,
        train_samples=["unused"],
        eval_samples=["unused"],
        callbacks=callbacks,
        parse_command_line_args=False,
    )


def fit(config: Apnet2Config, **args) -> Trainer:
    """Run it to its end."""
    trainer = make_trainer(config, **args)
    trainer.fit()
    return trainer


@functools.cache
def load_libraries() -> None:
    """Load what a run loads on its way, which takes seconds, so that not each child has to."""
    Apnet2(small_config(Path(), Path())).get_optimizer()
    importlib.import_module("trainer.logging.tensorboard_logger")


def in_child(function: Callable[[], None]) -> multiprocessing.Process:
    """Start `function` in a forked process with a group of its own, on one thread, without a word on the terminal."""

    def main():
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        torch.set_num_threads(1)
        function()

    load_libraries()
    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process
