"""Teacher forcing: what the models predict, that it lies beside the recordings, and that an extraction goes on."""

import functools
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.nn.functional as F
from acoustic_models import D_VECTORS, IDS, SPEAKERS, build
from lj_speech import RATE, TEXTS, make_ljspeech
from small_run import change_config
from TTS.tts.utils.text.phonemizers import espeak_wrapper

from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.errors import Apnet2Error, DataError, FinetuningError
from apnet2_tts_plugin.finetuning import extraction, teacher_forcing
from apnet2_tts_plugin.finetuning.teacher_forcing import (
    Sample,
    check_can_be_forced,
    force,
    load_acoustic_model,
    load_audio,
    load_utterance,
)
from apnet2_tts_plugin.network.spectra import LogMel
from apnet2_tts_plugin.pairing.convert import pair
from apnet2_tts_plugin.training.corpus import usable
from apnet2_tts_plugin.training.features import with_features

FLOOR = -80 * np.log(10) / 20  # of a normalised mel, -100 + 20 dB


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """From the name of a model to its folder, made at the first call."""
    return functools.cache(lambda name: build(name, tmp_path_factory.mktemp("acoustic") / name))


@pytest.fixture(scope="module")
def model(models):
    """From the name of a model to the model, loaded at the first call."""
    return functools.cache(lambda name: load_acoustic_model(models(name)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_ljspeech(tmp_path_factory.mktemp("corpus") / "LJSpeech-1.1")


def samples(corpus, speaker=None):
    return [Sample(corpus / "wavs" / f"LJ{i}.wav", text, speaker) for i, text in enumerate(TEXTS)]


def utterances(model, corpus, speaker=None):
    return [load_utterance(model, sample) for sample in samples(corpus, speaker)]


def extract(model, corpus, out, config=None, **settings) -> int:
    paired = pair(model, config or Apnet2Config())
    return extraction.extract(model, samples(corpus), corpus / "wavs", out, paired, **settings)


def extracted(out, rate, hop_length):
    return with_features(usable(find_audio(out / "wavs")), out / "wavs", out / "mels", 80, rate, hop_length)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@torch.inference_mode()
def call_tacotron(model, utterance):
    n_frames = len(utterance.mel)
    mel = F.pad(utterance.mel[None], (0, 0, 0, -n_frames % model.decoder.r)).clone()
    lengths = torch.tensor([len(utterance.tokens)]), torch.tensor([n_frames])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "double_decoder_consistency", model.coarse_decoder is not None)
        outputs = model(utterance.tokens[None], lengths[0], mel, lengths[1])
    assert (outputs["decoder_outputs_backward"] is None) == (model.coarse_decoder is None)
    return outputs["model_outputs"][0, :n_frames]


@torch.inference_mode()
def call_glow_tts(model, utterance):
    """What the model says by itself, with the durations that coqui finds in the recording."""
    n_frames = len(utterance.mel)
    mel = torch.cat([utterance.mel, utterance.mel[-1:]])[None, : n_frames + n_frames % 2]
    n_tokens = torch.tensor([len(utterance.tokens)])
    aligned = model.inference_with_MAS(utterance.tokens[None], n_tokens, mel, torch.tensor([mel.shape[1]]))
    durations = aligned["total_durations_log"].transpose(1, 2) - 1e-4  # they are rounded up
    forward = model.encoder.forward

    def encode(*args, **kwargs):
        mean, log_scale, _, mask = forward(*args, **kwargs)
        return mean, log_scale, durations, mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.encoder, "forward", encode)
        spoken = model.inference(utterance.tokens[None], {"x_lengths": n_tokens})["model_outputs"]
    assert spoken.shape == mel.shape
    return spoken[0, :n_frames]


@torch.inference_mode()
def call_speedy_speech(model, utterance):
    lengths = torch.tensor([len(utterance.tokens)]), torch.tensor([len(utterance.mel)])
    return model(utterance.tokens[None], *lengths, y=utterance.mel[None])["model_outputs"][0]


@pytest.mark.parametrize(
    ("name", "call", "n_channels"),
    [
        ("glow_tts", call_glow_tts, 80),
        ("speedy_speech", call_speedy_speech, 80),
        ("tacotron", call_tacotron, 513),
        ("tacotron2_ddc", call_tacotron, 80),
    ],
)
def test_outputs_are_the_models_own(name, call, n_channels, model, corpus):
    acoustic = model(name)
    items = utterances(acoustic, corpus)[1:3]  # of even and odd length
    acoustic.train()  # what `force` must undo, or dropout would be at work
    outputs = [force(acoustic, [item])[0] for item in items]
    for item, output in zip(items, outputs, strict=True):
        assert output.shape == (len(item.waveform) // 256 + 1, n_channels) and output.device.type == "cpu"
        torch.testing.assert_close(output, call(acoustic, item), atol=1e-4, rtol=1e-4)
    limit = 1e-5 if name == "glow_tts" else 0.1  # the others' padding leaks into what is left of it
    for alone, together in zip(outputs, force(acoustic, items), strict=True):
        assert alone.shape == together.shape and (alone - together).abs().mean() < limit


def test_noise_of_use_is_in_the_mels(model, corpus, monkeypatch):
    glow_tts = model("glow_tts")
    item = utterances(glow_tts, corpus)[0]
    (quiet,) = force(glow_tts, [item])
    monkeypatch.setattr(glow_tts, "inference_noise_scale", 0.5)
    (first,), (second,) = force(glow_tts, [item]), force(glow_tts, [item])
    assert (first - quiet).std() > 0.01 and (first - second).std() > 0.01


@pytest.mark.parametrize("kind", [IDS, D_VECTORS])
def test_speakers(kind, corpus, tmp_path):
    acoustic = load_acoustic_model(build("glow_tts", tmp_path / "glow", speakers=kind))
    first, second = (utterances(acoustic, corpus, speaker) for speaker in SPEAKERS)
    together = force(acoustic, [first[0], second[0], first[1]])
    assert (together[0] - together[1]).abs().max() > 1e-3
    for item, output in zip([first[0], second[0], first[1]], together, strict=True):
        torch.testing.assert_close(output, force(acoustic, [item])[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(FinetuningError, match="glow_tts: nobody is not a valid speaker"):
        force(acoustic, utterances(acoustic, corpus, "nobody"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("fast_pitch", "it wants the recording's pitch and energy"), ("vits", "how to force it is not known")],
)
def test_other_models_are_refused(name, reason, models):
    with pytest.raises(FinetuningError, match=f"^{name}: {reason}.*; expected tacotron, tacotron2, glow_tts"):
        load_acoustic_model(models(name))


def test_a_model_without_an_aligner_is_refused(model, monkeypatch):
    monkeypatch.setattr(model("speedy_speech"), "use_aligner", False)
    with pytest.raises(FinetuningError, match="it has no aligner"):
        check_can_be_forced(model("speedy_speech"))


SOUNDS = [
    dict(do_trim_silence=False),
    dict(do_trim_silence=True, trim_db=40),
    dict(do_trim_silence=True, do_sound_norm=True),
    dict(do_trim_silence=False, do_rms_norm=True, db_level=-10),
]


@pytest.mark.parametrize("settings", SOUNDS)
def test_recordings_sound_as_coqui_loads_them(settings, model, corpus, monkeypatch):
    ap = model("glow_tts").ap
    for name, value in settings.items():
        monkeypatch.setattr(ap, name, value)
    path = corpus / "wavs" / "LJ1.wav"
    waveform = load_audio(path, ap)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, ap.load_wav(path), atol=1e-6)
    assert (len(waveform) < sf.info(path).frames) == settings["do_trim_silence"]


def test_stereo_and_other_rates_are_heard_right(model, tmp_path):
    """What `ap.load_wav` gets wrong."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    sf.write(tmp_path / "a.wav", np.stack([tone, tone / 2], axis=1), 44100, subtype="FLOAT")
    waveform = load_audio(tmp_path / "a.wav", model("glow_tts").ap)
    expected = 0.75 * 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert waveform.shape == (RATE,)
    np.testing.assert_allclose(waveform[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("value", "n_samples", "settings", "message"),
    [
        *[(0, n_samples, {}, "nothing but silence") for n_samples in (0, 300, 30000)],
        (1e-30, 3000, SOUNDS[3], "NaN or infinite samples when made as loud"),
    ],
)
def test_silence_is_refused(value, n_samples, settings, message, model, tmp_path, monkeypatch):
    ap = model("glow_tts").ap
    for name, setting in settings.items():
        monkeypatch.setattr(ap, name, setting)
    sf.write(tmp_path / "a.wav", np.full(n_samples, value, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=rf"a\.wav: {message}"):
        load_audio(tmp_path / "a.wav", ap)


ANALYSES = {
    "the vocoder's": dict(mel_fmax=8000.0),
    "16 kHz": dict(sample_rate=16000, hop_length=200, win_length=800, mel_fmax=7600.0),
    "24 kHz": dict(sample_rate=24000, hop_length=300, win_length=1200, fft_size=2048),
    "44.1 kHz": dict(sample_rate=44100, hop_length=512, win_length=2048, fft_size=2048),
}


@pytest.fixture
def truthful(tmp_path, monkeypatch):
    """Makes an acoustic model with these audio settings that predicts each recording's own mel."""
    monkeypatch.setattr(teacher_forcing, "_predict", lambda model, batch: batch.mels)
    return lambda **audio: load_acoustic_model(build("glow_tts", tmp_path / "truthful", **audio))


@pytest.mark.parametrize("settings", SOUNDS)
@pytest.mark.parametrize("analysis", ANALYSES)
def test_mels_lie_beside_the_written_recordings(analysis, settings, truthful, corpus, tmp_path):
    acoustic = truthful(**ANALYSES[analysis], **settings)
    assert extract(acoustic, corpus, tmp_path / "out", batch_size=3) == 0
    files = extracted(tmp_path / "out", RATE, 256)
    assert [file.path.name for file in files] == [f"LJ{i}.wav" for i in range(len(TEXTS))]
    log_mel = LogMel.from_audio_config(Apnet2AudioConfig())
    for file in files:
        waveform = sf.read(file.path, dtype="float32")[0]
        mel = np.load(file.features)
        assert mel.dtype == np.float32 and mel.shape == (80, len(waveform) // 256 + 1)
        expected = np.maximum(log_mel(torch.from_numpy(waveform)[None])[0].numpy(), FLOOR)
        if analysis == "the vocoder's":
            np.testing.assert_allclose(mel, expected, atol=2e-3)
        else:  # bands and window are others, and converted approximately
            errors = [np.abs(np.roll(mel, shift, axis=1) - expected)[:, 2:-2].mean() for shift in (-1, 0, 1)]
            assert errors[1] < 0.35 and errors[1] < min(errors[0], errors[2]) / 1.3


@pytest.mark.parametrize("rate", [16000, 44100])
def test_another_vocoders_rate(rate, truthful, corpus, tmp_path):
    config = Apnet2Config(audio=Apnet2AudioConfig(sample_rate=rate, hop_length=200), seq_len=8000)
    acoustic = truthful(mel_fmax=8000.0)
    extract(acoustic, corpus, tmp_path / "out", config)
    for file in extracted(tmp_path / "out", rate, 200):
        waveform = load_audio(corpus / "wavs" / file.path.name, acoustic.ap)
        assert abs(file.n_samples / rate - len(waveform) / RATE) < 0.013  # a frame of each
        assert np.load(file.features).shape == (80, file.n_samples // 200 + 1)


def test_an_interrupted_extraction_goes_on(model, corpus, tmp_path, monkeypatch):
    glow_tts, out, seen = model("glow_tts"), tmp_path / "out", []

    def forced(model, batch):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(batch))
        return force(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "force", forced)
        with pytest.raises(KeyboardInterrupt):
            extract(glow_tts, corpus, out, batch_size=1)
    assert names(out / "mels") == ["LJ0.npy", "LJ2.npy"]  # the shortest texts first
    (out / "mels" / "LJ2.npy").unlink()  # as if it had been killed before
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    assert extract(glow_tts, corpus, out, batch_size=2) == 0
    assert names(out / "wavs") == [f"LJ{i}.wav" for i in range(4)]
    assert names(out / "mels") == [f"LJ{i}.npy" for i in range(4)]
    same = {path.name for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert same == {"LJ0.wav", "LJ0.npy"}
    monkeypatch.setattr(extraction, "force", None)  # there is nothing to do any more
    assert extract(glow_tts, corpus, out) == 0


def test_bad_samples_are_named_and_left_out(model, corpus, tmp_path, caplog):
    glow_tts, wavs, out = model("glow_tts"), tmp_path / "wavs", tmp_path / "out"
    shutil.copytree(corpus / "wavs", wavs)
    (wavs / "LJ1.wav").write_bytes(b"no sound")
    texts = {"LJ0": "fine", "LJ1": "damaged", "LJ2": "12345", "LJ3": "much too long " * 20, "LJ4": "missing"}
    bad = [Sample(wavs / f"{name}.wav", text) for name, text in texts.items()]
    for stale in (out / "wavs" / "LJ1.wav", out / "mels" / "LJ1.npy"):  # of the recording as it was before
        stale.parent.mkdir(parents=True)
        stale.touch()
        os.utime(stale, (0, 0))
    assert extraction.extract(glow_tts, bad, wavs, out, pair(glow_tts, Apnet2Config())) == 4
    assert names(out / "wavs") == ["LJ0.wav"] and names(out / "mels") == ["LJ0.npy"]
    for name, reason in {
        "LJ1": "cannot be read at sample 0 (",
        "LJ2": "the acoustic model knows none of the letters of '12345'",
        "LJ3": "106 frames, expected at least one for each of 279 tokens",
        "LJ4": "cannot be read",
    }.items():
        assert f"Left out {wavs / name}.wav: {reason}" in caplog.text
    assert caplog.messages[-1] == "Left out 4 of 5 audio files"


def test_what_is_not_finite_is_left_out(model, corpus, tmp_path, caplog, monkeypatch):
    def broken(model, batch):
        first, *others = force(model, batch)
        return [first * torch.nan, *others]

    monkeypatch.setattr(extraction, "force", broken)
    assert extract(model("glow_tts"), corpus, tmp_path / "out") == 1
    assert "LJ2.wav: glow_tts gave NaN or infinite values" in caplog.text  # the shortest text comes first
    assert names(tmp_path / "out" / "wavs") == ["LJ0.wav", "LJ1.wav", "LJ3.wav"]


def test_files_that_cannot_be_written_end_it_in_one_line(model, corpus, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r"LJ2\.wav: cannot be written \(.*Not a directory") as caught:
        extract(model("glow_tts"), corpus, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_model_data_and_vocoder_are_in_the_note_of_mels(models, corpus, tmp_path):
    folder = shutil.copytree(models("glow_tts"), tmp_path / "glow")
    given = (folder / "model_file.pth", samples(corpus), corpus, Apnet2Config())
    noted = extraction.mel_source(*given)
    assert json.loads(json.dumps(noted)) == noted

    def changed(checkpoint=given[0], spoken=given[1], data_path=corpus, config=given[3]):
        source = extraction.mel_source(checkpoint, spoken, data_path, config)
        return {name for name in source if source[name] != noted[name]}

    assert changed() == set()
    assert changed(spoken=[replace(sample, text=f"{sample.text}!") for sample in given[1]]) == {"metadata"}
    assert changed(config=Apnet2Config(audio=Apnet2AudioConfig(mel_fmax=7600.0))) == {"audio"}
    assert changed(spoken=samples(tmp_path), data_path=tmp_path) == {"data_path"}
    os.utime(given[0], (0, 0))
    assert changed() == {"checkpoint"}
    change_config(folder, run_name="another")
    assert changed() == {"checkpoint", "config"}


PHONEMES = dict(use_phonemes=True, phoneme_language="en-us", phonemizer="espeak")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model_file.pth").unlink(), "expected model.safetensors, .*, found none"),
        (lambda folder: (folder / "config.json").unlink(), r"cannot be loaded \(.*No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), r"cannot be loaded \("),
        (lambda folder: (folder / "model_file.pth").write_bytes(b"no weights"), r"cannot be loaded \("),
        (lambda folder: change_config(folder, hidden_channels_enc=48), r"cannot be loaded \(.*size mismatch"),
        (
            lambda folder: change_config(folder, **PHONEMES),
            r"cannot be loaded \(\[!\] No espeak backend found. Install espeak-ng",
        ),
        (shutil.rmtree, "no such file or folder, expected weights"),
    ],
)
def test_models_that_cannot_be_loaded(spoil, message, models, tmp_path, monkeypatch):
    monkeypatch.setattr(espeak_wrapper, "_DEF_ESPEAK_LIB", None)
    folder = shutil.copytree(models("glow_tts"), tmp_path / "glow")
    spoil(folder)
    with pytest.raises(Apnet2Error, match=message) as caught:
        load_acoustic_model(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
