"""The benchmark of training: its transcription is the official step, and it prints a table of the right shape."""

import json

import golden
import pytest
import scripts
import torch


@pytest.fixture(scope="module")
def training():
    """The module `benchmarks/training.py`."""
    with pytest.MonkeyPatch.context() as patch:
        yield scripts.load(scripts.BENCHMARKS / "training.py", patch)


@pytest.fixture(scope="module")
def official(training):
    """The transcription in its official sizes, with the golden weights."""
    transcription = training.OfficialTraining(training.Sizes())
    for name in ("generator", "mpd", "mrd"):
        getattr(transcription, name).load_state_dict(golden.official_state(name))
    return transcription


@pytest.fixture(scope="module")
def first_steps(training):
    """FLOPs and losses of the first step of tiny networks."""
    modes = {name: training.MODES[name] for name in ("plain", "ours", "spectral")}
    return {
        name: training.first_step(training.Training(mode, training.SMALL, 2, 8192, "cpu"))
        for name, mode in modes.items()
    }


def test_the_transcription_has_the_golden_losses(official):
    expected = golden.arrays("official_step")
    logged = official.step(official.features(golden.waveforms(7, 8)))
    assert len(logged) == 16
    for name, loss in logged.items():
        assert loss.item() == pytest.approx(golden.loss(expected, name), rel=1e-4), name


def test_the_transcription_has_our_losses(training, first_steps):
    logged = {name: dict(logged) for name, (_, logged) in first_steps.items()}
    training.check_equal(logged)
    assert logged["plain"].keys() <= logged["ours"].keys()
    logged["ours"]["loss_mel"] = 1.01 * logged["ours"]["loss_mel"]
    with pytest.raises(SystemExit, match="loss_mel of ours differs from the plain transcription's by 1.0e-02"):
        training.check_equal(logged)


def test_flop_are_those_of_a_step(first_steps):
    flop = {name: flop for name, (flop, _) in first_steps.items()}
    assert 0 < flop["spectral"] < flop["ours"] < flop["plain"]


def test_the_transcription_has_the_official_sizes(training, official):
    ours = training.Apnet2(training.our_config(training.Sizes()))
    default = training.Apnet2Config()
    assert ours.config.mpd_channels == default.mpd_channels and ours.config.mrd_channels == default.mrd_channels
    assert sum(p.numel() for p in official.generator.parameters()) == 31_425_539
    assert sum(p.numel() for p in ours.generator.parameters()) == 31_425_539


def test_emulated_bf16_is_measured_on_request(training, monkeypatch):
    monkeypatch.setattr(training, "emulates_bf16", lambda device: True)
    assert training.default_modes("cpu") == ["plain", "ours", "fused", "spectral"]
    monkeypatch.setattr(training, "emulates_bf16", lambda device: False)
    assert training.default_modes("cuda") == list(training.MODES)


@pytest.mark.slow
def test_training_compares_modes(training, tmp_path, monkeypatch, capsys):
    out = tmp_path / "training.json"
    modes = ("plain", "autocast")
    arguments = ("--small", "--batch_size", 2, "--rounds", 1, "--threads", torch.get_num_threads())
    scripts.run(training, monkeypatch, *arguments, "--modes", *modes, "--profile", "autocast", "--json", out)
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["Plain transcription, float32", "APNet2, bf16 autocast, fused AdamW"]
    assert all(len(row) == len(rows[0]) == 8 for row in rows)
    assert "A large matrix product reaches" in printed and "Self CPU time total" in printed
    results = json.loads(out.read_text())["results"]
    assert [result["mode"] for result in results] == list(modes)
    assert all(result["seconds_per_step"] > 0 and result["peak_mb"] > 0 for result in results)
    assert results[0]["ratio_to_plain"] == 1
    assert torch.tensor([result["tflop_per_step"] for result in results]).argmax() == 0
