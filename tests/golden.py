"""Golden values of the official implementations, and our networks with the same weights.

The arrays in `data` were computed once with the official APNet2 and FreeV code (torch 2.11, CPU, float32) on weights
and waveforms that `golden_weights` makes again.
"""

import json
from pathlib import Path

import numpy as np
import torch
from golden_weights import golden_state_dict, golden_waveform

from apnet2_tts_plugin.weights.official import rename_official

DATA = Path(__file__).parent / "data"
OFFICIAL_SEED = 2311
FREEV_SEED = 2406


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of `data/<name>.npz`."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def loss(official_step: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The official value of a loss that is `name` in our log."""
    for ours, official in (("adversarial", "adv"), ("feature_matching", "fm"), ("imaginary", "imag")):
        name = name.replace(ours, official)
    return official_step[f"scalar/{name}"]


def official_state(network: str) -> dict[str, torch.Tensor]:
    """Golden state dict of the official `generator`, `mpd` or `mrd`, with official names."""
    return _state(json.loads((DATA / "official_shapes.json").read_text())[network], OFFICIAL_SEED)


def freev_state() -> dict[str, torch.Tensor]:
    """Golden state dict of the official FreeV generator, with official names."""
    return _state(json.loads((DATA / "freev_shapes.json").read_text()), FREEV_SEED)


def load_official(model) -> None:
    """Load the golden weights into an `Apnet2` of the default sizes."""
    model.add_discriminators()
    for name in ("generator", "mpd", "mrd"):
        getattr(model, name).load_state_dict(rename_official(name, official_state(name)))


def waveforms(*seeds: int) -> torch.Tensor:
    """Golden waveforms (len(seeds), 8192)."""
    return torch.from_numpy(np.stack([golden_waveform(8192, seed) for seed in seeds]))


def _state(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in golden_state_dict(shapes, seed).items()}
