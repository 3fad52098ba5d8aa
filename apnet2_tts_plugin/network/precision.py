"""Where bfloat16 does not pay."""

from pathlib import Path

import torch

INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls them on x86 and on ARM


def emulates_bf16(device: str) -> bool:
    """Whether "cpu" or "cuda" has no instructions for bfloat16, which then takes longer than float32.

    A processor with AVX-512 took four times as long, one with AVX2 a hundred times. Where it cannot be told, False.
    """
    if device == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not INSTRUCTIONS & set(words)
