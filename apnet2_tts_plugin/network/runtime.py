"""How a generator computes when it vocodes: by which code, and in which arithmetic."""

from collections.abc import Callable

import torch

from apnet2_tts_plugin.errors import ConfigError
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.network.packed import Int8Linear, PackedLinear, pack
from apnet2_tts_plugin.network.precision import emulates_bf16

AUTO = "auto"


def use_runtime(generator: Generator, name: str) -> str:
    """Let a generator vocode by another runtime; but for "eager" it can only vocode, and only there, from then on.

    The pitch, and a mel that is predicted, stay as they are: in another arithmetic the pitch would be another one, and
    with it the waveform.

    Args:
        generator: The generator, as it was trained or loaded, on the device that it stays on.
        name: One of `RUNTIMES`, or "auto": "packed" on processors with AVX-512, where it is the faster one, and "eager"
            elsewhere.

    Returns:
        The name of the runtime.

    Raises:
        ConfigError: if there is no such runtime, it cannot be used on this device, or the generator has another.
    """
    check_name(name)
    if any(isinstance(module, PackedLinear | Int8Linear) for module in generator.modules()):
        raise ConfigError(f"runtime {name}: the model is in another one already; load it anew")
    device = generator.istft.window.device.type
    if name == AUTO:
        packs = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
        name = "packed" if device == "cpu" and packs else "eager"
    RUNTIMES[name](generator, device)
    return name


def check_name(name: str) -> None:
    """Raise ConfigError if there is no such runtime."""
    if name not in (AUTO, *RUNTIMES):
        raise ConfigError(f"runtime: {name!r}, expected {AUTO}, {', '.join(RUNTIMES)}")


def _eager(generator: Generator, device: str) -> None:
    """As it was trained."""


def _packed(generator: Generator, device: str) -> None:
    """In float32, the weights laid out for the processor."""
    _require_onednn("packed", device)
    for predictor in (generator.amplitude, generator.phase):
        pack(predictor, PackedLinear)


def _bfloat16(generator: Generator, device: str) -> None:
    """In bfloat16, where the device has instructions for it; on a processor laid out as by "packed"."""
    if emulates_bf16(device):
        raise ConfigError(f"runtime bfloat16: this {device} has no instructions for it, expected packed, int8 or eager")
    if device == "cpu":
        _require_onednn("bfloat16", device)
    for predictor in (generator.amplitude, generator.phase):
        predictor.bfloat16()
        if device == "cpu":
            pack(predictor, PackedLinear)


def _int8(generator: Generator, device: str) -> None:
    """Matrix products of 8-bit numbers."""
    _require_onednn("int8", device)
    for predictor in (generator.amplitude, generator.phase):
        pack(predictor, Int8Linear)


RUNTIMES: dict[str, Callable[[Generator, str], None]] = {
    "eager": _eager,
    "packed": _packed,
    "bfloat16": _bfloat16,
    "int8": _int8,
}


def _require_onednn(name: str, device: str) -> None:
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        reason = (
            "torch has no oneDNN here" if device == "cpu" else f"it is for processors, and the model is on {device}"
        )
        raise ConfigError(f"runtime {name}: {reason}, expected eager or auto")
