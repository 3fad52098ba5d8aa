"""`apnet2 evaluate`: systems, statistics and reports, and that each mistake gets one line."""

import base64
import csv
import html.parser
import io
import json
import os
import shutil
import sys
from pathlib import Path

import acoustic_models
import command_line
import numpy as np
import pytest
import soundfile
import tiny
import torch
from command_line import RATE, a_file, one_line
from golden_weights import golden_waveform
from PIL import Image

from apnet2_tts_plugin.audio import read_audio
from apnet2_tts_plugin.errors import DataError, ModelError
from apnet2_tts_plugin.evaluation import pictures, statistics, systems
from apnet2_tts_plugin.evaluation.systems import Copy, Recording
from apnet2_tts_plugin.metrics import table

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures

NAMES = ("a.wav", "sub/b.flac")
NO_SPEECHMOS = (
    "apnet2: speechmos is not installed: pip install 'apnet2-tts-plugin[eval]' (left out: DNSMOS overall, PLCMOS)\n"
)


@pytest.fixture
def recordings(workplace):
    """Two recordings of 0.6 s, one of them in a sub-folder and at 16 kHz, and noisy copies of both."""
    (workplace / "rec" / "sub").mkdir(parents=True)
    soundfile.write("rec/a.wav", golden_waveform(13230, seed=1), RATE)
    soundfile.write("rec/sub/b.flac", golden_waveform(9600, seed=2, sample_rate=16000), 16000)
    (workplace / "noisy" / "sub").mkdir(parents=True)
    for name, seed in (("a", 3), ("sub/b", 4)):
        suffix = "wav" if name == "a" else "flac"
        samples, rate = soundfile.read(f"rec/{name}.{suffix}")
        noise = np.random.default_rng(seed).standard_normal(len(samples))
        soundfile.write(f"noisy/{name}.wav", samples + 0.01 * noise, rate)
    return workplace / "rec"


@pytest.fixture
def quick(monkeypatch):
    """Without the networks of speechmos, which take seconds for each file."""
    monkeypatch.setitem(sys.modules, "speechmos", None)


class Page(html.parser.HTMLParser):
    """Counts the tags of a page, keeps what they load and what stands in them, and checks that they are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.open, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_reports(model, recordings, quick, apnet2):
    chosen = ("apnet2", "griffin_lim:2", "wavs:noisy", "wavs:rec")
    status, out, err = apnet2("evaluate", "rec", *[w for s in chosen for w in ("--system", s)], "--out", "new/report")
    assert (status, err) == (0, NO_SPEECHMOS)
    report = Path("new/report")
    assert out.startswith("2 files, 1.2 s of audio\n") and out.endswith(f"wrote {report / 'report.html'}\n")
    names = [metric.name for metric in table.METRICS if metric.name not in ("dnsmos", "plcmos")]

    rows = list(csv.DictReader((report / "files.csv").open()))
    assert list(rows[0]) == ["file", "system", "seconds", *names, "times_real_time"]
    assert [(row["file"], row["system"]) for row in rows] == [
        (f"rec/{name}", system) for name in NAMES for system in chosen
    ]
    assert all(float(row["times_real_time"]) > 0 for row in rows if not row["system"].startswith("wavs:"))
    assert float(rows[3]["snr_db"]) == np.inf and float(rows[3]["pesq_wb"]) == pytest.approx(4.64, abs=0.01)
    assert float(rows[2]["snr_db"]) == pytest.approx(snr("a.wav"), abs=0.01)

    summary = json.loads((report / "summary.json").read_text())
    assert (summary["files"], summary["sample_rate"], summary["skipped"]) == (2, RATE, [])
    assert list(summary["means"]) == list(chosen) and list(summary["means"]["apnet2"]) == [*names, "times_real_time"]
    mels = {system: [float(row["mel_error_db"]) for row in rows if row["system"] == system] for system in chosen}
    assert summary["means"]["apnet2"]["mel_error_db"] == pytest.approx(np.mean(mels["apnet2"]), rel=1e-4)
    assert summary["means"]["wavs:rec"]["snr_db"] is None  # infinite
    assert summary["baseline"] == "apnet2" and list(summary["differences_to_baseline"]) == list(chosen[1:])
    difference = summary["differences_to_baseline"]["wavs:noisy"]["mel_error_db"]
    each = np.subtract(mels["wavs:noisy"], mels["apnet2"])
    assert difference["mean"] == pytest.approx(each.mean(), rel=1e-4) and difference["files"] == 2
    assert [difference["low"], difference["high"]] == pytest.approx([each.min(), each.max()], rel=1e-4)

    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("audio") == 2 * (1 + len(chosen)) and page.tags.count("img") == 2 * (1 + 2 * len(chosen))
    assert all(source.startswith("data:") for source in page.loaded)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert set(page.tags) & {"script", "link", "iframe"} == set()
    assert {*NAMES, *chosen} <= set(page.words)
    pesq = {name: np.mean([float(row["pesq_wb"]) for row in rows if row["file"] == f"rec/{name}"]) for name in NAMES}
    assert [word for word in page.words if word in NAMES] == 2 * sorted(NAMES, key=pesq.get)  # worst first


def snr(name):
    """Of the noisy copy, from the files."""
    clean, noisy = (read_audio(f"{folder}/{name}", RATE) for folder in ("rec", "noisy"))
    return 10 * np.log10(np.sum(clean**2) / np.sum((clean - noisy) ** 2))


def test_what_cannot_be_used_is_named_and_skipped(recordings, quick, apnet2):
    """Unreadable, too short, without a copy, with NaN, with a copy of another length, or with a name in Latin-1."""
    a_file("rec/damaged.wav")
    a_file(os.fsdecode(b"rec/M\xfcller.wav"))
    soundfile.write("rec/short.wav", np.zeros(1000), RATE)
    for name, copy in (("lonely", None), ("nan", np.full(9600, np.nan)), ("long", np.zeros(16000))):
        soundfile.write(f"rec/{name}.wav", golden_waveform(9600, seed=5), 16000)
        if copy is not None:
            soundfile.write(f"noisy/{name}.wav", copy, 16000, subtype="FLOAT")
    status, out, err = apnet2("evaluate", "rec", "--system", "wavs:noisy", "--out", "report", "--show", 1)
    lines = dict.fromkeys(err.replace(NO_SPEECHMOS, "").splitlines())
    name, damaged, lonely, long, nan, short, end = lines
    assert status == 1 and out.startswith("2 files, ") and end == "apnet2: 6 of 8 files could not be evaluated"
    assert damaged.startswith("apnet2: rec/damaged.wav: not a recording that can be read")
    assert lonely == "apnet2: rec/lonely.wav: skipped, wavs:noisy: noisy/lonely: no recording of this name"
    assert "rec/long.wav: skipped, wavs:noisy: 1.00 s, the recording has 0.60 s; they must not differ" in long
    assert "noisy/nan.wav: has NaN or infinite samples" in nan
    assert short == "apnet2: rec/short.wav: has 0.05 s, expected at least 0.25 s"
    assert name.startswith(r"apnet2: rec/M\udcfcller.wav: not a recording that can be read")
    page = Page(Path("report/report.html").read_text())
    assert page.tags.count("audio") == 2 and page.tags.count("li") == 6
    assert len(json.loads(Path("report/summary.json").read_text())["skipped"]) == 6


def test_a_metric_without_an_answer_leaves_a_gap(workplace, quick, apnet2):
    """Noise has no speech for STOI, and nothing to say about pitch."""
    Path("rec").mkdir()
    soundfile.write("rec/noise.wav", 0.1 * np.random.default_rng(0).standard_normal(6000), RATE)
    status, out, err = apnet2("evaluate", "rec", "--system", "wavs:rec", "--out", "report")
    assert status == 0 and "apnet2: rec/noise.wav: wavs:rec: STOI needs at least 0.4 s of speech\n" in err
    (row,) = csv.DictReader(Path("report/files.csv").open())
    assert row["stoi"] == "" and row["mel_error_db"] == "0"
    assert json.loads(Path("report/summary.json").read_text())["means"]["wavs:rec"]["stoi"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (("nowhere",), 1, "nowhere: no such file or folder"),
        (("rec", "rec"), 1, "2 recordings are called a; evaluate them one folder at a time"),
        (("rec", "--system", "nothing"), 1, "no APNet2 model is called 'nothing'"),
        (("rec", "--system", "griffin_lim:many"), 1, "griffin_lim:many: expected a number of iterations"),
        (("rec", "--system", "wavs:nowhere"), 1, "nowhere: no such folder"),
        (("rec", "--system", "coqui:nowhere"), 1, "nowhere: no such file, expected the configuration of a coqui"),
        (("rec", "--device", "abacus"), 1, "device 'abacus' cannot be used here"),
        (("rec", "--jobs", "0"), 2, "0, expected a number of at least 1"),
        (("rec", "--out", "rec/a.wav"), 1, "rec/a.wav: no folder can be made there"),
        (("rec", "--out", "/proc"), 1, "/proc: nothing can be written to this folder"),
    ],
)
def test_mistakes(arguments, status, reason, model, recordings, apnet2):
    got, _, err = apnet2("evaluate", *arguments, *(() if "--out" in arguments else ("--out", "report")))
    assert got == status and reason in one_line(err)
    assert not Path("report").exists()


def test_last_of_each_folder(recordings, quick, apnet2):
    assert apnet2("evaluate", "rec", "--last", 1, "--system", "wavs:rec", "--out", "report")[0] == 0
    assert [row["file"] for row in csv.DictReader(Path("report/files.csv").open())] == ["rec/sub/b.flac"]


@pytest.mark.slow
def test_processes_give_the_same(model, recordings, apnet2, capsys):
    """All metrics, in one process and in two, but not the speed: nobody saw how long the copies took."""
    a_file("rec/damaged.wav")
    rows = []
    for jobs in (1, 2):
        command = ("evaluate", "rec", "--system", "wavs:noisy", "--jobs", jobs, "--out", f"report{jobs}")
        assert apnet2(*command)[0] == 1
        rows.append(list(csv.DictReader(Path(f"report{jobs}/files.csv").open())))
    assert len(rows[0]) == 2 and rows[0] == rows[1]
    assert [name for name, value in rows[0][0].items() if not value] == ["times_real_time"]


def test_the_interval_covers_a_known_difference():
    """In about 95 of 100 experiments, and it shrinks as the differences agree more."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        theirs = generator.normal(3, 1, 40)
        item = statistics.paired_difference(list(theirs + generator.normal(0.5, 0.3, 40)), list(theirs))
        covered += item.low <= 0.5 <= item.high
        assert item.high - item.low < 0.3  # though the values themselves vary more than that
    assert 88 <= covered <= 100


def test_differences_leave_out_what_is_missing():
    item = statistics.paired_difference([2.0, None, np.inf, 4.0, 5.0], [1.0, 1.0, 1.0, 2.0, None])
    assert (item.mean, item.n_files) == (1.5, 2) and 1 <= item.low <= item.high <= 2
    assert statistics.paired_difference([1.0, None], [0.0, 2.0]) is None
    assert statistics.mean([None, 1.0, 2.0]) == 1.5 and statistics.mean([None]) is None


def test_our_vocoder_gives_what_the_model_gives(model, recordings):
    copy = systems.make_system("apnet2")(Recording(recordings / "a.wav", "a.wav"))
    recording, rate = soundfile.read(recordings / "a.wav", dtype="float32")
    expected = tiny.model().copy_synthesis(recording, rate)
    assert copy.sample_rate == RATE and copy.seconds > 0
    assert np.allclose(copy.waveform, expected, atol=1e-5)


def test_latent_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_with_runtime", lambda *_: tiny.model(input_features="latent"))
    with pytest.raises(ModelError, match="expected a model that vocodes mels"):
        systems.make_system("latent")


def test_coqui_vocoders_are_aligned(tmp_path, recordings):
    """HiFi-GAN repeats the edges five times before it vocodes; what is kept lies where the recording does."""
    from TTS.vocoder.configs import HifiganConfig
    from TTS.vocoder.models.gan import GAN

    torch.manual_seed(0)
    config = HifiganConfig()
    config.generator_model_params |= dict(upsample_initial_channel=32, resblock_kernel_sizes=[3])
    config.generator_model_params |= dict(resblock_dilation_sizes=[[1, 3]], resblock_type="2")
    folder = acoustic_models.save(GAN(config), config, tmp_path / "hifigan")
    system = systems.make_system(f"coqui:{folder}")
    copy = system(Recording(recordings / "a.wav", "a.wav"))
    recording, _ = soundfile.read(recordings / "a.wav", dtype="float32")
    mel = torch.from_numpy(system.ap.melspectrogram(recording))[None].float()
    with torch.inference_mode():
        expected = system.model.model_g(mel).flatten().numpy()
    middle = slice(5000, 8000)
    assert len(copy.waveform) == len(recording) and np.abs(copy.waveform[middle]).max() > 0
    assert np.allclose(copy.waveform[middle], expected[middle], atol=1e-6)
    for name in ("config.json", "model_file.pth"):
        shutil.copy(folder / name, ".")
    again = systems.make_system("coqui:config.json")(Recording(recordings / "a.wav", "a.wav"))
    assert np.array_equal(again.waveform, copy.waveform)


def test_copies_are_brought_to_the_recording(workplace):
    recording = golden_waveform(RATE, seed=1)
    short = systems.aligned(Copy(recording[:-100], RATE, None), recording, RATE)
    assert np.array_equal(short[:-100], recording[:-100]) and not short[-100:].any()
    long = systems.aligned(Copy(np.append(recording, np.ones(100)), RATE, None), recording, RATE)
    assert np.array_equal(long, recording)
    assert len(systems.aligned(Copy(recording, 16000, None), np.zeros(30000), 22050)) == 30000
    for bad in (recording[:-3000], np.full_like(recording, np.nan)):
        with pytest.raises(DataError):
            systems.aligned(Copy(bad, RATE, None), recording, RATE)


def test_pictures_show_where_and_how_loud():
    """A tone of 2 kHz is a bright line at its tick; made softer, that line is blue, and the rest is white."""
    drawing = pictures.Spectrograms(RATE)
    tone = np.sin(2 * np.pi * 2000 * np.arange(RATE) / RATE)
    loud, soft = drawing.decibels(tone), drawing.decibels(0.1 * tone)
    image = pixels(pictures.spectrogram(loud, loud.max()))
    assert image.shape == (128, loud.shape[1], 3)
    brightest = image.sum(axis=(1, 2)).argmax()
    assert 1 - (brightest + 0.5) / 128 == pytest.approx(dict(drawing.ticks())["2 kHz"], abs=0.01)
    change = pixels(pictures.difference(soft, loud, loud.max()))
    red, green, blue = change[brightest, 40]
    assert blue > red + 50
    assert change[5, 40].min() > 240
    assert [name for name, _ in drawing.ticks()] == ["0.5 kHz", "1 kHz", "2 kHz", "4 kHz", "8 kHz"]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(int)
