"""The plan of a pairing, its words and its expected errors."""

import importlib
import logging
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
from TTS.config import BaseAudioConfig
from TTS.utils.audio import AudioProcessor
from TTS.vc.configs.freevc_config import FreeVCConfig
from TTS.vc.configs.knnvc_config import KNNVCConfig

from apnet2_tts_plugin import loader, pairing, report, trial
from apnet2_tts_plugin.config import Apnet2AudioConfig, Apnet2Config
from apnet2_tts_plugin.plan import LINEAR, MEL, WAVEFORM, PairingError, Verdict, check_output, known_range, make_plan

SAME = dict(mel_fmax=8000.0, log_func="np.log", spec_gain=1, signal_norm=False)
VOCODER = Apnet2Config()


def sides(model: str = "glow_tts", **settings) -> tuple:
    """Acoustic model, its audio processor and the vocoder; equal settings but for those given."""
    audio = BaseAudioConfig(**{**SAME, **settings})
    return SimpleNamespace(model=model, audio=audio), AudioProcessor(audio), VOCODER


@pytest.mark.parametrize(
    ("settings", "verdict", "names"),
    [
        ({}, Verdict.SAME, []),
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
        (dict(hop_length=None, frame_shift_ms=256 / 22.05, frame_length_ms=1024 / 22.05), Verdict.SAME, []),
        (dict(preemphasis=1.0), Verdict.IMPOSSIBLE, ["preemphasis"]),
        (dict(log_func="np.log2"), Verdict.IMPOSSIBLE, ["log_func"]),
    ],
)
def test_verdicts(settings, verdict, names):
    plan = make_plan(*sides(**settings))
    assert plan.output == MEL
    assert plan.verdict == verdict
    worst = plan.with_verdict(verdict)
    assert verdict == Verdict.SAME or [item.name for item in worst] == names
    assert all(bool(item.remark) == (item.verdict > Verdict.SAME) for item in plan.items)


def test_impossible_is_refused_with_the_reason():
    with pytest.raises(PairingError, match="glow_tts cannot be followed by this vocoder: preemphasis is 1, expected 0"):
        pairing.pair_configs(*sides(preemphasis=1.0))


def test_bands_that_end_below_ours_are_told():
    plan = make_plan(*sides(sample_rate=16000, mel_fmax=7600.0))
    remarks = {item.name: item.remark for item in plan.items}
    assert "nothing above 7600 Hz will sound" in remarks["mel_fmax"]


def test_cut_peaks_of_a_linear_spectrogram_are_told():
    """coqui's default range ends at 20 dB, below the peaks of loud speech, but above those of its mel."""
    clipped = dict(signal_norm=True, log_func="np.log10", spec_gain=20)
    plan = make_plan(*sides("tacotron", **clipped))
    assert [item.name for item in plan.with_verdict(Verdict.APPROXIMATE)] == ["signal_norm"]
    assert make_plan(*sides("tacotron", **clipped, clip_norm=False)).verdict == Verdict.EXACT
    assert make_plan(*sides("tacotron", **clipped, ref_level_db=40)).verdict == Verdict.APPROXIMATE  # starts at -60
    assert make_plan(*sides("tacotron", **clipped, ref_level_db=40, min_level_db=-120)).verdict == Verdict.EXACT
    assert make_plan(*sides("glow_tts", **clipped)).verdict == Verdict.EXACT


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        (dict(log_func="np.log10", spec_gain=20), (-80, 20)),
        (dict(log_func="np.log10", spec_gain=10), (-160, 40)),
        (dict(log_func="np.log", spec_gain=20), (-80 * 0.4343, 20 * 0.4343)),
        (dict(do_amp_to_db_mel=False), (-100, 26.02)),
        (dict(log_func="np.log10", spec_gain=20, min_level_db=-60), (-40, 20)),
    ],
)
def test_range_of_a_clipped_mel_is_in_decibels(settings, ends):
    """Exact only if all speech is in it; otherwise the error is that of what was cut."""
    pair = pairing.pair_configs(*sides(signal_norm=True, **settings))
    assert known_range(pair.ap, MEL) == pytest.approx(ends, abs=0.01)
    is_wide = ends[0] <= -80 and ends[1] >= 20
    assert pair.plan.verdict == (Verdict.EXACT if is_wide else Verdict.APPROXIMATE)
    if not is_wide:
        assert trial.errors(pair) == {"signal_norm": pytest.approx(trial.mean_error(pair))}
        assert trial.mean_error(pair) > 1


@pytest.mark.parametrize(("size", "value"), [(40, 1.0), (80, float("nan"))])
def test_statistics_of_other_bands_are_refused(size, value):
    acoustic, ap, vocoder = sides()
    ap.signal_norm, ap.stats_path = True, "stats.npy"
    ap.mel_scaler = SimpleNamespace(mean_=np.zeros(size), scale_=np.full(size, value))
    with pytest.raises(PairingError, match="stats_path is stats.npy.*each of 80 bands"):
        pairing.pair_configs(acoustic, ap, vocoder)


def test_all_reasons_are_named():
    acoustic, ap, vocoder = sides(preemphasis=1.0, log_func="np.log2")
    with pytest.raises(PairingError, match="preemphasis is 1.*; log_func is unknown"):
        pairing.pair_configs(acoustic, ap, vocoder)


def test_outputs():
    linear = make_plan(*sides("tacotron"))
    assert (linear.output, linear.verdict) == (LINEAR, Verdict.EXACT)
    assert make_plan(*sides("vits")).output == WAVEFORM
    assert make_plan(SimpleNamespace(model="own", audio={"sample_rate": 22050}), None, VOCODER).output == WAVEFORM
    freevc = make_plan(FreeVCConfig(), None, VOCODER)
    assert (freevc.output, freevc.verdict, freevc.items[0].theirs) == (WAVEFORM, Verdict.APPROXIMATE, "24000")


@pytest.mark.parametrize(
    ("module", "name", "rate"),
    [
        ("TTS.tts.configs.vits_config", "VitsConfig", 22050),
        ("TTS.tts.configs.delightful_tts_config", "DelightfulTTSConfig", 22050),
        ("TTS.tts.configs.xtts_config", "XttsConfig", 24000),
        ("TTS.tts.configs.bark_config", "BarkConfig", 24000),
        ("TTS.tts.configs.tortoise_config", "TortoiseConfig", 24000),
        ("TTS.vc.configs.openvoice_config", "OpenVoiceConfig", 22050),
    ],
)
def test_models_of_waveforms(module, name, rate):
    config = getattr(importlib.import_module(module), name)()
    pair = pairing.pair_configs(config, loader.audio_processor(config), VOCODER)
    assert (pair.plan.output, pair.sample_rate) == (WAVEFORM, rate)
    assert pair.plan.verdict == (Verdict.SAME if rate == 22050 else Verdict.APPROXIMATE)
    assert trial.mean_error(pair) < 0.1


def test_features_are_refused():
    with pytest.raises(PairingError, match="knnvc cannot be followed by this vocoder: .*WavLM"):
        pairing.pair_configs(KNNVCConfig(), None, VOCODER)
    with pytest.raises(PairingError, match="knnvc gives WavLM features"):
        check_output("knnvc")
    check_output("freevc24")


def test_statistics_of_a_linear_spectrogram_are_refused(tmp_path):
    acoustic, ap, vocoder = sides("tacotron", do_amp_to_db_linear=True)
    ap.signal_norm, ap.mel_scaler, ap.stats_path = True, object(), "stats.npy"
    with pytest.raises(PairingError, match="stats_path is stats.npy.*cannot undo"):
        pairing.pair_configs(acoustic, ap, vocoder)


@pytest.mark.parametrize("settings", [{}, dict(log_func="np.log10", spec_gain=20), dict(do_amp_to_db_mel=False)])
def test_exact_pairings_have_no_error(settings):
    assert trial.mean_error(pairing.pair_configs(*sides(**settings))) < 0.01


def test_mean_error_is_that_of_an_independent_computation():
    acoustic, ap, vocoder = sides(mel_fmax=None)
    reference = trial.reference_signal(22050)
    magnitude = np.abs(librosa.stft(reference, n_fft=1024, hop_length=256, win_length=1024, pad_mode="reflect"))
    full, ours = (librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=fmax) for fmax in (11025, 8000))
    estimate = ours @ np.maximum(np.linalg.pinv(full) @ (full @ magnitude), 0)
    error = np.abs(20 * np.log10(np.maximum(estimate, 1e-5) / np.maximum(ours @ magnitude, 1e-5))).mean()
    assert error > 0.5
    assert abs(trial.mean_error(pairing.pair_configs(acoustic, ap, vocoder)) - error) < 0.02


@pytest.mark.parametrize("output", [MEL, LINEAR])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(signal_norm=True, log_func="np.log10", spec_gain=20, do_amp_to_db_linear=False),
        dict(preemphasis=0.97, stft_pad_mode="constant", win_length=800, do_amp_to_db_mel=False),
        dict(stft_pad_mode="edge"),
        dict(stft_pad_mode="symmetric"),
    ],
)
def test_their_spectrogram_is_theirs(output, settings):
    _, ap, _ = sides(**settings)
    waveform = trial.reference_signal(22050)
    theirs = ap.melspectrogram(waveform) if output == MEL else ap.spectrogram(waveform)
    ours = trial.spectrogram(waveform, ap, output).T
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs) / np.abs(theirs).max()
    assert difference.mean() < 3e-5 and difference.max() < 0.1  # where a linear bin is all but 0


@pytest.mark.parametrize("model", ["glow_tts", "tacotron"])
def test_errors_single_out_a_setting(model):
    far = dict(sample_rate=11025, fft_size=512, hop_length=120, win_length=400, preemphasis=0.9, stft_pad_mode="edge")
    bands = dict(mel_fmin=40.0, mel_fmax=5000.0, num_mels=60)
    pair = pairing.pair_configs(*sides(model, **far, **bands))
    errors = trial.errors(pair)
    assert list(errors) == [item.name for item in pair.plan.with_verdict(Verdict.APPROXIMATE)]
    for name in {"preemphasis", "num_mels", "mel_fmin", "mel_fmax", "stft_pad_mode"} & set(errors):
        alone = pairing.pair_configs(*sides(model, **{name: (far | bands)[name]}))
        assert errors[name] == pytest.approx(trial.mean_error(alone)), name


@pytest.mark.parametrize("mode", ["edge", "symmetric", "center"])
def test_any_padding_can_be_announced(mode):
    report.announce(pairing.pair_configs(*sides(stft_pad_mode=mode)))


def test_reference_is_like_speech():
    """Present in all bands, quiet and loud, and the same at any rate."""
    reference = trial.reference_signal(22050)
    assert np.abs(reference).max() < 1 and len(reference) == 2 * 22050
    again = librosa.resample(trial.reference_signal(44100), orig_sr=44100, target_sr=22050)
    assert np.corrcoef(reference, again)[0, 1] > 0.999
    mel = pairing.analyse(trial.torch.from_numpy(reference)[None], 22050, VOCODER.audio)
    assert mel.amax(dim=2).min() > np.log(5e-3) and mel.std() > 1


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        ({}, logging.INFO, "as it is"),
        (dict(log_func="np.log10"), logging.INFO, "exactly (log_func)"),
        (dict(mel_fmax=None), logging.WARNING, "approximately (mel_fmax): mean error 1.1 dB"),
    ],
)
def test_plan_is_announced(settings, level, words, caplog, monkeypatch):
    monkeypatch.delenv("APNET2_STRICT", raising=False)
    pair = pairing.pair_configs(*sides(**settings))
    with caplog.at_level(logging.INFO, "TTS"):
        assert report.announce(pair) is pair
    (record,) = [record for record in caplog.records if record.name == report.logger.name]
    assert record.levelno == level
    assert words in record.getMessage() and "\n" not in record.getMessage()


def test_strict(monkeypatch):
    monkeypatch.setenv("APNET2_STRICT", "1")
    report.announce(pairing.pair_configs(*sides(log_func="np.log10")))
    with pytest.raises(PairingError, match="mel_fmax.*APNET2_STRICT"):
        report.announce(pairing.pair_configs(*sides(mel_fmax=None)))
    monkeypatch.setenv("APNET2_STRICT", "0")
    report.announce(pairing.pair_configs(*sides(mel_fmax=None)))


def test_table():
    plan = make_plan(*sides(mel_fmax=None, log_func="np.log10"))
    lines = report.table(plan, {"mel_fmax": 1.14}).splitlines()
    assert len(lines) == 1 + len(plan.items)
    (row,) = [line.split() for line in lines if line.startswith("mel_fmax")]
    assert row[:6] == ["mel_fmax", "11025", "8000", "approximate", "1.14", "dB"]


def test_own_audio_config_is_the_same():
    """Another model that was trained on our settings needs nothing."""
    audio = Apnet2AudioConfig()
    plan = make_plan(SimpleNamespace(model="glow_tts", audio=audio), AudioProcessor(audio), VOCODER)
    assert plan.verdict == Verdict.SAME
