"""Small models with random weights: two acoustic ones and an APNet2, in a coqui data folder of the tests' own."""

import os

# The networks are so small that a second thread takes time, and test files run side by side; for subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import acoustic_models
import pytest
import tiny
import torch

# Autograd decides at its first use which devices need threads. After `torch.compile` or `torch.export` some seem to,
# and then no process that is forked could train, as the tests of killed runs do.
torch.ones(1, requires_grad=True).backward()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Names of files that are not UTF-8 stand in the log of some tests; a process could not hand it to the other."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


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
    return acoustic_models.build("glow_tts", tts_home / "tts_models--en--ljspeech--glow-tts")


@pytest.fixture(scope="session")
def vits(tts_home):
    """Folder of a VITS, which makes waveforms, known as `tts_models/en/ljspeech/vits`."""
    return acoustic_models.build("vits", tts_home / "tts_models--en--ljspeech--vits")


@pytest.fixture(scope="session")
def wavegan(tts_home):
    """Folder of one of coqui's own vocoders, under the name of the one that glow-tts has by default."""
    from TTS.vocoder.configs import ParallelWaveganConfig
    from TTS.vocoder.models.gan import GAN

    torch.manual_seed(4)
    config = ParallelWaveganConfig()
    config.generator_model_params |= dict(num_res_blocks=3, stacks=1)
    config.discriminator_model_params |= dict(num_layers=3)
    return acoustic_models.save(GAN(config), config, tts_home / "vocoder_models--en--ljspeech--multiband-melgan")


@pytest.fixture(scope="session")
def vocoder(tmp_path_factory):
    """Folder of the tiny APNet2 as the Trainer leaves it: `config.json` and a `.pth` file."""
    model = tiny.model()
    return acoustic_models.save(model, model.config, tmp_path_factory.mktemp("vocoder") / "tiny")


@pytest.fixture(scope="session")
def installed_vocoder(tts_home, tmp_path_factory):
    """The tiny APNet2 with its weights in `model.safetensors`, installed under the name `apnet2`."""
    from apnet2_tts_plugin.weights import store

    return store.install(tiny.save(tmp_path_factory.mktemp("exported")), "apnet2")
