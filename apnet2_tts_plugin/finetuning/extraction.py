"""What a vocoder is fine-tuned on, in files: recordings and the mels that an acoustic model makes of them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from torch import Tensor
from TTS.tts.models.base_tts import BaseTTS

from apnet2_tts_plugin.audio import write_wav
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.finetuning.teacher_forcing import Sample, force, load_utterance
from apnet2_tts_plugin.pairing.convert import Pairing
from apnet2_tts_plugin.training.features import skip_unusable, write_features
from apnet2_tts_plugin.weights.find import CONFIG_NAME


def extract(
    model: BaseTTS,
    samples: list[Sample],
    data_path: Path,
    out: Path,
    paired: Pairing,
    batch_size: int = 16,
) -> int:
    """Write what a vocoder is to be fine-tuned on: recordings below `out/wavs`, their mels below `out/mels`.

    The recording `data_path/a.wav` becomes `out/wavs/a.wav`, as the acoustic model heard it but at the vocoder's rate,
    and `out/mels/a.npy`, natural-log (n_mels, T), T = n // hop_length + 1 for its n samples. Samples that are done are
    not done again; those that cannot be used are named in the log and left out, and what was made of them before is
    removed.

    Args:
        model: The acoustic model, as `teacher_forcing.check_can_be_forced` allows.
        samples: What to do; several processes may each take a part.
        data_path: Folder with the recordings.
        out: Folder to write to; made if need be.
        paired: The model paired with the vocoder, see `pairing.convert.pair`.
        batch_size: Samples of about the same length that go through the model together.

    Returns:
        Number of samples left out.

    Raises:
        FinetuningError: if a speaker is none of the model's.
        OSError: if a recording or mel cannot be written.
    """
    by_path = {sample.path: sample for sample in samples}

    def compute(paths: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
        for batch in _batches([by_path[path] for path in paths], batch_size):
            for sample, output, waveform in _forced(model, batch):
                aligned = skip_unusable(sample.path, _aligned, paired, output, waveform)
                if aligned is not None:
                    mel, waveform = aligned
                    # as it is: normalised to a mean volume, it may go beyond [-1, 1]
                    wav = _wav(sample.path, data_path, out)
                    write_wav(wav, waveform, paired.audio.sample_rate, coding="FLOAT")
                    yield sample.path, mel  # written last: it stands for both

    left_out = write_features(list(by_path), data_path, out / "mels", compute)
    for path in left_out:
        _wav(path, data_path, out).unlink(missing_ok=True)
    return len(left_out)


def _wav(path: Path, data_path: Path, out: Path) -> Path:
    """Where the recording `path` goes."""
    return out / "wavs" / path.relative_to(data_path).with_suffix(".wav")


def _batches(samples: list[Sample], batch_size: int) -> list[list[Sample]]:
    samples = sorted(samples, key=lambda sample: len(sample.text))
    return [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]


def _forced(model: BaseTTS, samples: list[Sample]) -> Iterator[tuple[Sample, Tensor, np.ndarray]]:
    """Each sample that can be used, the model's output for it, and its recording."""
    loaded = [(sample, skip_unusable(sample.path, load_utterance, model, sample)) for sample in samples]
    loaded = [(sample, utterance) for sample, utterance in loaded if utterance is not None]
    if loaded:
        outputs = force(model, [utterance for _, utterance in loaded])
        for (sample, utterance), output in zip(loaded, outputs, strict=True):
            yield sample, output, utterance.waveform


def _aligned(paired: Pairing, output: Tensor, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vocoder's mel (n_mels, T) of a model's output, and the waveform of T frames at the vocoder's rate."""
    rate, hop_length = paired.audio.sample_rate, paired.audio.hop_length
    mel = paired.vocoder_input(output)[0].numpy()
    if paired.ap.sample_rate != rate:
        waveform = soxr.resample(waveform, paired.ap.sample_rate, rate)
    # with another hop, the frames of the one may end a little before those of the other
    n_frames = min(mel.shape[1], len(waveform) // hop_length + 1)
    return mel[:, :n_frames], waveform[: n_frames * hop_length - 1]


def mel_source(
    checkpoint: Path, samples: list[Sample], data_path: Path, vocoder_config: Apnet2Config
) -> dict[str, Any]:
    """What the mels of an acoustic model depend on: model, data and vocoder; see `source.note_source`."""
    settings = checkpoint.with_name(CONFIG_NAME).read_bytes()
    state = checkpoint.stat()
    texts = [[str(sample.path.relative_to(data_path)), sample.text, sample.speaker] for sample in samples]
    return {
        "checkpoint": [str(checkpoint.resolve()), state.st_size, state.st_mtime_ns],
        "config": hashlib.sha256(settings).hexdigest(),
        "data_path": str(data_path.resolve()),
        "metadata": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "audio": vocoder_config.audio.to_dict(),
    }
