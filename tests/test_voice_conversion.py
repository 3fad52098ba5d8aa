"""Voice conversion models of coqui-tts followed by our vocoder: small and random ones, WavLM included."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from acoustic_models import D_VECTORS, build, save
from command_line import RATE, tts, tts_api

from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.pairing.convert import analyse
from apnet2_tts_plugin.weights.find import find_weights

FREEVC = "voice_conversion_models/multilingual/vctk/freevc24"


@pytest.fixture
def recordings(tmp_path):
    """Paths of a source and a target, a second each."""
    paths = [tmp_path / "source.wav", tmp_path / "target.wav"]
    for path, pitch in zip(paths, (120, 200), strict=True):
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE), RATE)
    return paths


@pytest.fixture(scope="module")
def wavlm(tts_home):
    """A WavLM so small that it is made at once, where coqui keeps the one it downloads; the number of its features."""
    from TTS.vc.layers.freevc.wavlm.wavlm import WavLM, WavLMConfig

    sizes = dict(
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=4,
        conv_pos=16,
        conv_pos_groups=4,
        conv_feature_layers="[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
    )
    torch.manual_seed(5)
    model = WavLM(WavLMConfig(sizes))
    path = tts_home / "wavlm" / "WavLM-Large.pt"
    path.parent.mkdir(parents=True)
    torch.save({"cfg": vars(model.cfg), "model": model.state_dict()}, path)
    return sizes["encoder_embed_dim"]


@pytest.fixture(scope="module")
def freevc(tts_home, wavlm):
    """Folder of a FreeVC, known as `FREEVC`."""
    from TTS.vc.configs.freevc_config import FreeVCConfig
    from TTS.vc.models.freevc import FreeVC

    torch.manual_seed(6)
    config = FreeVCConfig()
    config.model_args = dataclasses.replace(config.model_args, ssl_dim=wavlm, upsample_initial_channel=32)
    return save(FreeVC(config), config, tts_home / FREEVC.replace("/", "--"))


@pytest.fixture(scope="module")
def openvoice(tmp_path_factory):
    """Folder of an OpenVoice, by whose path coqui knows what it is, with the config that its authors publish."""
    from TTS.vc.configs.openvoice_config import OpenVoiceConfig
    from TTS.vc.models.openvoice import OpenVoice

    torch.manual_seed(7)
    config = OpenVoiceConfig()
    folder = tmp_path_factory.mktemp("OpenVoice")
    torch.save({"model": OpenVoice(config).state_dict()}, folder / "checkpoint.pth")
    data = dict(sampling_rate=RATE, filter_length=1024, hop_length=256, win_length=1024)
    (folder / "config.json").write_text(json.dumps({"data": data}))
    return folder


def our_vocoder(folder) -> dict:
    return dict(vocoder_checkpoint=find_weights(folder), vocoder_config=folder / "config.json")


def test_waveform_is_vocoded_again(openvoice, installed_vocoder, recordings):
    from TTS.utils.synthesizer import Synthesizer

    checkpoint = openvoice / "checkpoint.pth"
    synthesizer = Synthesizer(vc_checkpoint=checkpoint, **our_vocoder(installed_vocoder))
    source, target = recordings
    torch.manual_seed(0)
    wav = synthesizer.voice_conversion(source, target)
    torch.manual_seed(0)
    own = synthesizer.vc_model.voice_conversion(source, [target])
    vocoder = synthesizer.vocoder_model
    expected = vocoder.inference(analyse(torch.from_numpy(own)[None], RATE, vocoder.config.audio)).squeeze()
    assert torch.equal(wav, expected) and len(wav) == len(own) // 256 * 256


def test_command(freevc, installed_vocoder, recordings, tmp_path, monkeypatch):
    """FreeVC's waveform has 24 kHz, the file has the vocoder's rate, and the same duration."""
    source, target = recordings
    out = tmp_path / "out.wav"
    arguments = "--model_name", FREEVC, "--source_wav", source, "--target_wav", target, "--out_path", out
    assert tts(*arguments) == 0
    alone = soundfile.info(out)
    assert tts(*arguments, "--vocoder_name", "apnet2") == 0
    vocoded = soundfile.info(out)
    assert (alone.samplerate, vocoded.samplerate) == (24000, RATE)
    assert abs(vocoded.duration - alone.duration) < 0.02
    out.unlink()
    monkeypatch.setenv("APNET2_STRICT", "1")
    line = tts(*arguments, "--vocoder_name", "apnet2")
    assert "sample_rate" in line and "APNET2_STRICT" in line and not out.exists()


def test_features_are_refused_before_a_download(installed_vocoder, tts_home):
    model = "voice_conversion_models/multilingual/multi-dataset/knnvc"
    line = tts("--source_wav", "a.wav", "--target_wav", "b.wav", "--model_name", model, "--vocoder_name", "apnet2")
    assert "knnvc gives WavLM features" in line
    assert not list(tts_home.glob("*knnvc*"))


def test_features_are_refused_when_loaded(wavlm, installed_vocoder, tmp_path):
    from TTS.utils.synthesizer import Synthesizer
    from TTS.vc.configs.knnvc_config import KNNVCConfig

    KNNVCConfig().save_json(tmp_path / "config.json")
    with pytest.raises(PairingError, match="knnvc cannot be followed by this vocoder"):
        Synthesizer(vc_checkpoint=tmp_path, vc_config=tmp_path / "config.json", **our_vocoder(installed_vocoder))


def test_voice_conversion_after_speech(glow_tts, freevc, installed_vocoder, recordings):
    """`tts_with_vc`: the vocoder was meant for the acoustic model; the converted voice is left as it is."""
    api = tts_api(glow_tts, vocoder_path=installed_vocoder)
    assert len(api.tts_with_vc("hello there", speaker_wav=recordings[1])) > 0
    assert api.synthesizer.vocoder_model is not None and api.voice_converter.vocoder_model is None


def test_other_vocoders_get_what_they_got(freevc, wavegan, recordings):
    """Stock hands the waveform over as it is."""
    from TTS.utils.synthesizer import Synthesizer

    stock = dict(vocoder_checkpoint=wavegan / "model_file.pth", vocoder_config=wavegan / "config.json")
    synthesizer = Synthesizer(vc_checkpoint=freevc / "model_file.pth", vc_config=freevc / "config.json", **stock)
    given = []
    synthesizer.vocoder_model.inference = lambda output: given.append(output) or torch.zeros(1, 1, 10)
    synthesizer.voice_conversion(*recordings)
    assert isinstance(given[0], np.ndarray) and given[0].ndim == 1


def test_vits_converts_voices(installed_vocoder, recordings, tmp_path):
    """Stock gives the vocoder the first sample of the converted voice instead of all of it."""
    folder = build("vits", tmp_path / "vits", D_VECTORS)  # coqui-tts 0.28 fails with speaker ids
    synthesizer = tts_api(folder, vocoder_name="apnet2").synthesizer
    speakers = synthesizer.tts_model.speaker_manager.speaker_names
    wav = synthesizer.tts(source_wav=recordings[0], source_speaker_name=speakers[0], speaker_name=speakers[1])
    assert len(wav) == RATE // 256 * 256
