"""Compare an APNet2 that decodes a VITS's latents with the VITS's own decoder, in sound and in speed.

    python recipes/piper/compare_decoders.py joe RUN --text_path unseen.txt --speech_path unseen

The VITS says the sentences, and the vocoder decodes the same latents. DNSMOS is of both, PESQ and STOI of the vocoder
against the VITS. Needs the extra `eval`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from apnet2_tts_plugin.errors import Apnet2Error, MetricError
from apnet2_tts_plugin.evaluation.statistics import paired_difference
from apnet2_tts_plugin.finetuning import speech
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.metrics.opinion import dnsmos
from apnet2_tts_plugin.metrics.speech import pesq_wb, stoi


def timed(decode: Callable[[Tensor], Tensor], latent: Tensor, rounds: int) -> tuple[np.ndarray, float]:
    """A waveform (N,), and the seconds that it took: the fastest of several rounds, which other load disturbs least."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        waveform = decode(latent)
        seconds.append(time.perf_counter() - start)
    return waveform.flatten().numpy(), min(seconds)


@torch.inference_mode()
def compare(vits_path: Path, vocoder_path: Path, text_path: Path, speech_path: Path, rounds: int) -> None:
    """Print the mean figures of both decoders."""
    vits, vocoder = speech.load_vits(vits_path), load_model(vocoder_path)
    speech.write_speech(vits, speech.read_sentences(text_path), speech_path)
    rate = vits.config.audio.sample_rate
    wavs, latents = speech.folders(speech_path)
    folder = speech_path / "decoded"
    folder.mkdir(exist_ok=True)
    scores: dict[str, list[float]] = {}
    seconds, spoken = [0.0, 0.0], 0.0
    for path in sorted(latents.glob("*.npy")):
        latent = torch.from_numpy(np.load(path))[None]
        # the vocoder's input has the last frame twice
        own, own_seconds = timed(vits.waveform_decoder, latent[:, :, :-1], rounds)
        decoded, decoded_seconds = timed(vocoder.inference, latent, rounds)
        sf.write(folder / f"{path.stem}.wav", decoded, rate)
        seconds, spoken = [seconds[0] + own_seconds, seconds[1] + decoded_seconds], spoken + len(own) / rate
        scores.setdefault("DNSMOS of the VITS", []).append(dnsmos(own, rate))
        scores.setdefault("DNSMOS of the vocoder", []).append(dnsmos(decoded, rate))
        for name, metric in (("PESQ-WB", pesq_wb), ("STOI", stoi)):
            try:
                scores.setdefault(name, []).append(metric(own, decoded, rate))
            except MetricError as error:
                print(f"{path.stem}: {error}", file=sys.stderr)
    print(f"{len(scores['STOI'])} sentences, {spoken:.0f} s, {torch.get_num_threads()} threads")
    for name, values in scores.items():
        print(f"{name}: {statistics.mean(values):.3f}")
    difference = paired_difference(scores["DNSMOS of the vocoder"], scores["DNSMOS of the VITS"])
    print(f"DNSMOS, vocoder minus VITS: {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
    print(f"Times real time: VITS {spoken / seconds[0]:.1f}, vocoder {spoken / seconds[1]:.1f}")
    print(f"The vocoder is {seconds[0] / seconds[1]:.1f} times as fast")


def main(argv: list[str] | None = None) -> int:
    """Compare the decoders that the command line names."""
    parser = argparse.ArgumentParser(description="Compare an APNet2 with the decoder of a VITS.")
    parser.add_argument("vits", type=Path, help="Folder of the VITS.")
    parser.add_argument("vocoder", type=Path, help="Folder of the APNet2, or of its training run.")
    parser.add_argument("--text_path", type=Path, required=True, help="Sentences, one a line, that it did not learn.")
    parser.add_argument("--speech_path", type=Path, required=True, help="Folder for what both decoders say.")
    parser.add_argument("--threads", type=int, default=1, help="Processor threads. Defaults to 1.")
    parser.add_argument("--rounds", type=int, default=3, help="Times that each sentence is decoded. Defaults to 3.")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        compare(args.vits, args.vocoder, args.text_path, args.speech_path, args.rounds)
    except (Apnet2Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
