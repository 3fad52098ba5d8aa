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
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soxr
import torch
from tqdm import tqdm
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor

from apnet2_tts_plugin.audio import find_audio, read_audio
from apnet2_tts_plugin.errors import Apnet2Error, MetricError
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.metrics import speech
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.pairing.convert import Pairing, pair_configs
from apnet2_tts_plugin.pairing.error import DB_PER_NEPER, mean_error_db
from apnet2_tts_plugin.pairing.plan import LINEAR

NATURAL = dict(log_func="np.log", spec_gain=1, signal_norm=False)
SETTINGS = {
    "the vocoder's own": dict(mel_fmax=8000.0, **NATURAL),
    "log10, normalised, clipped": dict(mel_fmax=8000.0),
    "coqui's defaults: the same up to 11,025 Hz": dict(),
    "50 to 7,600 Hz": dict(mel_fmin=50.0, mel_fmax=7600.0),
    "Tacotron: linear, normalised, clipped": dict(),
    "preemphasis 0.97": dict(mel_fmax=8000.0, preemphasis=0.97),
    "hop 200, window 800": dict(mel_fmax=8000.0, hop_length=200, win_length=800),
    "16 kHz, hop 200, window 800": dict(sample_rate=16000, hop_length=200, win_length=800),
    "24 kHz, hop 300, window 1200, FFT 2048": dict(sample_rate=24000, hop_length=300, win_length=1200, fft_size=2048),
    "44.1 kHz, hop 512, window and FFT 2048": dict(sample_rate=44100, hop_length=512, win_length=2048, fft_size=2048),
}


def main() -> None:
    """Measure and print a table."""
    args = parse_arguments()
    try:
        model = load_model(args.model)
        paths = find_audio(args.audio)[-args.last :]
        rows = [measure(model, title, paths) for title in tqdm(SETTINGS, unit="settings")]
    except Apnet2Error as error:
        sys.exit(f"pairing.py: {error}")
    print(f"`{shlex.join(['python', *sys.argv])}`, {len(paths)} files\n")
    print("| Settings | Verdict | Error, reference | Error, recordings | STOI | PESQ-WB |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="apnet2", metavar="NAME_OR_DIR", help="the vocoder (%(default)s)")
    parser.add_argument("--audio", required=True, type=Path, metavar="FOLDER", help="recordings")
    parser.add_argument(
        "--last", type=positive, default=40, metavar="N", help="how many, the last by name (%(default)s)"
    )
    return parser.parse_args()


def positive(argument: str) -> int:
    """A number of at least 1."""
    if int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument}, expected at least 1")
    return int(argument)


def measure(model: Apnet2, title: str, paths: list[Path]) -> str:
    """The row of one set of settings: means over the recordings."""
    audio = BaseAudioConfig(**SETTINGS[title])
    tts_config = SimpleNamespace(model="tacotron" if title.startswith("Tacotron") else "glow_tts", audio=audio)
    pairing = pair_configs(tts_config, AudioProcessor(audio), model.config)
    error, stoi, pesq = np.mean([score(model, pairing, path) for path in paths], axis=0)
    verdict = pairing.plan.verdict.name.lower()
    return f"| {title} | {verdict} | {mean_error_db(pairing):.1f} dB | {error:.1f} dB | {stoi:.3f} | {pesq:.2f} |"


def score(model: Apnet2, pairing: Pairing, path: Path) -> tuple[float, float, float]:
    """Mel error in dB, STOI and PESQ-WB of one recording."""
    rate = model.config.audio.sample_rate
    recording = read_audio(path, rate)
    theirs = soxr.resample(recording, rate, pairing.ap.sample_rate)
    analyse = pairing.ap.spectrogram if pairing.plan.output == LINEAR else pairing.ap.melspectrogram
    mel = pairing.vocoder_input(analyse(theirs).T)
    own = model.log_mel(torch.from_numpy(recording)[None])
    n_frames = min(mel.shape[2], own.shape[2])
    mel_error = DB_PER_NEPER * (mel[..., :n_frames] - own[..., :n_frames]).abs().mean().item()
    copy = model.inference(mel)[0, 0].numpy()
    n_samples = min(len(copy), len(recording))
    waveforms = recording[:n_samples], copy[:n_samples]
    try:
        return mel_error, speech.stoi(*waveforms, rate), speech.pesq_wb(*waveforms, rate)
    except MetricError as error:
        raise MetricError(f"{path}: {error}") from error


if __name__ == "__main__":
    main()
