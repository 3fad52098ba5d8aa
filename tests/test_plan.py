"""The plan of a pairing, its words and its expected errors."""

import importlib
import logging
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor
from TTS.vc.configs.freevc_config import FreeVCConfig
from TTS.vc.configs.knnvc_config import KNNVCConfig

from apnet2_tts_plugin import loader
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.pairing import report
from apnet2_tts_plugin.pairing.convert import Pairing, analyse, pair_configs
from apnet2_tts_plugin.pairing.error import errors_db, mean_error_db, reference_signal
from apnet2_tts_plugin.pairing.plan import LINEAR, MEL, WAVEFORM, Plan, Verdict, check_output, known_range, make_plan

SAME = dict(mel_fmax=8000.0, log_func="np.log", spec_gain=1, signal_norm=False)
CLIPPED = dict(signal_norm=True, log_func="np.log10", spec_gain=20)  # and coqui's default range
VOCODER = Apnet2Config()


def sides(model: str = "glow_tts", **settings) -> tuple:
    """Acoustic model, its audio processor and the vocoder; equal settings but for those given."""
    audio = BaseAudioConfig(**{**SAME, **settings})
    return SimpleNamespace(model=model, audio=audio), AudioProcessor(audio), VOCODER


def plan(model: str = "glow_tts", **settings) -> Plan:
    return make_plan(*sides(model, **settings))


def pair(model: str = "glow_tts", **settings) -> Pairing:
    return pair_configs(*sides(model, **settings))


@pytest.mark.parametrize(
    ("settings", "verdict", "names"),
    [
        ({}, Verdict.SAME, None),
        (dict(hop_length=None, frame_shift_ms=256 / 22.05, frame_length_ms=1024 / 22.05), Verdict.SAME, None),
        (dict(log_func="np.log10"), Verdict.EXACT, ["log_func"]),
        (dict(spec_gain=20), Verdict.EXACT, ["spec_gain"]),
        (dict(signal_norm=True), Verdict.EXACT, ["signal_norm"]),
        (dict(do_amp_to_db_mel=False), Verdict.EXACT, ["do_amp_to_db_mel"]),
        (dict(mel_fmax=None), Verdict.APPROXIMATE, ["mel_fmax"]),
        (dict(mel_fmin=50.0, mel_fmax=7600.0), Verdict.APPROXIMATE, ["mel_fmin", "mel_fmax"]),
        (dict(num_mels=100), Verdict.APPROXIMATE, ["num_mels"]),
        (dict(hop_length=200), Verdict.APPROXIMATE, ["hop_length"]),
        (dict(win_length=800), Verdict.APPROXIMATE, ["win_length"]),
        (dict(fft_size=2048), Verdict.APPROXIMATE, ["fft_size"]),
        (dict(preemphasis=0.97), Verdict.APPROXIMATE, ["preemphasis"]),
        (dict(stft_pad_mode="constant"), Verdict.APPROXIMATE, ["stft_pad_mode"]),
        (dict(sample_rate=44100, fft_size=2048, win_length=2048, hop_length=512), Verdict.APPROXIMATE, ["sample_rate"]),
        (dict(preemphasis=1.0), Verdict.IMPOSSIBLE, ["preemphasis"]),
        (dict(preemphasis=1.0, log_func="np.log2"), Verdict.IMPOSSIBLE, ["preemphasis", "log_func"]),
    ],
)
def test_verdicts(settings, verdict, names):
    made = plan(**settings)
    assert (made.output, made.verdict) == (MEL, verdict)
    assert names in (None, [item.name for item in made.with_verdict(verdict)])
    assert all(bool(item.remark) == (item.verdict > Verdict.SAME) for item in made.items)


def test_all_that_is_impossible_is_refused_with_its_reason():
    reasons = "preemphasis is 1, expected 0 .*; log_func is unknown"
    with pytest.raises(PairingError, match=f"glow_tts cannot be followed by this vocoder: {reasons}"):
        pair(preemphasis=1.0, log_func="np.log2")


def test_bands_that_end_below_ours_are_told():
    remarks = {item.name: item.remark for item in plan(sample_rate=16000, mel_fmax=7600.0).items}
    assert "nothing above 7600 Hz will sound" in remarks["mel_fmax"]


def test_cut_peaks_of_a_linear_spectrogram_are_told():
    """coqui's default range ends at 20 dB, below the peaks of loud speech, but above those of its mel."""
    made = plan("tacotron", **CLIPPED)
    assert [item.name for item in made.with_verdict(Verdict.APPROXIMATE)] == ["signal_norm"]
    assert plan("tacotron", **CLIPPED, clip_norm=False).verdict == Verdict.EXACT
    assert plan("tacotron", **CLIPPED, ref_level_db=40).verdict == Verdict.APPROXIMATE  # starts at -60
    assert plan("tacotron", **CLIPPED, ref_level_db=40, min_level_db=-120).verdict == Verdict.EXACT
    assert plan("glow_tts", **CLIPPED).verdict == Verdict.EXACT


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, (-80, 20)),
        (dict(spec_gain=10), (-160, 40)),
        (dict(log_func="np.log"), (-80 * 0.4343, 20 * 0.4343)),
        (dict(do_amp_to_db_mel=False), (-100, 26.02)),
        (dict(min_level_db=-60), (-40, 20)),
    ],
)
def test_range_of_a_clipped_mel_is_in_decibels(settings, ends):
    """Exact only if all speech is in it; otherwise the error is that of what was cut."""
    paired = pair(**CLIPPED | settings)
    assert known_range(paired.ap, MEL) == pytest.approx(ends, abs=0.01)
    is_wide = ends[0] <= -80 and ends[1] >= 20
    assert paired.plan.verdict == (Verdict.EXACT if is_wide else Verdict.APPROXIMATE)
    if not is_wide:
        assert errors_db(paired) == {"signal_norm": pytest.approx(mean_error_db(paired))}
        assert mean_error_db(paired) > 1


@pytest.mark.parametrize(
    ("model", "size", "value", "reason"),
    [
        ("glow_tts", 40, 1.0, "each of 80 bands"),
        ("glow_tts", 80, float("nan"), "each of 80 bands"),
        ("tacotron", 513, 1.0, "cannot undo"),
    ],
)
def test_statistics_that_cannot_be_undone_are_refused(model, size, value, reason):
    acoustic, ap, vocoder = sides(model)
    ap.signal_norm, ap.stats_path = True, "stats.npy"
    ap.mel_scaler = SimpleNamespace(mean_=np.zeros(size), scale_=np.full(size, value))
    with pytest.raises(PairingError, match=f"stats_path is stats.npy.*{reason}"):
        pair_configs(acoustic, ap, vocoder)


def test_outputs():
    linear = plan("tacotron")
    assert (linear.output, linear.verdict) == (LINEAR, Verdict.EXACT)
    assert plan("vits").output == WAVEFORM
    assert make_plan(SimpleNamespace(model="own", audio={"sample_rate": 22050}), None, VOCODER).output == WAVEFORM
    freevc = make_plan(FreeVCConfig(), None, VOCODER)
    assert (freevc.output, freevc.verdict, freevc.items[0].acoustic) == (WAVEFORM, Verdict.APPROXIMATE, "24000")


@pytest.mark.parametrize(
    ("module", "name", "rate"),
    [
        ("tts.configs.vits_config", "VitsConfig", 22050),
        ("tts.configs.delightful_tts_config", "DelightfulTTSConfig", 22050),
        ("tts.configs.xtts_config", "XttsConfig", 24000),
        ("tts.configs.bark_config", "BarkConfig", 24000),
        ("tts.configs.tortoise_config", "TortoiseConfig", 24000),
        ("vc.configs.openvoice_config", "OpenVoiceConfig", 22050),
    ],
)
def test_models_of_waveforms(module, name, rate):
    config = getattr(importlib.import_module(f"TTS.{module}"), name)()
    paired = pair_configs(config, loader.audio_processor(config), VOCODER)
    assert (paired.plan.output, paired.sample_rate) == (WAVEFORM, rate)
    assert paired.plan.verdict == (Verdict.SAME if rate == 22050 else Verdict.APPROXIMATE)
    assert mean_error_db(paired) < 0.1


def test_features_are_refused():
    with pytest.raises(PairingError, match="knnvc cannot be followed by this vocoder: .*WavLM"):
        pair_configs(KNNVCConfig(), None, VOCODER)
    with pytest.raises(PairingError, match="knnvc gives WavLM features"):
        check_output("knnvc")
    check_output("freevc24")


@pytest.mark.parametrize(
    ("model", "settings", "least", "most"),
    [
        ("glow_tts", {}, 0, 1e-3),
        ("glow_tts", dict(log_func="np.log10", spec_gain=20), 0, 1e-3),
        ("glow_tts", dict(do_amp_to_db_mel=False), 0, 1e-3),
        ("glow_tts", CLIPPED, 0.3, 0.6),  # the quiet bands, which are cut at -80 dB
        ("tacotron", dict(do_amp_to_db_linear=False), 0, 1e-3),
        ("glow_tts", dict(preemphasis=0.97, stft_pad_mode="constant", win_length=800), 0.5, 2),
        ("tacotron", dict(preemphasis=0.97, stft_pad_mode="constant"), 0.05, 0.5),
        ("glow_tts", dict(stft_pad_mode="center"), 0, 1e-3),  # which coqui's configs name and its functions refuse
        ("glow_tts", dict(preemphasis=None), 0, 1e-3),
    ],
)
def test_mean_error(model, settings, least, most):
    assert least <= mean_error_db(pair(model, **settings)) < most


def test_mean_error_is_that_of_an_independent_computation():
    reference = reference_signal(22050)
    magnitude = np.abs(librosa.stft(reference, n_fft=1024, hop_length=256, win_length=1024, pad_mode="reflect"))
    full, ours = (librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=fmax) for fmax in (11025, 8000))
    estimate = ours @ np.maximum(np.linalg.pinv(full) @ (full @ magnitude), 0)
    error = np.abs(20 * np.log10(np.maximum(estimate, 1e-5) / np.maximum(ours @ magnitude, 1e-5))).mean()
    assert error > 0.5
    assert abs(mean_error_db(pair(mel_fmax=None)) - error) < 0.02


@pytest.mark.parametrize("model", ["glow_tts", "tacotron"])
def test_errors_single_out_a_setting(model):
    far = dict(sample_rate=11025, fft_size=512, hop_length=120, win_length=400, preemphasis=0.9, stft_pad_mode="edge")
    bands = dict(mel_fmin=40.0, mel_fmax=5000.0, num_mels=60)
    paired = pair(model, **far, **bands)
    errors = errors_db(paired)
    assert list(errors) == [item.name for item in paired.plan.with_verdict(Verdict.APPROXIMATE)]
    for name in {"preemphasis", "num_mels", "mel_fmin", "mel_fmax", "stft_pad_mode"} & set(errors):
        alone = pair(model, **{name: (far | bands)[name]})
        assert errors[name] == pytest.approx(mean_error_db(alone)), name


def test_reference_is_like_speech():
    """Present in all bands, quiet and loud, and the same at any rate."""
    reference = reference_signal(22050)
    assert np.abs(reference).max() < 1 and len(reference) == 2 * 22050
    again = librosa.resample(reference_signal(44100), orig_sr=44100, target_sr=22050)
    assert np.corrcoef(reference, again)[0, 1] > 0.999
    mel = analyse(torch.from_numpy(reference)[None], 22050, VOCODER.audio)
    assert mel.amax(dim=2).min() > np.log(5e-3) and mel.std() > 1


def test_nothing_above_half_the_new_rate_comes_back_below_it():
    tone = 0.5 * np.sin(2 * np.pi * 15000 * np.arange(48000) / 48000).astype(np.float32)
    mel = analyse(torch.from_numpy(tone)[None], 48000, VOCODER.audio)
    silence = analyse(torch.zeros(1, 22050), 22050, VOCODER.audio)
    torch.testing.assert_close(mel[:, :, 5:-5], silence[:, :, 5:-5], atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        ({}, logging.INFO, "APNet2 vocodes the mel of glow_tts as it is"),
        (dict(log_func="np.log10"), logging.INFO, "exactly (log_func)"),
        (dict(mel_fmax=None), logging.INFO, "approximately (mel_fmax): mean error 1.1 dB"),
        (dict(mel_fmax=4000.0), logging.WARNING, "approximately (mel_fmax): mean error 1"),
    ],
)
def test_plan_is_announced(settings, level, words, caplog, monkeypatch):
    monkeypatch.delenv("APNET2_STRICT", raising=False)
    paired = pair(**settings)
    with caplog.at_level(logging.INFO, "TTS"):
        assert report.announce(paired) is paired
    (record,) = [record for record in caplog.records if record.name == report.logger.name]
    assert record.levelno == level
    assert words in record.getMessage() and "\n" not in record.getMessage()


def test_strict(monkeypatch):
    monkeypatch.setenv("APNET2_STRICT", "1")
    report.announce(pair(log_func="np.log10"))
    with pytest.raises(PairingError, match="mel_fmax.*APNET2_STRICT"):
        report.announce(pair(mel_fmax=None))
    monkeypatch.setenv("APNET2_STRICT", "0")
    report.announce(pair(mel_fmax=None))


def test_table():
    made = plan(mel_fmax=None, log_func="np.log10")
    lines = report.table(made, {"mel_fmax": 1.14}).splitlines()
    assert len(lines) == 1 + len(made.items)
    (row,) = [line.split() for line in lines if line.startswith("mel_fmax")]
    assert row[:6] == ["mel_fmax", "11025", "8000", "approximate", "1.14", "dB"]


def test_own_audio_config_is_the_same():
    """Another model that was trained on our settings needs nothing."""
    acoustic = SimpleNamespace(model="glow_tts", audio=VOCODER.audio)
    assert make_plan(acoustic, AudioProcessor(VOCODER.audio), VOCODER).verdict == Verdict.SAME
