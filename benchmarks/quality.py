"""Copy synthesis by an APNet2 model and by Griffin-Lim: STOI, PESQ-WB and mel error over folders of recordings.

    python benchmarks/quality.py --model apnet2 --last 80 --audio held-out=corpus/wavs --audio unseen=other/wavs

Both systems get the same natural-log mel and are compared with the recording it was made of. Griffin-Lim is librosa's:
the linear magnitude is the least-squares solution with no negative values (`mel_to_stft`), then 60 iterations from a
random phase (seed 0) with momentum 0.99. Needs the extra `eval`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
from tqdm import tqdm

from apnet2_tts_plugin import metrics
from apnet2_tts_plugin.checkpoints import CheckpointError
from apnet2_tts_plugin.corpus import DataError, find_audio
from apnet2_tts_plugin.data import read_audio
from apnet2_tts_plugin.loader import ModelError, load_model
from apnet2_tts_plugin.metrics import MetricError, MissingPackageError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.store import StoreError

GRIFFIN_LIM_ITERATIONS = 60


@dataclass
class Result:
    """Means of a system's figures over the files of one folder."""

    audio: str
    n_files: int
    seconds: float
    system: str
    stoi: float
    pesq_wb: float
    mel_error: float


def main() -> None:
    """Measure and print one table per folder."""
    args = parse_arguments()
    try:
        model = load_model(args.model)
        results = [result for label, folder in args.audio for result in measure(model, args, label, folder)]
    except (CheckpointError, DataError, ModelError, StoreError, MetricError, MissingPackageError) as error:
        sys.exit(f"quality.py: {error}")
    command = shlex.join(["python", *sys.argv])
    print(tables(results, command))
    if args.out:
        content = {"command": command, "results": [asdict(result) for result in results]}
        args.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, metavar="NAME_OR_DIR", help="a named model or a folder with one")
    parser.add_argument(
        "--audio",
        required=True,
        action="append",
        type=labelled_folder,
        metavar="[LABEL=]FOLDER",
        help="recordings, and what the table calls them; may be given several times",
    )
    parser.add_argument("--last", type=int, metavar="N", help="only the last N files of each folder by name")
    parser.add_argument("--out", type=Path, metavar="JSON", help="file to write the figures to")
    args = parser.parse_args()
    if args.last is not None and args.last < 1:
        parser.error(f"--last {args.last}: expected at least 1")
    return args


def labelled_folder(argument: str) -> tuple[str, Path]:
    """Label and folder of `LABEL=FOLDER`; a folder alone is called by its name."""
    label, equals, folder = argument.partition("=")
    return (label, Path(folder)) if equals else (Path(argument).name, Path(argument))


def measure(model: Apnet2, args: argparse.Namespace, label: str, folder: Path) -> list[Result]:
    """Figures of both systems over the last `args.last` files of `folder`."""
    audio = model.config.audio
    systems = {f"APNet2 `{args.model}`": vocode, f"Griffin-Lim, {GRIFFIN_LIM_ITERATIONS} iterations": griffin_lim}
    figures = {title: [] for title in systems}
    n_samples = 0
    paths = find_audio(folder)
    paths = paths[-args.last :] if args.last else paths
    for path in tqdm(paths, desc=label, unit="file"):
        recording = read_audio(path, audio.sample_rate)
        recording = recording[: len(recording) // audio.hop_length * audio.hop_length]
        n_samples += len(recording)
        for title, synthesise in systems.items():
            figures[title].append(score(path, model, recording, synthesise))
    seconds = n_samples / audio.sample_rate
    return [
        Result(label, len(paths), seconds, title, *np.mean(values, axis=0).tolist())
        for title, values in figures.items()
    ]


def score(
    path: Path, model: Apnet2, recording: np.ndarray, synthesise: Callable[[Apnet2, torch.Tensor], np.ndarray]
) -> tuple[float, float, float]:
    """STOI, PESQ-WB and mel error of one file."""
    rate = model.config.audio.sample_rate
    copy = synthesise(model, model.log_mel(torch.from_numpy(recording)[None]))
    try:
        return tuple(figure(recording, copy, rate) for figure in (metrics.stoi, metrics.pesq_wb, metrics.mel_error))
    except MetricError as error:
        raise MetricError(f"{path}: {error}") from error


def vocode(model: Apnet2, mel: torch.Tensor) -> np.ndarray:
    """Waveform of a log-mel (1, n_mels, T) by the model: (T - 1) * hop_length samples."""
    return model.inference(mel)[0, 0].numpy()


def griffin_lim(model: Apnet2, mel: torch.Tensor) -> np.ndarray:
    """The same by Griffin-Lim with the model's audio settings."""
    audio = model.config.audio
    magnitude = librosa.feature.inverse.mel_to_stft(
        mel[0].exp().numpy(),
        sr=audio.sample_rate,
        n_fft=audio.fft_size,
        power=1.0,
        fmin=audio.mel_fmin,
        fmax=audio.mel_fmax,
    )
    return librosa.griffinlim(
        magnitude,
        n_iter=GRIFFIN_LIM_ITERATIONS,
        hop_length=audio.hop_length,
        win_length=audio.win_length,
        n_fft=audio.fft_size,
        momentum=0.99,
        random_state=0,
    )


def tables(results: list[Result], command: str) -> str:
    """One Markdown table per folder, and the command that made them."""
    lines = [f"`{command}`"]
    for label in dict.fromkeys(result.audio for result in results):
        rows = [result for result in results if result.audio == label]
        lines += ["", f"{label}: {rows[0].n_files} files, {rows[0].seconds:.1f} s of audio", ""]
        lines += ["| System | STOI | PESQ-WB | Mel error |", "|---|---|---|---|"]
        lines += [f"| {row.system} | {row.stoi:.3f} | {row.pesq_wb:.2f} | {row.mel_error:.3f} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
