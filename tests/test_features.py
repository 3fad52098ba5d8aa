"""Mels to learn from beside the audio: which belongs to which, what is refused, and that both are cut alike."""

import math

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
from golden_weights import golden_waveform

from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.network.spectra import MEL_FLOOR, LogMel
from apnet2_tts_plugin.training.corpus import usable
from apnet2_tts_plugin.training.data import Segments, Utterances, evaluation_loader
from apnet2_tts_plugin.training.features import with_features

RATE, HOP, N_MELS = 22050, 256, 80
LOG_MEL = LogMel(RATE, 1024, HOP, 1024, N_MELS, 0.0, 8000.0)


def analyse(waveform) -> np.ndarray:
    return LOG_MEL(torch.as_tensor(waveform, dtype=torch.float32)[None])[0].numpy()


def add(folder, name, n_samples=30000, extra_frames=0, rate=RATE):
    """Write `wavs/<name>.wav` and its mel `mels/<name>.npy`, with frames added to or cut from its end."""
    wav, npy = folder / "wavs" / f"{name}.wav", folder / "mels" / f"{name}.npy"
    for path in (wav, npy):
        path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(wav, golden_waveform(n_samples, seed=1), rate, subtype="FLOAT")
    mel = analyse(sf.read(wav, dtype="float32")[0])
    mel = np.pad(mel, ((0, 0), (0, max(extra_frames, 0))), mode="edge")
    np.save(npy, mel[:, : mel.shape[1] + min(extra_frames, 0)])
    return npy


def load(folder):
    wavs = folder / "wavs"
    return with_features(usable(find_audio(wavs)), wavs, folder / "mels", N_MELS, RATE, HOP)


def segments(folder):
    return Segments(load(folder), RATE, HOP, 8192, seed=0)


def test_mels_lie_as_the_audio_does_or_side_by_side(tmp_path):
    same, flat = add(tmp_path, "deep/a"), add(tmp_path, "deep/b.c")
    flat.rename(tmp_path / "mels" / "b.c.npy")
    add(tmp_path, "a")  # not that of deep/a.wav
    mels = {file.path.name: file.features for file in load(tmp_path) if file.path.parent.name == "deep"}
    assert mels == {"a.wav": same, "b.c.wav": tmp_path / "mels" / "b.c.npy"}


@pytest.mark.parametrize("dtype", ["float32", "float16", ">f8"])
def test_segments_are_cut_from_mel_and_audio_alike(tmp_path, dtype):
    npy = add(tmp_path, "a", n_samples=60000)
    np.save(npy, np.load(npy).astype(dtype))
    dataset = segments(tmp_path)
    starts = set()
    for epoch in range(40):
        item = dataset[epoch, 0]
        assert set(item) == {"waveform", "features", "path"} and item["path"].endswith("a.wav")
        assert item["waveform"].shape == (8192,) and item["features"].shape == (N_MELS, 33)
        assert item["waveform"].dtype == item["features"].dtype == torch.float32
        # a window reaches over two frames on either side
        tolerance = 0.01 if dtype == "float16" else 1e-4
        np.testing.assert_allclose(analyse(item["waveform"])[:, 2:-2], item["features"][:, 2:-2], atol=tolerance)
        starts.add(float(item["waveform"][0]))
    assert len(starts) > 30


@pytest.mark.parametrize("extra_frames", [-1, 0, 1])
def test_only_common_frames_are_taken(tmp_path, extra_frames):
    mel = np.load(add(tmp_path, "a", 8192 + 3 * HOP + 100, extra_frames))  # 36 frames are analysed, 33 are drawn
    waveform, _ = sf.read(tmp_path / "wavs" / "a.wav", dtype="float32")
    n_common = 35 if extra_frames == -1 else 36
    whole = Utterances(load(tmp_path), RATE, HOP, min_samples=8192)[0]
    np.testing.assert_array_equal(whole["features"], mel[:, :n_common])
    np.testing.assert_array_equal(whole["waveform"], waveform[: (n_common - 1) * HOP])
    dataset = segments(tmp_path)
    starts = set()
    for epoch in range(60):
        item = dataset[epoch, 0]
        (start,) = [f for f in range(5) if np.array_equal(mel[:, f : f + 33], item["features"])]
        np.testing.assert_array_equal(item["waveform"], waveform[start * HOP : start * HOP + 8192])
        starts.add(start)
    assert starts == set(range(n_common - 32))


@pytest.mark.parametrize(("n_samples", "n_frames"), [(200, 1), (256, 2), (5000, 20), (8191, 32), (8192, 33)])
def test_short_files_are_padded_behind(tmp_path, n_samples, n_frames):
    np.save(add(tmp_path, "a", 8192), np.full((N_MELS, n_frames), -1.0))
    sf.write(tmp_path / "wavs/a.wav", np.full(n_samples, 0.5), RATE, subtype="FLOAT")
    files = load(tmp_path)
    for item in (Segments(files, RATE, HOP, 8192, seed=0)[0, 0], Utterances(files, RATE, HOP, min_samples=8192)[0]):
        waveform, frames = item["waveform"], item["features"]
        assert waveform.shape == (8192,) and frames.shape == (N_MELS, 33) and frames.dtype == torch.float32
        end = (n_frames - 1) * HOP
        assert (waveform[:end] == 0.5).all() and not waveform[end:].any()
        assert (frames[:, :n_frames] == -1).all()
        torch.testing.assert_close(frames[:, n_frames:], torch.full((N_MELS, 33 - n_frames), math.log(MEL_FLOOR)))


def test_missing_mels_are_counted(tmp_path):
    for npy in [add(tmp_path, name) for name in ("deep/a", "deep/b", "deep/c")][1:]:
        npy.unlink()
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    wav, mels = tmp_path / "wavs" / "deep" / "b.wav", tmp_path / "mels"
    assert str(caught.value) == (
        f"{wav}: no mel in {mels / 'deep' / 'b.npy'} nor {mels / 'b.npy'}; 2 of 3 audio files have none"
    )


def empty_beside_the_shortest_audio(path):
    np.save(path, np.zeros((N_MELS, 0)))
    sf.write(path.parents[1] / "wavs" / "b.wav", np.full(200, 0.5), RATE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: np.save(path, np.load(path).T), r"mel of shape \(118, 80\), expected \(80, frames\); it is tran"),
        (lambda path: np.save(path, np.load(path)[None]), r"mel of shape \(1, 80, 118\), expected \(80, frames\)$"),
        (lambda path: np.save(path, np.load(path)[:40]), r"mel of shape \(40, 118\), expected \(80, frames\)$"),
        (lambda path: np.save(path, np.load(path).astype(int)), "mel of type int64, expected floating numbers"),
        (lambda path: np.save(path, np.load(path)[:, :116]), "mel of 116 frames, expected 118 for the 30000 samples"),
        (lambda path: np.save(path, np.zeros((80, 120))), "mel of 120 frames, expected 118 for the 30000 samples"),
        (empty_beside_the_shortest_audio, "mel of 0 frames, expected 1 for the 200 samples"),
        (lambda path: path.write_bytes(b""), r"cannot be read as a \.npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), r"cannot be read as a \.npy file"),
        (lambda path: np.save(path, np.array([[{}]], dtype=object)), r"cannot be read as a \.npy file"),
    ],
)
def test_mels_that_do_not_fit_are_refused(tmp_path, spoil, message):
    add(tmp_path, "a")
    bad = add(tmp_path, "b")
    spoil(bad)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value)


def test_audio_must_have_the_rate_of_its_mel(tmp_path):
    add(tmp_path, "a", rate=16000)
    with pytest.raises(DataError, match=r"a\.wav: 16000 Hz, expected 22050 Hz"):
        load(tmp_path)


def test_values_that_are_not_finite_are_found_on_reading(tmp_path, caplog):
    bad, good = add(tmp_path, "a"), add(tmp_path, "b")
    np.save(bad, np.where(np.arange(N_MELS)[:, None] == 3, np.nan, np.load(bad)))
    files = load(tmp_path)
    dataset = Segments(files, RATE, HOP, 8192, seed=0)
    assert dataset[0, 0]["path"].endswith("b.wav")
    held_out = evaluation_loader(tiny.config(), files).dataset
    assert [held_out[i]["path"] for i in range(len(held_out))] == [str(tmp_path / "wavs" / "b.wav")]
    reason = f"{bad}: has NaN or infinite values"
    assert caplog.messages == [f"Another file instead of {reason}", f"Left out of the evaluation: {reason}"]
    good.unlink()
    with pytest.raises(DataError, match="none of 2 audio files"):
        dataset[0, 0]
    assert "b.npy: cannot be read" in caplog.text
