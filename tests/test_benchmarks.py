"""The benchmarks run and print tables of the right shape; what the figures are is not tested."""

import json
import subprocess
import sys

import pytest
import scripts
import soundfile
import tiny
import torch
from golden_weights import golden_waveform


def cells(markdown: str) -> list[list[str]]:
    """The cells of all table rows, without the lines below the headers."""
    rows = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def recordings(tmp_path):
    """A folder with one second of a speech-like signal at 16 kHz."""
    folder = tmp_path / "voice"
    folder.mkdir()
    soundfile.write(folder / "a.wav", golden_waveform(16000, seed=1), 16000)
    return folder


@pytest.fixture
def inference(monkeypatch):
    """The module `benchmarks/inference.py`."""
    return scripts.load(scripts.BENCHMARKS / "inference.py", monkeypatch)


@pytest.mark.slow
def test_quality_compares_a_model_with_griffin_lim(tmp_path, recordings, monkeypatch, capsys):
    model, out = tiny.save(tmp_path / "model"), tmp_path / "quality.json"
    quality = scripts.load(scripts.BENCHMARKS / "quality.py", monkeypatch)
    audio = ("--audio", recordings, "--audio", f"again={recordings}")
    scripts.run(quality, monkeypatch, "--model", model, *audio, "--out", out)
    printed = capsys.readouterr().out
    header, ours, griffin_lim, *again = cells(printed)
    assert header == ["System", "STOI", "PESQ-WB", "Mel error"]
    assert [ours[0], griffin_lim[0]] == [f"APNet2 `{model}`", "Griffin-Lim, 60 iterations"]
    assert again == [header, ours, griffin_lim]
    assert "voice: 1 files, 1.0 s of audio" in printed
    assert "again: 1 files, 1.0 s of audio" in printed
    results = json.loads(out.read_text())["results"]
    assert [result["audio"] for result in results] == ["voice", "voice", "again", "again"]
    assert results[1]["mel_error"] < results[0]["mel_error"]  # random weights do worse than Griffin-Lim


def test_pairing_has_a_row_for_each_setting(tmp_path, recordings, monkeypatch, capsys):
    pairing = scripts.load(scripts.BENCHMARKS / "pairing.py", monkeypatch)
    titles = ["the vocoder's own", "Tacotron: linear, normalised, clipped", "24 kHz, hop 300, window 1200, FFT 2048"]
    monkeypatch.setattr(pairing, "SETTINGS", {title: pairing.SETTINGS[title] for title in titles})
    scripts.run(pairing, monkeypatch, "--model", tiny.save(tmp_path / "model"), "--audio", recordings)
    header, *rows = cells(capsys.readouterr().out)
    assert header == ["Settings", "Verdict", "Error, reference", "Error, recordings", "STOI", "PESQ-WB"]
    assert [row[:2] for row in rows] == list(
        map(list, zip(titles, ["same", "approximate", "approximate"], strict=True))
    )
    assert [row[2] == "0.0 dB" for row in rows] == [True, False, False]


@pytest.mark.slow
def test_segments_has_a_row_per_length(tmp_path, recordings):
    model = tiny.save(tmp_path / "model")
    command = [sys.executable, scripts.BENCHMARKS / "segments.py", "--model", model, "--audio", recordings]
    done = subprocess.run([*map(str, command), "--samples", "8192", "99840"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, short, long, whole = cells(done.stdout)
    assert [header[0], short[0], whole[0]] == ["Samples", "8192", "whole files"]
    assert long == ["99840", "no file is as long"]
    assert float(short[1]) > 0 and float(whole[1]) > 0


@pytest.mark.slow
def test_quality_says_in_one_line_what_is_wrong(tmp_path, recordings, monkeypatch):
    soundfile.write(recordings / "b.wav", golden_waveform(16000, seed=1)[:2000], 16000)
    quality = scripts.load(scripts.BENCHMARKS / "quality.py", monkeypatch)
    model = tiny.save(tmp_path / "model")
    with pytest.raises(SystemExit) as end:
        scripts.run(quality, monkeypatch, "--model", model, "--audio", recordings, "--last", 1)
    assert end.value.code.startswith(f"quality.py: {recordings / 'b.wav'}: STOI needs") and "\n" not in end.value.code


@pytest.mark.slow
def test_inference_compares_systems(inference, tmp_path, monkeypatch, capsys):
    out = tmp_path / "inference.json"
    systems = ("plain", "ours", "ours-bf16")
    arguments = ("--seconds", 0.1, 0.25, "--rounds", 1, "--systems", *systems, "--threads", torch.get_num_threads())
    scripts.run(inference, monkeypatch, *arguments, "--json", out)
    header, *rows = cells(capsys.readouterr().out)
    assert header[1:] == ["0.1 s", "0.25 s", "Peak MB", "GFLOP per s", "Share of matrix rate", "SNR dB"]
    assert [row[0] for row in rows] == ["Plain transcription, float32", "APNet2, float32", "APNet2, bf16 weights"]
    assert all(len(row) == len(header) for row in rows)
    assert [bool(row[-1]) for row in rows] == [False, False, True]
    results = json.loads(out.read_text())["results"]
    assert len(results) == 6
    assert all(result["times_real_time"] > 0 and result["peak_mb"] > 0 for result in results)
    assert results[0]["ratio_to_plain"] == 1


def test_the_plain_transcription_is_our_generator(inference):
    systems = {name: inference.build(name, "cpu") for name in ("plain", "ours")}
    mel = systems["ours"].mel(0.1)
    outputs = {name: system(mel) for name, system in systems.items()}
    inference.check_equal(outputs)
    with pytest.raises(SystemExit, match="differs from the plain transcription"):
        inference.check_equal({**outputs, "ours": outputs["ours"] + 1e-3 * outputs["ours"].abs().max()})


def test_flop_are_those_of_the_products(inference):
    layer = torch.nn.Linear(30, 20)
    system = inference.System("one product", layer, layer)
    assert inference.count_flop(system, torch.zeros(7, 30)) == 2 * 7 * 30 * 20
