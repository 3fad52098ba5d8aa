"""`apnet2 bench` measures what it says, in the right units; what the figures are is not tested."""

import json
import os
import signal

import command_line
import pytest
import tiny
import torch
from command_line import one_line
from test_benchmarks import cells
from test_pitch_start import pitch_config

from apnet2_tts_plugin.bench import clock, measure, memory, plot, systems
from apnet2_tts_plugin.errors import ConfigError, DataError
from apnet2_tts_plugin.weights import checkpoints

workplace, apnet2 = command_line.workplace, command_line.apnet2


@pytest.fixture
def folder(tmp_path):
    """The tiny model, by a path that other processes know too."""
    return str(tiny.save(tmp_path / "model"))


@pytest.fixture
def here(monkeypatch):
    """Memory is measured in this process, which takes less time."""
    monkeypatch.setattr(memory, "in_own_process", lambda function, *arguments: function(*arguments))


def bench(apnet2, *words, **options):
    settings = dict(seconds=[0.1], rounds=1, threads=torch.get_num_threads()) | options
    arguments = [word for name in words for word in ("--system", name)]
    for name, value in settings.items():
        arguments += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return apnet2("bench", *arguments)


def test_tables_and_json(apnet2, folder, here, workplace):
    words = [folder, f"{folder}@int8", "griffin_lim:2", "multiband_melgan"]
    status, out, err = bench(apnet2, *words, seconds=[0.1, 0.3], batch=[1, 2], json="b.json")
    assert status == 0, err
    speeds, figures = (cells(part) for part in out.split("\n\n")[1:])
    assert speeds[0] == ["Times real time", "0.1 s", "0.3 s", "0.1 s x 2", "0.3 s x 2"]
    assert [row[0] for row in speeds[1:]] == [row[0] for row in figures[1:]] == words
    assert all("(1.00, 1.00 to 1.00)" in cell for cell in speeds[1][1:])
    snrs = [row[-1] for row in figures[1:]]
    assert snrs[0] == snrs[2] == snrs[3] == "-" and float(snrs[1]) > 20
    content = json.loads((workplace / "b.json").read_text(encoding="utf-8"))
    assert len(content["speeds"]) == 4 * 4 and content["speech"] == []
    assert all(speed["times_real_time"] > 0 and speed["peak_mb"] > 0 for speed in content["speeds"])
    ours, ours_int8 = content["figures"][:2]
    assert ours["gflop_per_second"] == ours_int8["gflop_per_second"] > 0 < ours["load_seconds"]


def test_long_mels_are_for_what_vocodes_pieces(apnet2, folder, here, monkeypatch):
    monkeypatch.setattr(memory, "STREAMED", 0.2)
    status, out, err = bench(apnet2, folder, "griffin_lim:2", seconds=[0.5])
    assert status == 0, err
    assert cells(out.split("\n\n")[2])[2][1:5] == ["-"] * 4
    status, out, err = bench(apnet2, folder, "griffin_lim:2", seconds=[0.1, 0.5])
    assert status == 0, err
    speeds, figures = (cells(part) for part in out.split("\n\n")[1:])
    assert speeds[1][2] != "-" and speeds[2][2] == "-"
    assert figures[1][4] != "-" and figures[2][4] == "-"


def test_what_would_take_too_long_is_left_out(apnet2, folder, here):
    status, out, _ = bench(apnet2, "griffin_lim:200", folder, seconds=[0.1, 5], limit=0.06)
    speeds = cells(out.split("\n\n")[1])
    assert status == 0 and speeds[1][1] != "-" and speeds[1][2] == "-"


def test_what_is_too_long_for_a_batch_is_named(apnet2, folder, here):
    status, out, err = bench(apnet2, folder, seconds=[0.1, 6], batch=[1, 2])
    assert status == 0, err
    assert cells(out.split("\n\n")[1])[0] == ["Times real time", "0.1 s", "6 s", "0.1 s x 2"]
    assert "apnet2: left out: 6 s x 2, expected --seconds up to 5 with --batch above 1\n" in err


def test_all_may_have_others_beside_it(apnet2, folder, here, monkeypatch):
    monkeypatch.setattr(systems, "all_systems", lambda device: ["griffin_lim:1", "griffin_lim:2"])
    status, out, err = bench(apnet2, folder, "all", "griffin_lim:1")
    assert status == 0, err
    assert [row[0] for row in cells(out.split("\n\n")[1])[1:]] == [folder, "griffin_lim:1", "griffin_lim:2"]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_mel_is_as_long_as_asked_for(folder, batch):
    for words in (folder, "vocos"):
        system = systems.make_system(words, "cpu")
        mel = system.mel(0.5, batch, "cpu")
        expected = round(0.5 * system.audio.sample_rate / system.audio.hop_length) + 1
        assert mel.shape == (batch, system.audio.num_mels, expected)


def test_the_plain_transcription_is_our_generator():
    plain, ours = (systems.make_system(words, "cpu") for words in ("plain", "preset:base"))
    mel = ours.mel(0.1, 1, "cpu")
    with torch.inference_mode():
        outputs = {"plain": plain.run(mel).flatten(), "preset:base": ours.run(mel).flatten()}
    measure._check_equal(outputs)
    with pytest.raises(DataError, match="differs from the plain transcription"):
        measure._check_equal(outputs | {"preset:base": 1.001 * outputs["preset:base"]})


def test_flop_are_those_of_the_products():
    layer = torch.nn.Linear(80, 20)
    system = systems.System("one product", lambda mel: layer(mel.transpose(1, 2)), tiny.config().audio)
    plan = measure.Plan(["one product"], [(1.0, 1)], 1, 10.0, 1, "cpu")
    assert measure._flop(system, plan) == pytest.approx(2 * 80 * 20 * 87 / 86 * 22050 / 256, rel=0.01)


def test_rounds_take_turns():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = clock.interleave(runs, 3, "", "cpu")
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert [sorted(calls[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert clock.ratios([2.0, 2.0, 2.0], [1.0, 2.0, 4.0]) == (0.75, 1.0, 1.5)


def test_a_stream_is_what_gives_the_first_sample(tmp_path):
    model = tiny.model(**pitch_config())
    checkpoints.save_config(model.config, tmp_path)
    checkpoints.save_weights(model.generator, tmp_path)
    system = systems.make_system(str(tmp_path), "cpu")
    mel = system.mel(2.0, 1, "cpu")
    with torch.inference_mode():
        assert measure._first_piece(system, mel).shape[2] < 64 * 256 < system.run(mel).shape[2]


def test_emulated_bf16_is_measured_on_request(monkeypatch):
    for emulated in (True, False):
        monkeypatch.setattr(systems, "emulates_bf16", lambda device, emulated=emulated: emulated)
        words = systems.all_systems("cpu")
        assert "preset:base@int8" in words and ("apnet2@bfloat16" in words) != emulated
    assert not [word for word in systems.all_systems("cuda") if word.endswith(("@int8", "@packed"))]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--system", "nobody"], 1, "nobody"),
        (["--system", "preset:huge"], 1, "preset: 'huge', expected one of"),
        (["--system", "preset:tiny@fast"], 1, "runtime: 'fast', expected"),
        (["--system", "griffin_lim:many"], 1, "expected a number of iterations"),
        (["--device", "cuda:1"], 2, "cuda:1, expected cpu or cuda; CUDA_VISIBLE_DEVICES chooses another GPU"),
        (["--seconds", "20", "9", "--batch", "16"], 2, "without 9 s x 16, 20 s x 16, expected --seconds up to 5 with"),
        (["--seconds", "0"], 2, "0, expected a number of seconds from 0.05"),
        (["--plot", "x.svg"], 2, "--plot and --report: give both, or none"),
        (["--plot", "x.svg", "--report", "nowhere"], 1, "no summary of `apnet2 evaluate`"),
        (["--plot", "x.gif", "--report", "nowhere"], 1, "x.gif: expected a name that ends in .svg or .png"),
        (["--json", "/dev/null/b.json"], 1, "/dev/null: no folder can be made there"),
        (["--json", "."], 1, ".: is a folder, expected the name of a file"),
        (["--device", "tpu"], 1, "device 'tpu' cannot be used here"),
    ],
)
def test_mistakes_get_one_line(apnet2, arguments, status, words):
    result, _, err = apnet2("bench", *arguments)
    assert result == status and words in one_line(err)


def test_quality_against_speed(apnet2, folder, here, workplace):
    (workplace / "report").mkdir()
    means = {folder: {"pesq_wb": 3.0, "dnsmos": None}, "other": {"pesq_wb": 1.0}}
    (workplace / "report" / "summary.json").write_text(json.dumps({"means": means}), encoding="utf-8")
    status, _, err = bench(apnet2, folder, "griffin_lim:2", plot="p.svg", report="report")
    assert status == 0, err
    assert "<svg" in (workplace / "p.svg").read_text(encoding="utf-8")
    status, _, err = bench(apnet2, "griffin_lim:2", plot="p.svg", report="report")
    assert status == 1 and "none of griffin_lim:2" in one_line(err)
    status, _, err = bench(apnet2, folder, seconds=[90], plot="p.svg", report="report")
    assert status == 1 and "--plot: expected --seconds up to 60, and --batch 1" in one_line(err)
    means = {folder: {"pesq_wb": None, "stoi": 0.9}}
    (workplace / "report" / "summary.json").write_text(json.dumps({"means": means}), encoding="utf-8")
    status, _, err = bench(apnet2, folder, plot="p.svg", report="report")
    assert status == 1 and f"has no PESQ-WB or DNSMOS overall of {folder}" in one_line(err)


def test_all_speeds_of_a_picture_are_at_one_length(tmp_path, caplog):
    """The longest of those that most systems have; what has no speed there is left out."""
    picture, quality = str(tmp_path / "p.svg"), dict.fromkeys("abc", {"pesq_wb": 3.0})
    times = [("a", 1.0, 10.0), ("a", 5.0, 20.0), ("a", 20.0, 90.0), ("b", 1.0, 1.0), ("b", 5.0, 2.0), ("c", 1.0, 0.1)]
    speeds = [measure.Speed(system, seconds, 1, speed, None, None) for system, seconds, speed in times]
    assert plot._at_one_length(speeds) == (1.0, {"a": 10.0, "b": 1.0, "c": 0.1})
    assert plot._at_one_length(speeds[:-1]) == (5.0, {"a": 20.0, "b": 2.0})
    plot.write(picture, speeds[:-1], quality)
    assert caplog.messages == [f"{picture}: without c, not measured at 5 s"]
    with pytest.raises(DataError, match="no vocoder was measured at a single length"):
        plot.write(picture, [], quality)


def test_latent_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_with_runtime", lambda *_: tiny.model(input_features="latent"))
    with pytest.raises(ConfigError, match="vocodes the latents of a VITS"):
        systems.make_system("latent", "cpu")


def die() -> None:
    os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, and with it all processes of the command


def test_a_process_that_ends_is_one_line(capfd):
    with pytest.raises(DataError, match="a process ended unexpectedly"):
        memory.in_own_process(die)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_peers_and_speech(apnet2, monkeypatch):
    monkeypatch.undo()  # the bundled models, in processes of their own
    words = ["plain", "preset:base", "apnet2", "hifigan_v2", "univnet", "multiband_melgan"]
    status, out, err = bench(apnet2, *words, seconds=[0.25], text="Hello there.")
    assert status == 0, err
    speeds, figures, speech = (cells(part) for part in out.split("\n\n")[1:])
    assert [row[0] for row in speeds[1:]] == words and all(cell != "-" for row in speeds for cell in row)
    assert all(float(row[3]) > 0 for row in figures[1:])
    assert [row[0] for row in speech[1:]] == ["apnet2"] and float(speech[1][4]) > 0
