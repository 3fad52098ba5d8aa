"""Training runs of seconds: a tiny APNet2 in the real Trainer, in this process or in children that may be killed."""

import functools
import importlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import soundfile as sf
import tiny
import torch
from golden_weights import golden_waveform
from trainer import Trainer, TrainerArgs

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.model import Apnet2


def make_corpus(folder: Path, n_files: int = 7, n_samples: int = 12000) -> Path:
    """Files of noise with pauses."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_files):
        sf.write(folder / f"{i:02}.wav", golden_waveform(n_samples, i), 22050, subtype="PCM_16")
    return folder


def spoil_middle(path: Path) -> Path:
    """Replace a file by a FLAC file of which a tenth behind its middle cannot be decoded."""
    samples, rate = sf.read(path)
    path.unlink()
    path = path.with_suffix(".flac")
    sf.write(path, samples, rate)
    content = bytearray(path.read_bytes())
    start, end = 7 * len(content) // 10, 8 * len(content) // 10
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    return path


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
        "mpd_periods": [2, 3],
        "mrd_resolutions": [[512, 128, 512]],
    }
    return tiny.config(**defaults | settings)


def change_config(folder: Path, **changes) -> None:
    """Change the `config.json` of a run, as its user does before it goes on."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_trainer(
    config: Apnet2Config, model: Apnet2 | None = None, callbacks: dict | None = None, figures=False, **args
) -> Trainer:
    """The Trainer of a small run, as recipes make theirs, with the same first weights at each call."""
    torch.manual_seed(0)
    model = model or Apnet2(config)
    if not figures:
        model.train_log = model.eval_log = lambda *args: None
    settings = {"callbacks": callbacks, "parse_command_line_args": False}
    return Trainer(TrainerArgs(**args), config, output_path=config.output_path, model=model, **settings)


def fit(config: Apnet2Config, **args) -> Trainer:
    """Run it to its end."""
    trainer = make_trainer(config, **args)
    trainer.fit()
    return trainer


def stub_trainer(model: Apnet2, **changes) -> SimpleNamespace:
    """As much of a Trainer as `Apnet2.optimize` needs."""
    optimizer = model.get_optimizer()
    parts = {"optimizer": optimizer, "scheduler": model.get_scheduler(optimizer), "use_amp_scaler": False}
    return SimpleNamespace(**parts | {"total_steps_done": 0, "grad_accum_steps": 1} | changes)


def watch(model: Apnet2, name: str, invent: Callable[[], dict] = dict) -> list[tuple[dict, dict]]:
    """The batches that `model.optimize` or `model.eval_step` gets from now on, and what it logs, partly invented."""
    calls, original = [], getattr(model, name)

    def watched(batch, *args):
        outputs, logged = original(batch, *args)
        if logged:  # the Trainer evaluates once for each optimizer
            logged |= invent()
            calls.append((batch, logged))
        return outputs, logged

    setattr(model, name, watched)
    return calls


def make_batch(n: int = 2) -> dict:
    """`n` segments for `Apnet2.optimize`, and names of files."""
    waveform = torch.from_numpy(golden_waveform(n * 8192, 3)).reshape(n, 8192)
    return {"waveform": waveform, "path": [f"{i}.wav" for i in range(n)]}


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
