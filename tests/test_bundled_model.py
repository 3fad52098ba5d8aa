"""The model that ships with the plugin, as a whole: its files, the analysis and the generator together."""

from pathlib import Path

import soundfile
import torch

from apnet2_tts_plugin import load_model
from apnet2_tts_plugin.metrics.spectral import mel_error_db
from apnet2_tts_plugin.model import Apnet2

SAMPLE = Path(__file__).parents[1] / "recipes" / "ljspeech" / "sample.flac"


def test_it_gives_back_a_recording(tmp_path, monkeypatch):
    """As loud as it was, and far nearer to it than what the same networks make of it before they are trained."""
    monkeypatch.setenv("TTS_HOME", str(tmp_path))
    recording, sample_rate = soundfile.read(SAMPLE, dtype="float32")
    trained = load_model("apnet2")
    torch.manual_seed(0)
    untrained = Apnet2(trained.config).eval()
    errors = [
        mel_error_db(recording, model.copy_synthesis(recording, sample_rate).numpy(), sample_rate)
        for model in (trained, untrained)
    ]
    assert sample_rate == 22050
    assert errors[0] < 2.2 and errors[1] > 4.5, errors
