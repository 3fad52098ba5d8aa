"""Copy synthesis by an APNet2 model and by Griffin-Lim: STOI, PESQ-WB and mel error over folders of recordings.

    python benchmarks/quality.py --model apnet2 --last 80 --audio held-out=corpus/wavs --audio unseen=other/wavs

Both systems get the same natural-log mel and are compared with the recording it was made of. Griffin-Lim is librosa's:
the linear magnitude is the least-squares solution with no negative values (`mel_to_stft`), then 60 iterations from a
random phase (seed 0) with momentum 0.99. Needs the extra `eval`.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import torch
from tqdm import tqdm

from apnet2_tts_plugin import metrics
from apnet2_tts_plugin.audio import find_audio, read_audio
from apnet2_tts_plugin.errors import Apnet2Error, MetricError
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.model import Apnet2

GRIFFIN_LIM_ITERATIONS = 60


def main() -> None:
    """Measure and print one table per folder."""
    args = parse_arguments()
    try:
        model = load_model(args.model)
        tables = [table(model, args, label, folder) for label, folder in args.audio]
    except Apnet2Error as error:
        sys.exit(f"quality.py: {error}")
    print(f"`{shlex.join(['python', *sys.argv])}`", *tables, sep="\n\n")


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
    parser.add_argument("--last", type=positive, metavar="N", help="only the last N files of each folder by name")
    return parser.parse_args()


def positive(argument: str) -> int:
    """A number of at least 1."""
    if int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument}, expected at least 1")
    return int(argument)


def labelled_folder(argument: str) -> tuple[str, Path]:
    """Label and folder of `LABEL=FOLDER`; a folder alone is called by its name."""
    label, equals, folder = argument.partition("=")
    return (label, Path(folder)) if equals else (Path(argument).name, Path(argument))


def table(model: Apnet2, args: argparse.Namespace, label: str, folder: Path) -> str:
    """A Markdown table of both systems' means over the last `args.last` files of `folder`."""
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
    lines = [f"{label}: {len(paths)} files, {n_samples / audio.sample_rate:.1f} s of audio", ""]
    lines += ["| System | STOI | PESQ-WB | Mel error |", "|---|---|---|---|"]
    for title, values in figures.items():
        stoi, pesq_wb, mel_error_db = np.mean(values, axis=0)
        lines.append(f"| {title} | {stoi:.3f} | {pesq_wb:.2f} | {mel_error_db:.2f} dB |")
    return "\n".join(lines)


def score(path: Path, model: Apnet2, recording: np.ndarray, synthesise: Callable) -> tuple[float, float, float]:
    """STOI, PESQ-WB and mel error of one file."""
    rate = model.config.audio.sample_rate
    copy = synthesise(model, model.log_mel(torch.from_numpy(recording)[None]))
    return *speech_scores(path, recording, copy, rate), metrics.mel_error_db(recording, copy, rate)


def speech_scores(path: Path, recording: np.ndarray, copy: np.ndarray, rate: int) -> tuple[float, float]:
    """STOI and PESQ-WB of one file."""
    try:
        return metrics.stoi(recording, copy, rate), metrics.pesq_wb(recording, copy, rate)
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


if __name__ == "__main__":
    main()
