"""Files with the whole generator in them, from mel to waveform, each compared with the model before it has its name."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import MissingPackageError, OutputError, one_line
from apnet2_tts_plugin.export.graph import GraphGenerator
from apnet2_tts_plugin.files import write_atomically
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.pitch import F0_STEP, Pitch

OUTPUTS = ("waveform", "f0", "voiced")  # of models without a pitch, the first
SETTINGS = "apnet2.json"  # what the settings are called in a .pt2 file
LARGEST_ERROR = 1e-4  # of the peak
MIN_FRAMES = 3  # torch.export takes a size of one, T - 1 of two frames, for a case of its own
SIZES = [{0: Dim("batch", min=1, max=2**16), 2: Dim("frames", min=MIN_FRAMES, max=2**24)}]
EXAMPLE = 2, 16  # batch and frames of the input that the graph is made with,
CHECKED = (1, 120), (3, MIN_FRAMES)  # and of those that it is checked with
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Tensor], list[Tensor]]


def write_graph(model: Apnet2, path: Path) -> float:
    """Write the generator of `model`, on the processor, to an `.onnx` or `.pt2` file, weights and settings inside.

    Its input has the name of `config.input_features`, (B, n_inputs, T) in float32, all of one length, with T >= 2, or T
    >= 3 in a `.pt2` file. Its outputs are "waveform" (B, (T - 1) * hop_length) and, with phase_start "pitch", "f0" in
    Hz and "voiced", (B, T). The number of consistency iterations is the one that the model has now. The settings to
    analyse a recording with are the metadata of the ONNX model, or in the `.pt2` file as the extra file `SETTINGS`.

    Args:
        model: The model.
        path: The file, which is replaced if it is there.

    Returns:
        The largest error of the file's waveforms, in fractions of the model's peak.

    Raises:
        MissingPackageError: if one of `ONNX_PACKAGES` is not installed, for `.onnx`.
        OutputError: if the suffix is another one, torch cannot make the file, or what was written does not do what the
            model does; there is no file then.
    """
    if path.suffix not in WRITERS:
        raise OutputError(f"{path}: expected a name that ends in {' or '.join(WRITERS)}")
    write, open_file = WRITERS[path.suffix]
    require_packages(path)
    error = 0.0

    def write_and_check(temporary: Path) -> None:
        nonlocal error
        with _quiet():
            write(model, temporary)
            error = _check(model, open_file(temporary, model))

    try:
        write_atomically(path, write_and_check)
    except torch.onnx.OnnxExporterError as exporter_error:
        raise OutputError(f"{path}: torch cannot make an ONNX graph of it ({one_line(exporter_error)})") from (
            exporter_error
        )
    except OutputError as mismatch:
        raise OutputError(f"{path}: {mismatch}") from mismatch
    return error


def require_packages(path: Path) -> None:
    """Raise MissingPackageError if a package that writes or checks this kind of file is not installed."""
    missing = [name for name in ONNX_PACKAGES if path.suffix == ".onnx" and find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise MissingPackageError(f"{path}: {names} not installed: pip install 'apnet2-tts-plugin[export]'")


def settings_of(config: Apnet2Config) -> dict[str, str]:
    """What a program must know to make the input of a file, and to play its output."""
    audio = config.audio
    names = ("sample_rate", "fft_size", "hop_length", "win_length", "num_mels", "mel_fmin")
    settings = {name: str(audio[name]) for name in names}
    settings["mel_fmax"] = str(audio.sample_rate / 2 if audio.mel_fmax is None else audio.mel_fmax)
    return settings | {"input_features": config.input_features}


def _write_onnx(model: Apnet2, path: Path) -> None:
    exported = _program(model)
    n_outputs = len(exported.graph_signature.user_outputs)
    names = dict(input_names=[model.config.input_features], output_names=OUTPUTS[:n_outputs], dynamic_shapes=SIZES)
    program = torch.onnx.export(exported, dynamo=True, verbose=False, **names)
    program.model.metadata_props.update(settings_of(model.config))
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in this machine's files it comes from
    program.save(path, external_data=False)


def _write_program(model: Apnet2, path: Path) -> None:
    settings = json.dumps(settings_of(model.config))
    with path.open("wb") as file:
        torch.export.save(_program(model), file, extra_files={SETTINGS: settings})


def _program(model: Apnet2) -> ExportedProgram:
    """The graph of any batch and length."""
    graph, example = GraphGenerator(model.generator), (_input(model, *EXAMPLE),)
    with torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes=SIZES)
    for part in program.graph_module.modules():  # what autocast is switched off for is a graph of its own
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # of this machine's files
    return program


def _open_onnx(path: Path, model: Apnet2) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = model.config.input_features
    return lambda mel: [torch.from_numpy(output) for output in session.run(None, {name: mel.numpy()})]


def _open_program(path: Path, _model: Apnet2) -> Run:
    with path.open("rb") as file:
        return torch.export.load(file).module()


WRITERS = {".onnx": (_write_onnx, _open_onnx), ".pt2": (_write_program, _open_program)}


@torch.no_grad()
def _check(model: Apnet2, run: Run) -> float:
    """The largest error of the waveforms, in fractions of the peak.

    The pitch may round to the next step of its grid, once in thousands of frames, as another library adds in another
    order; that shifts all that follows by a thousandth of a radian. So it is the model with the file's pitch that the
    waveform is compared with.

    Raises:
        OutputError: if it is above `LARGEST_ERROR`, or the pitch is another one.
    """
    generator, errors = model.generator, []
    for batch, n_frames in CHECKED:
        mel = _input(model, batch, n_frames)
        waveform, *rest = run(mel)
        pitch = None
        if generator.pitch is not None:
            pitch, expected = Pitch(*rest), generator.pitch.decode(*generator.pitch(mel))
            apart = (pitch.f0 - expected.f0).abs().max().item()
            if apart > F0_STEP or not torch.equal(pitch.voiced, expected.voiced):
                raise OutputError(
                    f"the file's pitch is {apart:.3g} Hz from the model's, expected at most {F0_STEP:.3g}"
                )
        expected = generator(mel, pitch).waveform
        errors.append(((waveform - expected).abs().max() / expected.abs().max()).item())
    if not max(errors) <= LARGEST_ERROR:
        raise OutputError(f"the file differs from the model by {max(errors):.1e} of the peak, over {LARGEST_ERROR}")
    return max(errors)


def _input(model: Apnet2, batch: int, n_frames: int) -> Tensor:
    """Random numbers that look like those that the model gets."""
    values = np.random.default_rng(n_frames).normal(size=(batch, model.config.n_inputs, n_frames))
    return torch.from_numpy(values - 4 if model.config.input_features == "mel" else values).float()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporter's warnings, of operators that nothing here uses, and of names of files."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
