"""The benchmarks run and print tables of the right shape; what the figures are is not tested."""

import json

import pytest
import scripts
import soundfile
import tiny
from golden_weights import golden_waveform


def cells(markdown: str) -> list[list[str]]:
    """The cells of all table rows, without the lines below the headers."""
    rows = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Runs a benchmark with arguments; what it has printed."""

    def run(name: str, *arguments: object) -> str:
        scripts.run(scripts.load(scripts.BENCHMARKS / f"{name}.py", monkeypatch), monkeypatch, *arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def recordings(tmp_path):
    """A folder with one second of a speech-like signal at 16 kHz."""
    (tmp_path / "voice").mkdir()
    soundfile.write(tmp_path / "voice" / "a.wav", golden_waveform(16000, seed=1), 16000)
    return tmp_path / "voice"


def test_pairing_has_a_row_for_each_setting(tmp_path, recordings, monkeypatch, capsys):
    pairing = scripts.load(scripts.BENCHMARKS / "pairing.py", monkeypatch)
    titles = ["the vocoder's own", "Tacotron: linear, normalised, clipped", "24 kHz, hop 300, window 1200, FFT 2048"]
    monkeypatch.setattr(pairing, "SETTINGS", {title: pairing.SETTINGS[title] for title in titles})
    scripts.run(pairing, monkeypatch, "--model", tiny.save(tmp_path / "model"), "--audio", recordings)
    header, *rows = cells(capsys.readouterr().out)
    assert header == ["Settings", "Verdict", "Error, reference", "Error, recordings", "STOI", "PESQ-WB"]
    assert [row[0] for row in rows] == titles
    assert [row[1] for row in rows] == ["same", "approximate", "approximate"]
    assert [row[2] == "0.0 dB" for row in rows] == [True, False, False]


@pytest.mark.slow
def test_segments_has_a_row_per_length(tmp_path, recordings, benchmark):
    sizes = "--samples", 8192, 99840
    printed = benchmark("segments", "--model", tiny.save(tmp_path / "model"), "--audio", recordings, *sizes)
    header, short, long, whole = cells(printed)
    assert [header[0], short[0], whole[0]] == ["Samples", "8192", "whole files"]
    assert long == ["99840", "no file is as long"]
    assert float(short[1].split()[0]) > 0 and float(whole[1].split()[0]) > 0


@pytest.mark.slow
def test_decoders_are_compared_stage_by_stage(tmp_path, benchmark):
    out = tmp_path / "vits.json"
    sizes = "--small", "--threads", 1, "--rounds", 1, "--seconds", 0.2, 0.5, "--systems", "own", "apnet2"
    header, *rows = cells(benchmark("vits", *sizes, "--json", out))
    assert header[1:] == ["0.2 s", "0.5 s", "GFLOP per s", "Peak MB"] and all(len(row) == 5 for row in rows)
    decoders = "HiFi-GAN of the VITS", "APNet2"
    stages = [f"{stage}: {decoder}" for stage in ("Decoder", "Whole sentence") for decoder in decoders]
    assert [row[0] for row in rows] == ["Text encoder, durations and flow", *stages]
    results = json.loads(out.read_text())["results"]
    assert len(results) == 12
    assert all(result["times_real_time"] > 0 and result["peak_mb"] > 0 for result in results)
    assert {result["ratio_to_own"] for result in results if result["system"] == "own"} == {1}
