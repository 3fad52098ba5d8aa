"""The benchmark of VITS decoders runs and prints a table of the right shape; what the figures are is not tested."""

import json

import pytest
import scripts


@pytest.mark.slow
def test_decoders_are_compared_stage_by_stage(tmp_path, monkeypatch, capsys):
    out = tmp_path / "vits.json"
    benchmark = scripts.load(scripts.BENCHMARKS / "vits.py", monkeypatch)
    sizes = "--small", "--threads", 1, "--rounds", 1, "--seconds", 0.2, 0.5, "--systems", "own", "apnet2"
    scripts.run(benchmark, monkeypatch, *sizes, "--json", out)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    header, _, *rows = rows
    assert header[1:] == ["0.2 s", "0.5 s", "GFLOP per s", "Peak MB"] and all(len(row) == 5 for row in rows)
    assert [row[0] for row in rows] == [
        "Text encoder, durations and flow",
        *(
            f"{stage}: {decoder}"
            for stage in ("Decoder", "Whole sentence")
            for decoder in ("HiFi-GAN of the VITS", "APNet2")
        ),
    ]
    results = json.loads(out.read_text())["results"]
    assert len(results) == 12
    assert all(result["times_real_time"] > 0 and result["peak_mb"] > 0 for result in results)
    whole = {(r["system"], r["stage"], r["seconds"]): 1 / r["times_real_time"] for r in results}
    for system in ("own", "apnet2"):
        stages = sum(whole[system, stage, 0.5] for stage in ("before", "decoder"))
        assert stages == pytest.approx(whole[system, "whole", 0.5], rel=0.1)
