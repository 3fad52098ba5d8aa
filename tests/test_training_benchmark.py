"""The benchmark of training: its transcription is the official step, and it prints a table of the right shape."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def training(monkeypatch):
    """The module `benchmarks/training.py`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("training", BENCHMARKS / "training.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def first_steps(training):
    """FLOPs and losses of the first step of tiny networks."""
    modes = {name: training.MODES[name] for name in ("plain", "ours", "spectral")}
    return {
        name: training.first_step(training.Training(mode, training.SMALL, 2, 8192, "cpu"))
        for name, mode in modes.items()
    }


def test_the_transcription_has_the_golden_losses(training):
    expected = golden.arrays("official_step")
    official = training.OfficialTraining(training.Sizes())
    for name in ("generator", "mpd", "mrd"):
        getattr(official, name).load_state_dict(golden.official_state(name))
    logged = official.step(official.features(golden.waveforms(7, 8)))
    names = {"loss_imaginary": "loss_imag"}
    for short, long in (("adv", "adversarial"), ("fm", "feature_matching")):
        names |= {f"loss_{long}_{network}": f"loss_{short}_{network}" for network in ("mpd", "mrd")}
    assert len(logged) == 16
    for name, loss in logged.items():
        assert loss.item() == pytest.approx(expected[f"scalar/{names.get(name, name)}"], rel=1e-4), name


def test_the_transcription_has_our_losses(training, first_steps):
    logged = {name: logged for name, (_, logged) in first_steps.items()}
    training.check_equal(logged)
    assert logged["plain"].keys() <= logged["ours"].keys()
    logged["ours"]["loss_mel"] *= 1.01
    with pytest.raises(SystemExit, match="loss_mel of ours differs from the plain transcription's by 1.0e-02"):
        training.check_equal(logged)


def test_flop_are_those_of_a_step(first_steps):
    flop = {name: flop for name, (flop, _) in first_steps.items()}
    assert 0 < flop["spectral"] < flop["ours"] < flop["plain"]


def test_the_transcription_has_the_official_sizes(training):
    official = training.OfficialTraining(training.Sizes())
    ours = training.Apnet2(training.our_config(training.Sizes()))
    default = training.Apnet2Config()
    assert ours.config.mpd_channels == default.mpd_channels and ours.config.mrd_channels == default.mrd_channels
    assert sum(p.numel() for p in official.generator.parameters()) == 31_425_539
    assert sum(p.numel() for p in ours.generator.parameters()) == 31_425_539


@pytest.mark.slow
def test_training_compares_modes(tmp_path):
    out = tmp_path / "training.json"
    modes = ("plain", "ours", "autocast")
    command = [sys.executable, BENCHMARKS / "training.py", "--small", "--batch_size", 2, "--rounds", 1]
    command += ["--modes", *modes, "--profile", "ours", "--json", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [
        "Plain transcription, float32",
        "APNet2, float32",
        "APNet2, bf16 autocast, fused AdamW",
    ]
    assert all(len(row) == len(rows[0]) == 8 for row in rows)
    assert "A large matrix product reaches" in done.stdout and "Self CPU time total" in done.stdout
    results = json.loads(out.read_text())["results"]
    assert [result["mode"] for result in results] == list(modes)
    assert all(result["seconds_per_step"] > 0 and result["peak_mb"] > 0 for result in results)
    assert results[0]["ratio_to_plain"] == 1
    assert torch.tensor([result["tflop_per_step"] for result in results]).argmax() == 0
