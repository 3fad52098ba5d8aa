"""The recipe of the bundled acoustic model: which characters say which phonemes, how long, and that it trains."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import scripts
import soundfile
import tiny
import torch

from apnet2_tts_plugin.errors import DataError

HEART = scripts.RECIPES / "heart"
HOP, RATE = 256, 22050
PAIRS = [  # spelling and phonemes as of the teacher's phonemizer, without stress
    ("the ship is here.", "ðə ʃɪp ɪz hɪɹ."),
    ("she knew his shoes.", "ʃi nu hɪz ʃuz."),
    ("he knits the hat.", "hi nɪts ðə hæt."),
    ("this shop has ten hens.", "ðɪs ʃɑp hæz tɛn hɛnz."),
]


@pytest.fixture
def align(monkeypatch):
    return scripts.load(HEART / "align.py", monkeypatch)


@pytest.fixture
def prepare(monkeypatch):
    scripts.load(HEART / "align.py", monkeypatch)
    return scripts.load(HEART / "prepare.py", monkeypatch)


@pytest.fixture
def make_sentences(monkeypatch):
    return scripts.load(HEART / "make_sentences.py", monkeypatch)


RULES = {"sh": "ʃ", "th": "θ", "ch": "ʧ", "ph": "f", "ck": "k", "qu": "kw", "x": "ks", "ee": "i", "oo": "u", "gh": ""}


def pronounce(text: str) -> tuple[str, list[range]]:
    """Phonemes of a text by simple rules, and for each the characters that it may belong to."""
    phonemes, places = "", []
    for found in re.finditer("|".join([*RULES, r"(?P<silent>e\b)", "."]), text):
        spoken = "" if found["silent"] else RULES.get(found[0], found[0])
        phonemes += spoken
        places += [range(*found.span())] * len(spoken)
    return phonemes, places


def test_characters_find_their_phonemes(align):
    """Words stay together, nothing goes back, and where rules say what belongs together, almost all of it is found."""
    texts = (scripts.RECIPES / "flite" / "sentences.txt").read_text().lower().splitlines()[:150]
    spoken = [pronounce(text) for text in texts]
    aligner = align.Aligner([(text, phonemes) for text, (phonemes, _) in zip(texts, spoken, strict=True)])
    right = []
    for text, (phonemes, expected) in zip(texts, spoken, strict=True):
        places = aligner.align(text, phonemes)
        assert (np.diff(places) >= 0).all()
        assert all((text[place] == " ") == (phonemes[i] == " ") for i, place in enumerate(places))
        right += [place in allowed for place, allowed in zip(places, expected, strict=True)]
    assert np.mean(right) > 0.98


def test_silent_characters_share_time(align):
    """Those at the start of a word with the ones behind them, all others with the ones before them."""
    places = np.array([1, 2, 4, 5])  # of "knee so": n, e, space, s; k, the second e and o are silent
    ends = align.character_boundaries("knee so", places, [0.2, 0.4, 0.1, 0.6])
    assert ends == pytest.approx(np.cumsum([0.1, 0.1, 0.2, 0.2, 0.1, 0.3, 0.3]))


def test_stress_belongs_to_the_phoneme_behind(align):
    assert align.join_marks("ˈaˌbc", [1, 2, 3, 4, 5]) == (["a", "b", "c"], [3, 7, 5])
    assert align.stressed("ˈaˌbc") == ["ˈa", "ˌb", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_durations_fill_the_file(seed, prepare):
    """With a frame at least for each token, also where the teacher gave characters no time or too much."""
    rng = np.random.default_rng(seed)
    boundaries = np.cumsum(rng.choice([0.0, 0.001, 0.1, 0.3], 20))
    for frames in (22, 30, 500):
        durations = prepare.token_durations(boundaries, 0.06, frames)
        assert durations.shape == (22,) and durations.sum() == frames and durations.min() >= 1
    expected = np.round(np.array([0.06, 0.16, 0.36]) * RATE / HOP)
    assert np.cumsum(prepare.token_durations(np.array([0.1, 0.3]), 0.06, 100))[:3] == pytest.approx(expected)
    with pytest.raises(ValueError, match="21 frames, expected at least one for each of 22 tokens"):
        prepare.token_durations(boundaries, 0.06, 21)


def test_pitch_of_a_tone(prepare):
    pytest.importorskip("pyworld")
    time = np.arange(RATE) / RATE
    audio = sum(np.sin(2 * np.pi * 200 * n * time) / n for n in range(1, 20)) * 0.1
    found = prepare.pitch(audio, 1 + len(audio) // HOP)
    assert found.shape == (1 + RATE // HOP,)
    assert np.median(found[10:-10]) == pytest.approx(200, rel=0.005)


def test_sentences(make_sentences, tmp_path):
    """Held-out ones come first and are nowhere else; all are what the cleaner leaves, so it changes them no more."""
    from TTS.tts.utils.text.cleaners import english_cleaners

    entry = '00001740 29 v 01 rest 0 000 | do nothing; "the cattle %s on the hill"; "see § 3"\n'
    words = "graze sleep wander doze stand lie rest browse linger drowse".split()
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("".join(entry % word for word in words), encoding="utf-8")
    spoken, texts = make_sentences.make_sentences(tmp_path, examples=5, repeats=1, single=3)
    held_out = [text for name, text in spoken.items() if name.startswith("held_")]
    rest = [text for name, text in spoken.items() if not name.startswith("held_")]
    assert list(spoken)[:100] == [f"held_{number:04d}" for number in range(1, 101)] and len(held_out) == 100
    assert not set(held_out) & set(rest) and not set(held_out) & set(texts) and set(rest) <= set(texts)
    assert sum("the cattle" in text for text in rest) == 5 and sum("the cattle" in text for text in texts) == 10
    assert all(english_cleaners(text) == text and not re.search(r"[\d|§]", text) for text in spoken.values())


def test_examples_with_new_words_are_chosen(make_sentences):
    examples = ["A cat sat.", "A cat sat there.", "The dog ran away.", "The dog ran away."]
    assert set(make_sentences.choose_examples(examples, 2, Counter())) == {"A cat sat.", "The dog ran away."}


def a_corpus(folder, count: int = 10):
    """Tones for a teacher's speech, each 0.8 s."""
    (folder / "wavs").mkdir(parents=True)
    (folder / "teacher").mkdir()
    for index in range(count):
        name = f"{'held' if index < 2 else 'heart'}_{index:04d}"
        text, phonemes = PAIRS[index % len(PAIRS)]
        tone = 0.2 * np.sin(2 * np.pi * 150 * np.arange(int(0.8 * RATE)) / RATE)
        soundfile.write(folder / "wavs" / f"{name}.wav", tone, RATE, subtype="PCM_16")
        notes = {"text": text, "phonemes": phonemes, "durations": [2, *[1] * len(phonemes), 2], "lead": 0.05}
        (folder / "teacher" / f"{name}.json").write_text(json.dumps(notes), encoding="utf-8")
    (folder / "phonemes.tsv").write_text("".join(f"{text}\t{phonemes}\n" for text, phonemes in PAIRS * 20))
    return folder


@pytest.mark.slow
def test_from_corpus_to_model(prepare, monkeypatch, tmp_path):
    """What is exported is loaded by coqui-tts, and the training saw the durations of each file."""
    pytest.importorskip("pyworld")
    corpus = a_corpus(tmp_path / "corpus")
    assert len(prepare.prepare(corpus)) == 10
    trainer = scripts.load(HEART / "fast_pitch" / "train_fast_pitch.py", monkeypatch)
    batches = []
    format_batch = trainer.SpellingForwardTTS.format_batch

    def remember(self, batch):
        batches.append(format_batch(self, batch))
        return batches[-1]

    monkeypatch.setattr(trainer.SpellingForwardTTS, "format_batch", remember)
    threads = torch.get_num_threads()
    arguments = ["--corpus", corpus, "--out", tmp_path / "runs", "--spelling_steps", 2, "--steps", 2]
    try:
        run = trainer.train(trainer.parse_args([str(argument) for argument in arguments]))
    finally:
        torch.set_num_threads(threads)
    durations = json.loads((corpus / "durations.json").read_text())
    for batch in batches:
        for name, row, frames in zip(
            batch["audio_unique_names"], batch["durations"], batch["mel_lengths"], strict=True
        ):
            assert row.sum() == frames and row[row > 0].int().tolist() == durations[name]
    export = scripts.load(HEART / "export.py", monkeypatch)
    weights = export.export(run / "checkpoint_4.pth", tmp_path / "exported")
    state = torch.load(weights, weights_only=True)["model"]
    assert all(tensor.dtype != torch.float32 for tensor in state.values()) and not any("pronounce" in n for n in state)
    assert str(tmp_path) not in (tmp_path / "exported" / "config.json").read_text()

    from TTS.api import TTS

    api = TTS(model_path=weights, config_path=weights.with_name("config.json"), vocoder_name="apnet2")
    assert np.isfinite(api.tts("the hat is here.")).all()


@pytest.fixture
def make_pairs(prepare, monkeypatch, tmp_path):
    """Writes the pairs of one file; its acoustic model is the module `voice`, which is silent."""
    pytest.importorskip("pyworld")
    corpus = a_corpus(tmp_path / "corpus", count=3)
    prepare.prepare(corpus)
    trainer = scripts.load(HEART / "apnet2" / "train_apnet2.py", monkeypatch)
    monkeypatch.setattr(trainer, "load_model", lambda path: tiny.model())
    monkeypatch.setattr(trainer, "predict", lambda *arguments: np.zeros((80, 69)))

    def make(voice):
        monkeypatch.setattr(trainer, "load_acoustic_model", lambda path: voice)
        return trainer.make_pairs(corpus, tmp_path, 1, "apnet2") / "mels"

    return make


def test_mels_of_another_acoustic_model_are_not_learned_from(make_pairs):
    voice = torch.nn.Linear(1, 1)
    mels = make_pairs(voice)
    assert sorted(path.name for path in mels.glob("*.npy")) == ["heart_0002.npy", "heart_0002_own.npy"]
    make_pairs(voice)
    torch.nn.init.constant_(voice.bias, 9.0)
    with pytest.raises(DataError, match="mels: has mels of another acoustic_model, see source.json in it; delete"):
        make_pairs(voice)


def test_a_mel_that_is_half_written_is_not_left(make_pairs, monkeypatch, tmp_path):
    def full_disk(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        with pytest.raises(OSError, match=r"\.npy: cannot be written \(No space left on device\)"):
            make_pairs(torch.nn.Linear(1, 1))
    assert not list(tmp_path.rglob("heart_*.npy"))
