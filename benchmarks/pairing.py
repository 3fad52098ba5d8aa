"""What a pairing costs: recordings analysed with the audio settings of acoustic models, converted and vocoded.

    python benchmarks/pairing.py --audio corpus/wavs --last 40

Each recording is taken to the spectrogram that an acoustic model with these settings is trained on, converted to the
vocoder's mel, spoken, and compared with itself, so that the acoustic model is perfect and all loss is the vocoder's and
the conversion's. Mel errors are mean absolute differences in dB to the vocoder's own analysis: of the recordings, and
of the reference signal that `apnet2 pair` reports. Needs the extra `eval`.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soxr
import torch
from tqdm import tqdm
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin import metrics, trial
from apnet2_tts_plugin.checkpoints import CheckpointError
from apnet2_tts_plugin.corpus import DataError, find_audio
from apnet2_tts_plugin.data import read_audio
from apnet2_tts_plugin.loader import ModelError, load_model
from apnet2_tts_plugin.metrics import MetricError, MissingPackageError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.pairing import Pairing, pair_configs
from apnet2_tts_plugin.plan import LINEAR
from apnet2_tts_plugin.store import StoreError

NATURAL = dict(log_func="np.log", spec_gain=1, signal_norm=False)
SETTINGS = {
    "the vocoder's own": ("glow_tts", dict(mel_fmax=8000.0, **NATURAL)),
    "log10, normalised, clipped": ("glow_tts", dict(mel_fmax=8000.0)),
    "coqui's defaults: the same up to 11,025 Hz": ("glow_tts", dict()),
    "50 to 7,600 Hz": ("glow_tts", dict(mel_fmin=50.0, mel_fmax=7600.0)),
    "Tacotron: linear, normalised, clipped": ("tacotron", dict()),
    "preemphasis 0.97": ("glow_tts", dict(mel_fmax=8000.0, preemphasis=0.97)),
    "hop 200, window 800": ("glow_tts", dict(mel_fmax=8000.0, hop_length=200, win_length=800)),
    "16 kHz, hop 200, window 800": (
        "glow_tts",
        dict(sample_rate=16000, hop_length=200, win_length=800),
    ),
    "24 kHz, hop 300, window 1200, FFT 2048": (
        "glow_tts",
        dict(sample_rate=24000, hop_length=300, win_length=1200, fft_size=2048),
    ),
    "44.1 kHz, hop 512, window and FFT 2048": (
        "glow_tts",
        dict(sample_rate=44100, hop_length=512, win_length=2048, fft_size=2048),
    ),
}


@dataclass
class Result:
    """Means over the recordings for one set of settings."""

    settings: str
    verdict: str
    reference_error: float
    mel_error: float
    stoi: float
    pesq_wb: float


def main() -> None:
    """Measure and print a table."""
    args = parse_arguments()
    try:
        model = load_model(args.model)
        paths = find_audio(args.audio)[-args.last :]
        results = [measure(model, title, paths) for title in tqdm(SETTINGS, unit="settings")]
    except (CheckpointError, DataError, ModelError, StoreError, MetricError, MissingPackageError) as error:
        sys.exit(f"pairing.py: {error}")
    print(table(results, shlex.join(["python", *sys.argv]), len(paths)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="apnet2", metavar="NAME_OR_DIR", help="the vocoder (%(default)s)")
    parser.add_argument("--audio", required=True, type=Path, metavar="FOLDER", help="recordings")
    parser.add_argument("--last", type=int, default=40, metavar="N", help="how many, the last by name (%(default)s)")
    args = parser.parse_args()
    if args.last < 1:
        parser.error(f"--last {args.last}: expected at least 1")
    return args


def measure(model: Apnet2, title: str, paths: list[Path]) -> Result:
    """Means of one set of settings."""
    acoustic_model, settings = SETTINGS[title]
    audio = BaseAudioConfig(**settings)
    tts_config = SimpleNamespace(model=acoustic_model, audio=audio)
    pairing = pair_configs(tts_config, AudioProcessor(audio), model.config)
    figures = np.mean([score(model, pairing, path) for path in paths], axis=0)
    return Result(title, pairing.plan.verdict.name.lower(), trial.mean_error(pairing), *figures.tolist())


def score(model: Apnet2, pairing: Pairing, path: Path) -> tuple[float, float, float]:
    """Mel error in dB, STOI and PESQ-WB of one recording."""
    rate = model.config.audio.sample_rate
    recording = read_audio(path, rate)
    theirs = soxr.resample(recording, rate, pairing.ap.sample_rate)
    analyse = pairing.ap.spectrogram if pairing.plan.output == LINEAR else pairing.ap.melspectrogram
    mel = pairing.vocoder_input(analyse(theirs).T)
    own = model.log_mel(torch.from_numpy(recording)[None])
    n_frames = min(mel.shape[2], own.shape[2])
    error = trial.DB_PER_NEPER * (mel[..., :n_frames] - own[..., :n_frames]).abs().mean().item()
    copy = model.inference(mel)[0, 0].numpy()
    n_samples = min(len(copy), len(recording))
    waveforms = recording[:n_samples], copy[:n_samples]
    try:
        return error, metrics.stoi(*waveforms, rate), metrics.pesq_wb(*waveforms, rate)
    except MetricError as failure:
        raise MetricError(f"{path}: {failure}") from failure


def table(results: list[Result], command: str, n_files: int) -> str:
    """A Markdown table, and the command that made it."""
    lines = [f"`{command}`, {n_files} files", ""]
    lines += [
        "| Settings | Verdict | Error, reference | Error, recordings | STOI | PESQ-WB |",
        "|---|---|---|---|---|---|",
    ]
    for row in results:
        errors = f"{row.reference_error:.1f} dB | {row.mel_error:.1f} dB"
        lines.append(f"| {row.settings} | {row.verdict} | {errors} | {row.stoi:.3f} | {row.pesq_wb:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
