"""Make of a run what ships with the plugin: weights of half the size, and settings without paths.

python recipes/heart/export.py recipes/heart/fast_pitch/fast_pitch_heart-DATE/checkpoint_7000.pth --out fast_pitch
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from TTS.config import load_config

TRAINING_ONLY = "pronounce."  # see SpellingForwardTTS
PATHS = ("output_path", "f0_cache_path", "datasets", "run_name", "test_sentences", "git_hash", "github_branch")


def export(checkpoint: Path, out: Path) -> Path:
    """Write `model.pth` in float16, which coqui-tts reads back as float32, and `config.json`; return the former."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if not name.startswith(TRAINING_ONLY)
    }
    config = load_config(checkpoint.with_name("config.json")).to_dict()
    config = {key: value for key, value in config.items() if key not in PATHS}
    out.mkdir(parents=True, exist_ok=True)
    weights, temporary = out / "model.pth", out / ".model.pth"
    torch.save({"model": state}, temporary)
    os.replace(temporary, weights)
    (out / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    return weights


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Export a run of the acoustic model.")
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    try:
        weights = export(args.checkpoint, args.out)
    except (OSError, KeyError) as error:
        print(f"export.py: {args.checkpoint}: {error}", file=sys.stderr)
        return 1
    print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
