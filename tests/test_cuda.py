"""What the other tests show on the processor, on a CUDA device."""

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from golden_weights import golden_waveform

from apnet2_tts_plugin.model import Apnet2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Apnet2(tiny.config())


def test_inference_equals_that_of_the_processor(model):
    mel = torch.randn(2, 80, 50)
    lengths = torch.tensor([50, 20])
    expected = model.inference(mel, lengths=lengths)
    audio = model.cuda().inference(mel.cuda(), lengths=lengths)
    assert audio.device.type == "cuda"
    assert (audio.cpu() - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
def test_training_step(model, autocast):
    model.cuda()
    batch = {"waveform": torch.from_numpy(golden_waveform(16384, 3)).reshape(2, 8192).cuda()}
    trainer = SimpleNamespace(use_amp_scaler=False, optimizer=model.get_optimizer(), total_steps_done=0)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        _, logged = model.optimize(batch, trainer)
    assert all(math.isfinite(value) for value in logged.values())
