"""Mels whose frames lie half a hop after ours, as HiFi-GAN's analysis has them, and with it Matcha-TTS and others.

It pads a waveform by (fft_size - hop_length) / 2 samples at both ends and does not centre its frames: frame i lies
around sample (i + 1/2) * hop_length, and T frames belong to T * hop_length samples. Those of APNet2, as those of
coqui's acoustic models, are centred at i * hop_length, and T frames belong to (T - 1) * hop_length samples.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def vocode_hifigan_frames(vocoder: nn.Module, mel: Tensor) -> Tensor:
    """Waveform (B, 1, T * hop_length) of a natural-log mel (B, n_mels, T) of HiFi-GAN's frames.

    The first and the last frame are taken twice, and what lies outside of the T * hop_length samples is cut.
    """
    hop_length = vocoder.config.audio.hop_length
    waveform = vocoder.inference(F.pad(mel, (1, 1), mode="replicate"))
    start = hop_length // 2
    return waveform[..., start : start + mel.shape[2] * hop_length]
