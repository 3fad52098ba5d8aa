"""A mel that comes in pieces is vocoded as if it came as a whole."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch

from apnet2_tts_plugin import load_model, vocode
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.network.generator import Generator
from apnet2_tts_plugin.network.streaming import GeneratorStream, WindowStream, open_stream
from apnet2_tts_plugin.vocode import FileVocoder
from apnet2_tts_plugin.weights import store

SPEECH = Path(__file__).parent.parent / "recipes" / "ljspeech" / "sample.flac"
HOP = 256
SMALL = dict(channels=16, hidden_channels=32, blocks=2, response_norm="none", look_ahead=4)


def streamable(look_ahead=4, **changes):
    sizes = SMALL | {"look_ahead": look_ahead}
    networks = dict(amplitude=PredictorConfig(**sizes), phase=PredictorConfig(**sizes))
    if changes.get("amplitude_start"):
        networks["amplitude"] = PredictorConfig(**sizes | {"channels": 513})
    if changes.get("phase_start"):
        networks["pitch"] = PredictorConfig(**sizes)
    return tiny.model(**networks | changes)


def random_mel(n_frames, n_items=1):
    return 2 * torch.randn(n_items, 80, n_frames, generator=torch.Generator().manual_seed(1)) - 4


def cut(mel, sizes):
    """Pieces of these many frames in turn, until there are no more."""
    pieces, start = [], 0
    while start < mel.shape[2]:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(mel[:, :, start : start + size])
        start += size
    return pieces


@pytest.mark.parametrize("sizes", [[1], [7, 1, 30], [0, 13], [1000]], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"phase_start": "pitch", "amplitude_start": "pseudo_inverse", "consistency_iterations": 1},
        {"phase_start": "pitch", "consistency_iterations": 3, "look_ahead": 0},
        {"phase_start": "pitch", "consistency_iterations": 2, "consistency_target": "mel", "look_ahead": 2},
        {"consistency_iterations": 0},
        {"amplitude_start": "pseudo_inverse", "look_ahead": -1},
    ],
    ids=str,
)
def test_pieces_equal_the_whole(settings, sizes):
    model = streamable(**settings)
    mel = random_mel(90, n_items=2)
    if "phase_start" in settings:
        tiny.half_voiced(model, mel)
    whole = model.inference(mel)
    pieces = list(model.stream(cut(mel, sizes)))
    assert all(piece.shape[2] for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize("n_frames", [2, 3, 9, 10, 11])
def test_short_mels(n_frames):
    model = streamable(phase_start="pitch", consistency_iterations=1)
    mel = random_mel(n_frames)
    whole = model.inference(mel)
    streamed = torch.cat(list(model.stream(cut(mel, [2]))), dim=2)
    torch.testing.assert_close(streamed, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


@pytest.fixture
def threads(request):
    """So many of torch's, which otherwise has one in the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("size", "n_frames", "threads"), [(1, 150, 1), (8, 150, 1), (50, None, 1), (50, None, 2)], indirect=["threads"]
)
def test_the_bundled_model_on_speech(size, n_frames, threads):
    """The pitch of each frame is the same to the last bit, or phases would drift apart."""
    model = load_model(store.BUNDLED / "apnet2")
    waveform, _ = sf.read(SPEECH, dtype="float32")
    mel = model.log_mel(torch.from_numpy(waveform)[None])[:, :, :n_frames]
    whole = model.inference(mel)
    streamed = torch.cat(list(model.stream(mel.split(size, dim=2))), dim=2)
    torch.testing.assert_close(streamed, whole, atol=1e-4 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("settings", "look_ahead"),
    [
        ({"phase_start": "pitch", "consistency_iterations": 1}, 13),  # 4 + 4 for the phase, 3, 2 for the inverse STFT
        ({"phase_start": "pitch", "consistency_iterations": 0, "look_ahead": 1}, 4),
        ({"consistency_iterations": 2}, 12),
    ],
    ids=str,
)
def test_each_frame_brings_a_hop_after_the_look_ahead(settings, look_ahead):
    stream = open_stream(streamable(**settings).generator)
    heard = [stream.push(frame).shape[1] for frame in random_mel(20).split(1, dim=2)]
    assert heard == [0] * look_ahead + [HOP] * (20 - look_ahead)


@pytest.mark.parametrize("generator", ["apnet2", "apnet2-tiny", "preset:pitch", "preset:tiny"])
def test_the_bundled_models_and_their_presets_look_twelve_frames_ahead(generator):
    kind, _, preset = generator.partition(":")
    model = Apnet2(Apnet2Config.preset(preset)).eval() if preset else load_model(store.BUNDLED / kind)
    stream = open_stream(model.generator)
    assert isinstance(stream, GeneratorStream)
    assert [stream.push(frame).shape[1] for frame in random_mel(14).split(1, dim=2)] == [0] * 12 + [HOP] * 2


@pytest.mark.parametrize("pools", [False, True])
def test_memory_does_not_grow(pools):
    model = tiny.model(pools=True) if pools else streamable(phase_start="pitch", consistency_iterations=1)
    stream, held = open_stream(model.generator), []
    for _ in range(12):
        stream.push(random_mel(160))
        held.append(n_held(stream))
    assert 0 < max(held[6:]) <= max(held[:6])


def n_held(value):
    """Numbers in the tensors that a stream holds, those of the networks left out."""
    if torch.is_tensor(value):
        return value.numel()
    if isinstance(value, list | tuple):
        return sum(n_held(item) for item in value)
    if type(value).__module__.endswith("network.streaming"):
        return sum(n_held(item) for item in vars(value).values())
    return 0


def test_a_model_that_pools_vocodes_windows():
    model = tiny.model(pools=True)
    assert isinstance(open_stream(model.generator), WindowStream)
    mel = random_mel(500)
    whole = model.inference(mel)
    streamed = [torch.cat(list(model.stream(cut(mel, sizes))), dim=2) for sizes in ([1000], [33], [1])]
    for waveform in streamed[1:]:
        torch.testing.assert_close(waveform, streamed[0], atol=1e-5 * whole.abs().max().item(), rtol=0)
    assert streamed[0].shape == whole.shape
    error = (streamed[0] - whole).square().mean() / whole.square().mean()
    assert 1e-8 < error < 0.03
    short = mel[:, :, :100]
    assert torch.equal(torch.cat(list(model.stream([short])), dim=2), model.inference(short))


@pytest.mark.parametrize("n_samples", [HOP * 3, HOP * 7, HOP * 41, HOP * 41 + 100])
@pytest.mark.parametrize("n_frames", [1, 4, 13, 100])
def test_mel_in_pieces(n_samples, n_frames):
    log_mel = tiny.model().log_mel
    waveform = torch.randn(n_samples, generator=torch.Generator().manual_seed(0))
    whole = log_mel(waveform[None])
    pieces = list(log_mel.pieces(waveform, n_frames))
    assert all(piece.shape[2] == n_frames for piece in pieces[:-1])
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".wav", ".npy"])
def test_long_files_are_vocoded_in_pieces(suffix, tmp_path, monkeypatch):
    model = load_model(store.BUNDLED / "apnet2")
    speech, _ = sf.read(SPEECH, dtype="float32", frames=50_000)
    file, long_mel = tmp_path / f"in{suffix}", model.log_mel(speech[None])
    sf.write(file, speech, 22050, subtype="FLOAT") if suffix == ".wav" else np.save(file, long_mel[0].numpy())
    whole = FileVocoder(model).one(file)
    monkeypatch.setattr(vocode, "PIECE", 60)
    lengths = []
    monkeypatch.setattr(Generator, "inference", lambda *_: lengths.append("the whole"))
    pieces = FileVocoder(model).one(file)
    assert not lengths and len(whole) == (50_000 if suffix == ".wav" else 50_000 // HOP * HOP)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


def test_mistakes():
    model = streamable()
    with pytest.raises(DataError, match="1 frames, expected at least 2"):
        list(model.stream([random_mel(1)]))
    with pytest.raises(DataError, match="expected at least 2"):
        list(model.stream([]))
    with pytest.raises(DataError, match=r"\(batch, 80, frames\)"):
        list(model.stream([random_mel(4)[:, :40]]))
