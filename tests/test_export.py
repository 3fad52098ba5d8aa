"""Exported files: the transforms and the graph that they are made of, their check, and a run without torch."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
from command_line import SAMPLE, apnet2, one_line  # noqa: F401
from test_latent_mel import config as latent_config
from test_pitch_start import pitch_config

from apnet2_tts_plugin.errors import MissingPackageError, OutputError
from apnet2_tts_plugin.export import write
from apnet2_tts_plugin.export.graph import GraphGenerator
from apnet2_tts_plugin.export.spectra import RealDFT, RealSpectra
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.consistency import Analysis
from apnet2_tts_plugin.network.spectra import ISTFT

DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
MODELS = {
    "published": lambda: tiny.model(pools=True),
    "freev": lambda: tiny.model(pools=True, amplitude_start="pseudo_inverse", consistency_iterations=2),
    "pitch": lambda: tiny.half_voiced(
        tiny.model(**pitch_config(consistency_iterations=1)),
        torch.randn(1, 80, 50, generator=torch.Generator().manual_seed(1)) - 4,
    ),
    "mel kept": lambda: tiny.model(pools=True, consistency_iterations=2, consistency_target="mel"),
    "latent": lambda: tiny.model(input_features="latent"),
    "phase of latent": lambda: Apnet2(latent_config(phase_start="latent")).eval(),
    "mel of latent kept": lambda: Apnet2(latent_config(consistency_iterations=1, consistency_target="mel")).eval(),
}


def random_input(model, *shape: int) -> torch.Tensor:
    batch, n_frames = shape
    return torch.randn(batch, model.config.n_inputs, n_frames, generator=torch.Generator().manual_seed(1)) - 4


@pytest.mark.parametrize("n_fft", [4, 10, 1024])
def test_transform_of_real_frames(n_fft):
    frames = torch.randn(2, 3, n_fft, generator=torch.Generator().manual_seed(0))
    dft, expected = RealDFT(n_fft), torch.fft.rfft(frames)
    real, imag = dft(frames)
    torch.testing.assert_close(torch.complex(real, imag), expected, atol=1e-4, rtol=0)
    imag[..., 0] = imag[..., -1] = 1.0  # has no part in the frames
    torch.testing.assert_close(dft.inverse(real, imag), frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_frames", [2, 3, 9])
@pytest.mark.parametrize("sizes", [(1024, 256, 1024), (1024, 300, 1000), (64, 20, 60)])
def test_spectra_are_those_of_the_model(sizes, n_frames):
    istft = ISTFT(*sizes)
    real, imag = torch.randn(2, 2, sizes[0] // 2 + 1, n_frames, generator=torch.Generator().manual_seed(0))
    spectra, analysis = RealSpectra(istft), Analysis(istft, sizes[1])
    waveform = istft(torch.complex(real, imag))
    torch.testing.assert_close(spectra.waveform(real, imag), waveform, atol=1e-5, rtol=0)
    expected = analysis.stft(waveform)
    torch.testing.assert_close(torch.complex(*spectra.spectrum(waveform)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shape", [(1, 50), (3, 2)])
def test_the_graph_does_what_the_model_does(kind, shape):
    model = MODELS[kind]()
    mel = random_input(model, *shape)
    expected = model.inference(mel)[:, 0]
    with torch.no_grad():
        waveform, *pitch = GraphGenerator(model.generator)(mel)
    assert [part.shape for part in pitch] == ([(shape[0], shape[1])] * 2 if kind == "pitch" else [])
    torch.testing.assert_close(waveform, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def faulty(monkeypatch, change):
    """Let what is read from a `.pt2` file be the model's outputs, changed."""

    def opened(path, model):
        return lambda mel: change(*GraphGenerator(model.generator)(mel))

    monkeypatch.setitem(write.WRITERS, ".pt2", (lambda model, path: path.write_bytes(b"a graph"), opened))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda waveform, f0, voiced: (waveform * 1.001, f0, voiced), "differs from the model by 1.0e-03 of the peak"),
        (lambda waveform, f0, voiced: (waveform * torch.nan, f0, voiced), "differs from the model by nan"),
        (lambda waveform, f0, voiced: (waveform, f0 + 0.5, voiced), "0.5 Hz from the model's"),
        (lambda waveform, f0, voiced: (waveform, f0, 1 - voiced), "pitch is 0 Hz"),
    ],
)
def test_a_file_that_does_something_else_is_not_kept(change, message, tmp_path, monkeypatch):
    faulty(monkeypatch, change)
    (tmp_path / "model.pt2").write_bytes(b"of before")
    with pytest.raises(OutputError, match=f"model.pt2: .*{message}"):
        write.write_graph(MODELS["pitch"](), tmp_path / "model.pt2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of before"]


def test_a_pitch_that_is_rounded_to_the_next_step_is_no_fault(tmp_path, monkeypatch):
    model = MODELS["pitch"]()

    def other_pitch(waveform, f0, voiced):
        mel = write._input(model, *f0.shape)
        f0[:, 1] += write.F0_STEP
        return model.generator(mel, write.Pitch(f0, voiced)).waveform, f0, voiced

    faulty(monkeypatch, other_pitch)
    assert write.write_graph(model, tmp_path / "model.pt2") == 0
    assert (tmp_path / "model.pt2").read_bytes() == b"a graph"


def test_other_suffixes_and_missing_packages(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="model.tflite: expected a name that ends in .onnx or .pt2"):
        write.write_graph(tiny.model(), tmp_path / "model.tflite")
    monkeypatch.setattr(write, "find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.raises(MissingPackageError, match="onnx and onnxscript and onnxruntime not installed: pip install"):
        write.write_graph(tiny.model(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apnet2"], "expected OUT.onnx or OUT.pt2, or else --out DIR"),
        (["apnet2", "a.onnx", "--out", "folder"], "expected OUT.onnx or OUT.pt2, or else --out DIR"),
        (["apnet2", "a.tflite"], "a.tflite: expected a name that ends in .onnx or .pt2"),
        (["apnet2", "a.onnx", "--half"], "--half: leave it out"),
    ],
)
def test_wrong_arguments(apnet2, arguments, message):  # noqa: F811
    status, out, err = apnet2("export", *arguments)
    assert (status, out) == (2, "") and message in one_line(err)


def test_no_such_model(apnet2):  # noqa: F811
    status, _, err = apnet2("export", "nobody", "a.pt2")
    assert status == 1 and "nobody" in one_line(err)


WITHOUT_TORCH = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
assert session.get_inputs()[0].shape == ["batch", 80, "frames"]
numpy.savez("out.npz", *session.run(None, {"mel": numpy.load("mel.npy")}))
assert "torch" not in sys.modules and "apnet2_tts_plugin.model" not in sys.modules
"""


def needs_onnx():
    for name in write.ONNX_PACKAGES:
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["published", "pitch"])
def test_onnx_runs_without_torch(kind, tmp_path):
    needs_onnx()
    model = MODELS[kind]()
    assert write.write_graph(model, tmp_path / "model.onnx") <= write.LARGEST_ERROR
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert str(Path(write.__file__).parent).encode() not in (tmp_path / "model.onnx").read_bytes()
    for shape in [(2, 33), (1, 2)]:
        mel = random_input(model, *shape)
        np.save(tmp_path / "mel.npy", mel.numpy())
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, check=True)
        waveform, *pitch = (torch.from_numpy(output) for output in np.load(tmp_path / "out.npz").values())
        expected = model.generator(mel, write.Pitch(*pitch) if pitch else None).waveform.detach()
        torch.testing.assert_close(waveform, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["freev", "pitch", "latent"])
def test_program_of_torch_export(kind, tmp_path):
    model = MODELS[kind]()
    write.write_graph(model, tmp_path / "model.pt2")
    settings = {write.SETTINGS: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=settings).module()
    assert f'"input_features": "{model.config.input_features}"' in settings[write.SETTINGS]
    mel = random_input(model, 3, 41)
    expected = model.inference(mel)[:, 0]
    torch.testing.assert_close(program(mel)[0], expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    assert str(Path(write.__file__).parent).encode() not in (tmp_path / "model.pt2").read_bytes()


@pytest.mark.slow
def test_the_example_of_the_document(tmp_path):
    """It vocodes a recording as the model does, without torch."""
    needs_onnx()
    from apnet2_tts_plugin import load_model
    from apnet2_tts_plugin.weights import store

    model = load_model(store.BUNDLED / "apnet2-tiny")
    write.write_graph(model, tmp_path / "model.onnx")
    recording, rate = sf.read(SAMPLE, frames=44032, dtype="float32")
    sf.write(tmp_path / "in.wav", recording, rate, subtype="FLOAT")
    (example,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(example.splitlines()) <= 30
    (tmp_path / "vocode.py").write_text(f"{example}\nassert 'torch' not in sys.modules\n")
    subprocess.run([sys.executable, "vocode.py", "model.onnx", "in.wav", "out.wav"], cwd=tmp_path, check=True)
    vocoded, rate = sf.read(tmp_path / "out.wav", dtype="float32")
    expected = model.copy_synthesis(recording, rate).numpy()
    assert len(vocoded) == len(expected)
    assert 10 * np.log10(np.square(expected).mean() / np.square(vocoded - expected).mean()) > 30
