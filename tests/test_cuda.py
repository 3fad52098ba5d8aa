"""What the other tests show on the processor, on a CUDA device."""

import math

import pytest
import tiny
import torch
from small_run import make_batch, stub_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_inference_equals_that_of_the_processor():
    model, mel, lengths = tiny.model(), torch.randn(2, 80, 50), torch.tensor([50, 20])
    expected = model.inference(mel, lengths=lengths)
    audio = model.cuda().inference(mel.cuda(), lengths=lengths)
    assert audio.device.type == "cuda"
    assert (audio.cpu() - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
def test_training_step_is_near_that_of_the_processor(autocast):
    logged = []
    for device in ("cpu", "cuda"):
        model = tiny.model().to(device)
        torch.manual_seed(0)  # of the discriminators
        trainer = stub_trainer(model)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            logged.append(model.optimize({"waveform": make_batch()["waveform"].to(device)}, trainer)[1])
    assert all(math.isfinite(value) for value in logged[1].values())
    for name in ("loss_mel", "loss_disc"):
        assert logged[1][name] == pytest.approx(logged[0][name], rel=0.05), name
