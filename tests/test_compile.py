"""Inference that torch compiles gives the same samples, by torch.compile and by the generator's own `compile`."""

import copy

import pytest
import tiny
import torch
from test_pitch_start import pitch_config


@pytest.fixture(params=["amplitude", "mel"])
def generator(request):
    torch._dynamo.reset()
    return tiny.model(**pitch_config(consistency_iterations=1, consistency_target=request.param)).generator


def random_mel(n_frames: int) -> torch.Tensor:
    return torch.randn(1, 80, n_frames, generator=torch.Generator().manual_seed(1)) - 4


def check(compiled, expected):
    torch.testing.assert_close(compiled, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_inference_in_one_graph(generator, context):
    mel = random_mel(20)
    expected = generator.inference(mel)
    with context():
        check(torch.compile(generator.inference, backend="aot_eager", fullgraph=True)(mel), expected)


def test_compile_of_the_generator_compiles_inference(generator):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    mel = random_mel(20)
    expected = generator.inference(mel)
    generator.compile(backend=backend)
    check(generator.inference(mel), expected)
    assert len(graphs) == 1
    copied = copy.deepcopy(generator)
    for parameter in copied.parameters():
        torch.nn.init.zeros_(parameter)
    assert not torch.equal(copied.inference(mel), expected) and len(graphs) == 1
    check(generator(mel).waveform.detach(), expected)
    assert len(graphs) == 2


@pytest.mark.slow
def test_the_default_compiler(generator):
    mels = [random_mel(n_frames) for n_frames in (20, 33)]
    expected = [generator.inference(mel) for mel in mels]
    generator.compile()
    for mel, waveform in zip(mels, expected, strict=True):
        check(generator.inference(mel), waveform)
