"""Mel error of a model over the length of what it is given: does it speak whole sentences as well as training segments?

    python benchmarks/segments.py --model apnet2 --audio corpus/wavs --last 80

GRN pools over all frames, so a model that was trained on short segments can be worse on anything longer.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from apnet2_tts_plugin.audio import find_audio, read_audio
from apnet2_tts_plugin.errors import Apnet2Error
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.metrics.spectral import DB_PER_NEPER
from apnet2_tts_plugin.model import Apnet2


def mel_error_db(model: Apnet2, waveform: torch.Tensor, n_samples: int) -> float:
    """Mean full-band log-mel error in dB over pieces of `n_samples`, a multiple of the hop, of a waveform (N,)."""
    pieces = waveform[: len(waveform) // n_samples * n_samples].reshape(-1, n_samples)
    log_mel = model.criterion.log_mel
    vocoded = model.inference(model.log_mel(pieces))[:, 0]
    return DB_PER_NEPER * (log_mel(pieces) - log_mel(vocoded)).abs().mean().item()


def main() -> None:
    """Measure and print one row per length."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="apnet2", help="a name from `apnet2 list`, or a folder")
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--last", type=int, default=80, help="take the last files by name")
    parser.add_argument("--samples", type=int, nargs="+", default=[8192, 16384, 32768], help="lengths of pieces")
    args = parser.parse_args()
    try:
        model = load_model(args.model)
        audio = model.config.audio
        paths = find_audio(args.audio)[-args.last :]
        errors = {length: [] for length in [*args.samples, "whole files"]}
        for path in tqdm(paths, unit="file", disable=None):
            waveform = torch.from_numpy(read_audio(path, audio.sample_rate))
            whole = len(waveform) // audio.hop_length * audio.hop_length
            for length, found in errors.items():
                n_samples = whole if length == "whole files" else length
                if n_samples <= whole:
                    found.append(mel_error_db(model, waveform, n_samples))
    except Apnet2Error as error:
        sys.exit(f"segments.py: {error}")
    print("| Samples | Mel error |\n|---|---|")
    for length, found in errors.items():
        print(f"| {length} | {f'{sum(found) / len(found):.3f}' if found else 'no file is as long'} |")


if __name__ == "__main__":
    main()
