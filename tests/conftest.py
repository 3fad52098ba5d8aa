"""Small models with random weights: two acoustic ones and an APNet2, in a coqui data folder of the tests' own."""

import acoustic_models
import pytest
import torch
from acoustic_models import build, save

FRAMES_PER_TOKEN = acoustic_models.FRAMES_PER_TOKEN


@pytest.fixture(scope="session", autouse=True)
def tts_home(tmp_path_factory):
    """The folder in which coqui keeps its models (`TTS_HOME`), empty at first, for all tests and their subprocesses."""
    home = tmp_path_factory.mktemp("tts_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_HOME", str(home))
        yield home / "tts"


@pytest.fixture(scope="session")
def glow_tts(tts_home):
    """Folder of a GlowTTS with coqui's default mel (log10, normalised), known as `tts_models/en/ljspeech/glow-tts`."""
    return build("glow_tts", tts_home / "tts_models--en--ljspeech--glow-tts")


@pytest.fixture(scope="session")
def vits(tts_home):
    """Folder of a VITS, which makes waveforms, known as `tts_models/en/ljspeech/vits`."""
    return build("vits", tts_home / "tts_models--en--ljspeech--vits")


@pytest.fixture(scope="session")
def wavegan(tts_home):
    """Folder of one of coqui's own vocoders, under the name of the one that glow-tts has by default."""
    from TTS.vocoder.configs import ParallelWaveganConfig
    from TTS.vocoder.models.gan import GAN

    torch.manual_seed(4)
    config = ParallelWaveganConfig()
    config.generator_model_params |= dict(num_res_blocks=3, stacks=1)
    config.discriminator_model_params |= dict(num_layers=3)
    return save(GAN(config), config, tts_home / "vocoder_models--en--ljspeech--multiband-melgan")


@pytest.fixture(scope="session")
def vocoder(tmp_path_factory):
    """Folder of a tiny APNet2 as the Trainer leaves it: `config.json` and a `.pth` file."""
    model = _tiny_apnet2()
    return save(model, model.config, tmp_path_factory.mktemp("vocoder") / "tiny")


@pytest.fixture(scope="session")
def installed_vocoder(tts_home, tmp_path_factory):
    """The tiny APNet2 with its weights in `model.safetensors`, installed under the name `apnet2`."""
    from apnet2_tts_plugin import checkpoints, store

    model = _tiny_apnet2()
    folder = tmp_path_factory.mktemp("exported")
    checkpoints.save_weights(model.generator, folder)
    model.config.save_json(folder / "config.json")
    return store.install(folder, "apnet2")


def _tiny_apnet2() -> torch.nn.Module:
    from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
    from apnet2_tts_plugin.model import Apnet2

    torch.manual_seed(3)
    sizes = dict(channels=16, hidden_channels=32, blocks=1)
    config = Apnet2Config(
        amplitude=PredictorConfig(**sizes),
        phase=PredictorConfig(**sizes),
        mpd_channels=[4, 4],
        mrd_channels=4,
    )
    return Apnet2(config)
