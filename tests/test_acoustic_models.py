"""All acoustic models of coqui-tts speak with our vocoder, through its own Synthesizer, in all kinds of settings.

What reaches the generator is compared with a computation of its own, in numpy, scipy and librosa.
"""

import functools
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import acoustic_models
import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
import tiny
import torch
from acoustic_models import (
    ANALYSES,
    AXES,
    EXACT,
    LINEAR,
    LOGARITHMS,
    MODELS,
    NORMALISATIONS,
    PREEMPHASES,
    SPEAKERS,
    STATISTICS,
    VOCODER_RATES,
    is_possible,
    spectrogram_cases,
    waveform_cases,
)
from TTS.utils.synthesizer import Synthesizer

from apnet2_tts_plugin.audio import at_rate
from apnet2_tts_plugin.config import Apnet2AudioConfig

TEXT = "say it again to me"
SILENCE = 10000  # samples that coqui appends to each sentence
FLOOR = np.log(1e-5)
VOCODERS = {
    22050: {},
    16000: dict(sample_rate=16000, hop_length=200, win_length=800),
    44100: dict(sample_rate=44100, fft_size=2048, hop_length=512, win_length=2048, mel_fmax=16000.0, num_mels=100),
}
SCALES = {"log10": (-40.0, 8.0), "ln": (-5.0, 1.2), "no logarithm": (1.0, 0.2)}  # mean and standard deviation of a mel


def name_of(case: dict) -> str:
    return ", ".join(str(value) for value in case.values() if value)


@pytest.fixture(scope="module")
def vocoders(tmp_path_factory) -> dict[int, Path]:
    """Folders of tiny vocoders by their sample rates."""
    folders = {}
    for sample_rate, audio in VOCODERS.items():
        config = Apnet2AudioConfig(**audio)
        model = tiny.model(audio=config, seq_len=32 * config.hop_length)
        folder = tmp_path_factory.mktemp("vocoder") / str(sample_rate)
        folders[sample_rate] = acoustic_models.save(model, model.config, folder)
    return folders


@pytest.fixture(scope="module")
def with_defaults(tmp_path_factory, vocoders):
    """Gives the Synthesizer of a model with coqui's settings, one speaker and our usual vocoder; the same each time."""

    @functools.cache
    def get(name: str) -> Synthesizer:
        folder = acoustic_models.build(name, tmp_path_factory.mktemp("defaults") / name)
        return synthesizer_of(folder, vocoders[22050])

    return get


def synthesizer_of(model: Path, vocoder: Path) -> Synthesizer:
    return Synthesizer(
        tts_checkpoint=model / "model_file.pth",
        tts_config_path=model / "config.json",
        vocoder_checkpoint=vocoder / "model_file.pth",
        vocoder_config=vocoder / "config.json",
    )


@dataclass
class Spoken:
    """`TEXT`, spoken: the acoustic model's output, the mel that the vocoder got, the waveform without the silence."""

    output: np.ndarray
    mel: np.ndarray
    wav: np.ndarray


def speak(synthesizer: Synthesizer, speakers: str | None = None) -> Spoken:
    outputs, mels = [], []
    model, vocoder = synthesizer.tts_model, synthesizer.vocoder_model
    model_inference, vocoder_inference = model.inference, vocoder.inference

    def record_output(*args, **kwargs):
        result = model_inference(*args, **kwargs)
        outputs.append(result["model_outputs"])
        return result

    def record_mel(mel, *args, **kwargs):
        mels.append(mel)
        return vocoder_inference(mel, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "inference", record_output)
        patch.setattr(vocoder, "inference", record_mel)
        wav = np.array(synthesizer.tts(TEXT, speaker_name=SPEAKERS[0] if speakers else None))
    (output,), (mel,) = outputs, mels
    assert mel.dtype == torch.float32 and mel.shape[0] == 1
    assert not wav[-SILENCE:].any()
    return Spoken(output[0].double().numpy(), mel[0].double().numpy(), wav[:-SILENCE])


def audio_settings(folder: Path) -> dict:
    """Audio settings of a model's config, its lengths in samples."""
    audio = json.loads((folder / "config.json").read_text())["audio"]
    if audio["hop_length"] is None:
        audio["win_length"] = audio["frame_length_ms"] * audio["sample_rate"] // 1000
        audio["hop_length"] = audio["win_length"] * audio["frame_shift_ms"] // audio["frame_length_ms"]
    return audio


def write_statistics(path: Path, logarithm: str, n_mels: int) -> None:
    """A file of means and standard deviations of each band, as coqui's `compute_statistics` writes it."""
    mean, deviation = SCALES[logarithm]
    statistics = {"audio_config": {"num_mels": n_mels}}
    for name in ("mel", "linear"):
        statistics[f"{name}_mean"] = mean * np.linspace(0.9, 1.1, n_mels)
        statistics[f"{name}_std"] = deviation * np.linspace(0.8, 1.2, n_mels)
    np.save(path, statistics)


def natural_log(spectrogram: np.ndarray, audio: dict, is_linear: bool) -> np.ndarray:
    """coqui's scaling undone: (n, T), natural logarithm of the magnitude."""
    scaled = spectrogram
    least, top = audio["min_level_db"], audio["max_norm"]
    if audio["signal_norm"] and audio["stats_path"]:
        statistics = np.load(audio["stats_path"], allow_pickle=True).item()
        scaled = spectrogram * statistics["mel_std"][:, None] + statistics["mel_mean"][:, None]
    elif audio["signal_norm"]:
        bottom = -top if audio["symmetric_norm"] else 0
        if audio["clip_norm"]:
            scaled = spectrogram.clip(bottom, top)
        scaled = (scaled - bottom) / (top - bottom) * -least + least + audio["ref_level_db"]
    if not audio["do_amp_to_db_linear" if is_linear else "do_amp_to_db_mel"]:
        return np.log(scaled.clip(1e-5))
    base = {"np.log": np.e, "np.log10": 10}[audio["log_func"]]
    return (scaled * np.log(base) / audio["spec_gain"]).clip(FLOOR)


def filters(audio: dict) -> np.ndarray:
    """Mel filters (n_mels, n_bins)."""
    return librosa.filters.mel(
        sr=audio["sample_rate"],
        n_fft=audio["fft_size"],
        n_mels=audio["num_mels"],
        fmin=audio["mel_fmin"],
        fmax=audio["mel_fmax"],
        dtype=np.float64,
    )


def window_energy(audio: dict) -> float:
    """Mean squared magnitude of an analysis of white noise of power density 1 in a hertz."""
    return audio["sample_rate"] * np.square(scipy.signal.get_window("hann", audio["win_length"])).sum()


def expected_mel(output: np.ndarray, theirs: dict, ours: dict, is_linear: bool) -> np.ndarray:
    """Our mel (n_mels, T') of an acoustic model's output (T, n), in double precision.

    Other bands than ours are estimated as least squares have it, and interpolated linearly. That those estimates are
    near the truth is tested with recordings, in `tests/test_pairing.py`; here it is that all settings have arrived.
    """
    log_mel = natural_log(output.T, theirs, is_linear)
    same = ("sample_rate", "fft_size", "win_length", "num_mels", "mel_fmin", "mel_fmax")
    if is_linear or theirs["preemphasis"] or any(theirs[key] != ours[key] for key in same):
        magnitude = np.exp(log_mel)
        if not is_linear:
            magnitude = np.linalg.lstsq(filters(theirs), magnitude, rcond=None)[0].clip(0)
        at_theirs, at_ours = (librosa.fft_frequencies(sr=a["sample_rate"], n_fft=a["fft_size"]) for a in (theirs, ours))
        preemphasis = scipy.signal.freqz([1, -theirs["preemphasis"]], worN=at_theirs, fs=theirs["sample_rate"])[1]
        magnitude *= np.sqrt(window_energy(ours) / window_energy(theirs)) / np.abs(preemphasis)[:, None]
        interpolated = [np.interp(at_ours, at_theirs, frame, right=0) for frame in magnitude.T]
        log_mel = np.log((filters(ours) @ np.transpose(interpolated)).clip(1e-5))
    ratio = frame_rate(ours) / frame_rate(theirs)
    frames = log_mel.shape[1]
    position = np.arange(round((frames - 1) * ratio) + 1) / ratio
    return np.stack([np.interp(position, np.arange(frames), band) for band in log_mel])


def frame_rate(audio: dict) -> float:
    return audio["sample_rate"] / audio["hop_length"]


def check_speech(case: dict, synthesizer: Synthesizer, spoken: Spoken, seconds: float, path: Path) -> None:
    """The length follows from the mel and is `seconds`, `save_wav` writes all of it, and speakers differ."""
    wav, rate, hop_length = spoken.wav, case["vocoder_rate"], synthesizer.vocoder_config.audio.hop_length
    assert len(wav) == (spoken.mel.shape[1] - 1) * hop_length
    assert abs(len(wav) / rate - seconds) <= hop_length / rate
    synthesizer.save_wav(wav, path)
    info = soundfile.info(path)
    assert (info.samplerate, info.frames) == (rate, len(wav))
    if case["speakers"]:
        other = synthesizer.tts_model.synthesize(TEXT, speaker=SPEAKERS[1])["outputs"]["model_outputs"][0]
        assert np.abs(other.numpy() - spoken.output).max() > 1e-3


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("case", spectrogram_cases(), ids=name_of)
def test_spectrogram(case, vocoders, tmp_path):
    model = MODELS[case["model"]]
    settings = ANALYSES[case["analysis"]] | LOGARITHMS[case["logarithm"]] | PREEMPHASES[case["preemphasis"]]
    settings |= NORMALISATIONS[case["normalisation"]]
    if case["normalisation"] == STATISTICS:
        settings["stats_path"] = str(tmp_path / "statistics.npy")
        write_statistics(tmp_path / "statistics.npy", case["logarithm"], settings.get("num_mels", 80))
    folder = acoustic_models.build(case["model"], tmp_path / "model", case["speakers"], **settings)
    synthesizer = synthesizer_of(folder, vocoders[case["vocoder_rate"]])
    theirs, ours = audio_settings(folder), audio_settings(vocoders[case["vocoder_rate"]])
    is_linear = model.output == LINEAR

    spoken = speak(synthesizer, case["speakers"])
    assert len(spoken.output) == model.frames(len(TEXT))
    expected = expected_mel(spoken.output, theirs, ours, is_linear)
    assert spoken.mel.shape == expected.shape
    assert (expected > FLOOR).mean() > 0.2
    assert np.abs(spoken.mel - expected).max() < 1e-4
    check_speech(case, synthesizer, spoken, (len(spoken.output) - 1) / frame_rate(theirs), tmp_path / "out.wav")


def test_spectrogram_cases_have_each_two_values():
    """And all scales beside bands like ours, where they are undone exactly."""
    cases = spectrogram_cases()
    scales = {(case["logarithm"], case["normalisation"]) for case in cases if EXACT.items() <= case.items()}
    assert len(scales) == len(LOGARITHMS) * len(NORMALISATIONS)
    usual = {"model": "glow_tts", "speakers": None, "normalisation": "symmetric"}
    for (name, values), (other, others) in itertools.combinations(AXES.items(), 2):
        pairs = [{name: first, other: second} for first in values for second in others]
        assert all(any(pair.items() <= case.items() for case in cases) for pair in pairs if is_possible(usual | pair))
    assert all(is_possible(case) for case in cases)
    assert list(VOCODERS) == list(VOCODER_RATES)


@pytest.mark.parametrize("case", waveform_cases(), ids=name_of)
def test_waveform(case, vocoders, tmp_path):
    """A finished waveform is analysed as a recording would be, at the vocoder's sample rate."""
    settings = dict(sample_rate=case["sample_rate"], mel_fmax=None)
    folder = acoustic_models.build(case["model"], tmp_path / "model", case["speakers"], **settings)
    synthesizer = synthesizer_of(folder, vocoders[case["vocoder_rate"]])
    ours = audio_settings(vocoders[case["vocoder_rate"]])

    spoken = speak(synthesizer, case["speakers"])
    samples = MODELS[case["model"]].frames(len(TEXT)) * acoustic_models.HOP
    assert spoken.output.size == samples
    waveform = np.asarray(spoken.output, dtype=np.float32).reshape(-1)
    waveform = at_rate(waveform, case["sample_rate"], case["vocoder_rate"])
    lengths = dict(n_fft=ours["fft_size"], hop_length=ours["hop_length"], win_length=ours["win_length"])
    magnitude = np.abs(librosa.stft(waveform, pad_mode="reflect", **lengths))
    expected = np.log((filters(ours) @ magnitude).clip(1e-5))
    assert np.abs(spoken.mel - expected).max() < 5e-3  # ours has 1e-9 under the root
    check_speech(case, synthesizer, spoken, samples / case["sample_rate"], tmp_path / "out.wav")


@pytest.mark.parametrize("name", MODELS)
def test_sentences_do_not_depend_on_each_other(name, with_defaults):
    synthesizer = with_defaults(name)
    first, second = "this is the first one.", "and here is another."
    alone = np.concatenate([synthesizer.tts(first), synthesizer.tts(second)])
    assert np.abs(alone[:-SILENCE]).max() > 0
    assert np.array_equal(synthesizer.tts(f"{first} {second}"), alone)


@pytest.mark.parametrize("name", MODELS)
def test_shortest_sentence(name, with_defaults):
    """What coqui can speak at all, our vocoder makes sound of."""
    wav = with_defaults(name).tts("abcdefghijklm"[: MODELS[name].shortest])
    assert len(wav) > SILENCE and np.isfinite(wav).all()


def test_model_name_in_capitals(vocoders, tmp_path):
    """coqui takes it in any case, and old configs have "Tacotron" and "Tacotron2"."""
    folder = acoustic_models.build("tacotron", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model": "Tacotron"}))
    assert speak(synthesizer_of(folder, vocoders[22050])).output.shape[1] == 513


def test_table_of_the_document():
    text = (Path(__file__).parent.parent / "docs" / "acoustic_models.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- table -->\n\n(.*)\n\n<!-- /table -->", text, re.DOTALL) == [acoustic_models.table()]
