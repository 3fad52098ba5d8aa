"""`apnet2 pair`: from two configurations to a table and a status."""

import json

import command_line
import pytest
from command_line import one_line
from TTS.tts.configs.glow_tts_config import GlowTTSConfig
from TTS.tts.configs.vits_config import VitsConfig
from TTS.vc.configs.knnvc_config import KNNVCConfig
from TTS.vocoder.configs import HifiganConfig

workplace, model, apnet2 = command_line.workplace, command_line.model, command_line.apnet2  # fixtures


@pytest.fixture
def glow(workplace):
    """A GlowTTS's config with our settings but for those given, written to `glow.json`."""

    def write(**settings):
        config = GlowTTSConfig()
        for name, value in {"mel_fmax": 8000.0, **settings}.items():
            config.audio[name] = value
        config.save_json(workplace / "glow.json")
        return "glow.json"

    return write


def rows(out: str) -> dict[str, list[str]]:
    """The cells of each setting, by its name."""
    return {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:-1]}


def test_exact(apnet2, model, glow):
    status, out, err = apnet2("pair", "--tts", glow(), "--strict")
    assert (status, err) == (0, "")
    assert rows(out)["log_func"][:3] == ["np.log10", "np.log", "exact"]
    assert out.splitlines()[-1].endswith("converted exactly (log_func, spec_gain, signal_norm)")


def test_approximate(apnet2, model, glow):
    status, out, err = apnet2("pair", "--tts", glow(mel_fmax=None, hop_length=200))
    assert (status, err) == (0, "")
    mel_fmax, hop_length = rows(out)["mel_fmax"], rows(out)["hop_length"]
    assert mel_fmax[:3] == ["11025", "8000", "approximate"] and mel_fmax[4] == "dB"
    assert 0 < float(mel_fmax[3]) < 3 and "approximate" in hop_length
    status, again, err = apnet2("pair", "--tts", "glow.json", "--strict")
    assert (status, again) == (1, out)
    assert "approximate" in one_line(err)


def test_impossible(apnet2, model, glow):
    status, out, err = apnet2("pair", "--tts", glow(preemphasis=1.0))
    assert status == 1
    assert rows(out + "\n")["preemphasis"][:3] == ["1", "0", "impossible"]
    assert "preemphasis is 1" in one_line(err)


def test_waveforms_and_features(apnet2, model):
    VitsConfig().save_json("vits.json")
    KNNVCConfig().save_json("knnvc.json")
    status, out, err = apnet2("pair", "--tts", "vits.json", "--strict")
    assert (status, err) == (0, "") and "vocodes the waveform of vits" in out
    status, _, err = apnet2("pair", "--tts", "knnvc.json")
    assert status == 1 and "WavLM features" in one_line(err)


def test_where_configs_are_found(apnet2, model, glow, workplace, tmp_path):
    """A folder, a name that coqui-tts has downloaded; for the vocoder a name, a folder or a file."""
    folder = tmp_path / "home" / "tts" / "tts_models--en--ljspeech--glow-tts"
    folder.mkdir(parents=True)
    (workplace / glow()).rename(folder / "config.json")
    outputs = {
        apnet2("pair", "--tts", tts, "--vocoder", vocoder)
        for tts in (folder, folder / "config.json", "tts_models/en/ljspeech/glow-tts")
        for vocoder in ("apnet2", model, model / "config.json")
    }
    ((status, out, err),) = outputs
    assert (status, err) == (0, "") and "exactly" in out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "neither a config.json nor a model that coqui-tts has downloaded"),
        ("{", "not a configuration of coqui-tts"),
        ('{"model": "unheard"}', "not a configuration of coqui-tts"),
        (json.dumps({"model": "glow_tts", "audio": {"preemphasis": 7}}), "not a configuration of coqui-tts"),
        (json.dumps({"model": "glow_tts", "audio": {"stats_path": "none.npy"}}), "none.npy"),
        (json.dumps({"model": "glow_tts", "audio": {"hop_length": "300"}}), "Failed to deserialize field: audio"),
        (json.dumps({"model": "glow_tts", "audio": None}), "a glow_tts, expected an acoustic model's"),
        (json.dumps({"model": "glow_tts", "audio": {"hop_length": 1}}), "audio.hop_length of glow_tts: 1"),
        (json.dumps({"data": {}, "model": {}}), "not a configuration of coqui-tts"),
        (json.dumps(HifiganConfig().to_dict()), "a hifigan, expected an acoustic model's"),
    ],
)
def test_refused(content, reason, apnet2, model, workplace):
    if content is not None:
        (workplace / "in.json").write_text(content)
    status, out, err = apnet2("pair", "--tts", "in.json")
    assert (status, out) == (1, "") and reason in one_line(err)


def test_vocoder_of_another_kind_is_refused(apnet2, glow):
    HifiganConfig().save_json("hifigan.json")
    status, _, err = apnet2("pair", "--tts", glow(), "--vocoder", "hifigan.json")
    assert status == 1 and "hifigan.json: not the configuration of an APNet2" in one_line(err)
