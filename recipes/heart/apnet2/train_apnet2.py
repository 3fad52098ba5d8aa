"""Fine-tune the bundled APNet2 on the mels of the bundled acoustic model.

python recipes/heart/apnet2/train_apnet2.py --data_path heart_corpus --tts_path fast_pitch

The acoustic model predicts each file at the teacher's own durations and pitch, so that the mel has the file's timing
and the model's mistakes. The vocoder learns from pairs of these mels and the files, and as many of the files' own mels,
lest it forget them.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from TTS.config import load_config
from TTS.tts.models import setup_model
from TTS.tts.models.base_tts import BaseTTS

from apnet2_tts_plugin import recipe
from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.finetuning.recipe import inherited, vocoder_config
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.training.features import write_array
from apnet2_tts_plugin.training.source import note_source, weights_digest
from apnet2_tts_plugin.weights import store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from prepare import pitch_name, unique_name  # noqa: E402

PAIRS = "vocoder"  # folder in the corpus


@dataclass
class Args(recipe.RecipeArgs):
    """The arguments of all recipes, and those of this one."""

    tts_path: str = field(default="", metadata={"help": "Folder of the acoustic model. Defaults to the bundled one."})
    restore_path: str = field(
        default="apnet2", metadata={"help": "Name or path of the APNet2 to start from. Defaults to apnet2."}
    )
    files: int = field(default=400, metadata={"help": "Files of the corpus to learn from. Defaults to 400."})
    batch_size: int = field(default=4, metadata={"help": "Segments of a batch, on each GPU. Defaults to 4."})
    segments_per_file: int = field(
        default=2, metadata={"help": "Segments of each recording between two evaluations. Defaults to 2."}
    )
    eval_split_size: int = field(
        default=10, metadata={"help": "Recordings held out, the last by name. Defaults to 10."}
    )
    steps: int = field(default=3000, metadata={"help": "Training steps, rounded up to whole epochs. Defaults to 3000."})
    lr: float = field(default=2e-4, metadata={"help": "Learning rate at the start. Defaults to 0.0002."})
    num_loader_workers: int = field(default=0, metadata={"help": "Processes that read audio. Defaults to 0."})


def load_acoustic_model(folder: Path) -> BaseTTS:
    """Load a FastPitch of coqui-tts from a folder."""
    config = load_config(folder / "config.json")
    model = setup_model(config)
    model.load_checkpoint(config, folder / store.ACOUSTIC_WEIGHTS, eval=True)
    return model


@torch.inference_mode()
def predict(model: BaseTTS, text: str, durations: list[int], pitch: np.ndarray) -> np.ndarray:
    """Return the mel (80, T) of a text at given durations and normalised pitch (T,)."""
    tokens = torch.tensor(model.tokenizer.text_to_ids(text))[None]
    frames = torch.tensor([sum(durations)])
    outputs = model(
        tokens,
        torch.tensor([tokens.shape[1]]),
        frames,
        dr=torch.tensor(durations, dtype=torch.float)[None],
        pitch=torch.from_numpy(pitch)[None, None],
    )
    return outputs["model_outputs"][0].T.numpy()


def make_pairs(corpus: Path, tts_path: Path, count: int, restore_path: str) -> Path:
    """Write `wavs` and `mels` to learn from, unless they are there, and return their folder.

    Raises:
        DataError: if there are mels of another acoustic model, or of another analysis than the vocoder's.
    """
    out = corpus / PAIRS
    for name in ("wavs", "mels"):
        (out / name).mkdir(parents=True, exist_ok=True)
    model, vocoder = load_acoustic_model(tts_path), load_model(restore_path)
    source = {"acoustic_model": weights_digest(model), "audio": vocoder.config.audio.to_dict()}
    note_source(out / "mels", source, "mels")
    rows = [line.split("|")[:2] for line in (corpus / "metadata.csv").read_text(encoding="utf-8").splitlines()][:count]
    durations = json.loads((corpus / "durations.json").read_text(encoding="utf-8"))
    statistics = np.load(corpus / "pitch" / "pitch_stats.npy", allow_pickle=True).item()
    for name, text in tqdm(rows, desc="mels"):
        if (out / "mels" / f"{name}.npy").exists():
            continue
        pitch = np.load(corpus / "pitch" / pitch_name(name))
        normalised = np.where(pitch > 0, (pitch - statistics["mean"]) / statistics["std"], 0).astype(np.float32)
        waveform, _ = soundfile.read(corpus / "wavs" / f"{name}.wav", dtype="float32")
        own = vocoder.log_mel(torch.from_numpy(waveform)[None])[0].numpy()
        mels = {f"{name}_own": own, name: predict(model, text, durations[unique_name(name)], normalised)}
        for pair, mel in mels.items():
            wav = out / "wavs" / f"{pair}.wav"
            if not wav.exists():
                os.link(corpus / "wavs" / f"{name}.wav", wav)
            write_array(out / "mels" / f"{pair}.npy", mel)
    return out


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line."""
    corpus = HERE.parent / "heart_corpus"
    args = recipe.parse_args(Args(), "Fine-tune APNet2 on the mels of a FastPitch.", HERE, corpus, argv)
    args.tts_path = args.tts_path or str(store.acoustic_files(store.ACOUSTIC_MODEL)[0].parent)
    return args


def make_config(args: Args) -> Apnet2Config:
    """The configuration of a new run: that of the model it starts from, but for how it is trained."""
    source = vocoder_config(args.restore_path)
    pairs = make_pairs(Path(args.data_path), Path(args.tts_path), args.files, args.restore_path)
    args.data_path = str(pairs / "wavs")
    n_files = len(find_audio(args.data_path))
    settings = inherited(source) | recipe.run_settings(args, n_files) | recipe.cosine_schedule(args, n_files)
    settings["consistency_target"] = "amplitude"  # the mel of the acoustic model is what is to be mended, not kept
    return Apnet2Config(
        run_name="apnet2_heart",
        dataset="en/heart",
        feature_path=str(pairs / "mels"),
        steps_to_start_discriminator=source.steps_to_start_discriminator,
        **settings | dict(num_eval_loader_workers=0, save_step=500, save_n_checkpoints=2, eval_metrics=[]),
    )


def main(argv: list[str] | None = None) -> None:
    """Train until the steps are done."""
    recipe.train(parse_args(argv), make_config, "recipes/heart/README.md tells how to make the corpus.")


if __name__ == "__main__":
    main()
