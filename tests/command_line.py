"""The `apnet2` command in the tests' own process, and files for it in an empty current folder."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch

from apnet2_tts_plugin import cli, store

RATE = 22050
HOP = 256


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current folder, a data folder and a folder of bundled models for each test."""
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def model(tmp_path):
    """The tiny model as the bundled `apnet2`."""
    return tiny.save(tmp_path / "bundled" / "apnet2")


@pytest.fixture
def apnet2(capsys):
    """Run the command in this process: its status and what it wrote to stdout and stderr."""

    def run(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def tone(n_samples: int, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 220 * np.arange(n_samples) / rate)


def random_mel(n_frames: int = 20) -> np.ndarray:
    return np.random.default_rng(0).normal(-5, 2, (80, n_frames)).astype(np.float32)


def files(folder: Path) -> list[str]:
    """All files below `folder`, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def one_line(err: str) -> str:
    assert err.startswith("apnet2") and err.endswith("\n") and err.count("\n") == 1, err
    return err


def as_16_bit(waveform: torch.Tensor) -> np.ndarray:
    return np.round(waveform.clamp(-1, 1).numpy() * 32767)


def a_wav(samples=None, rate=RATE):
    soundfile.write("in.wav", tone(5000) if samples is None else samples, rate, subtype="FLOAT")
    return "in.wav"


def an_npy(array):
    np.save("in.npy", array, allow_pickle=True)
    return "in.npy"


def a_pt(content):
    torch.save(content, "in.pt")
    return "in.pt"


def a_file(name, content=b"what is this"):
    Path(name).write_bytes(content)
    return name


def cut_in_half(name):
    path = Path(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return name
