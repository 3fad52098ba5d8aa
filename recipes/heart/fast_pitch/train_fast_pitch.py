"""Train the FastPitch that ships with the plugin, from characters, without a phonemizer.

    python recipes/heart/fast_pitch/train_fast_pitch.py --corpus heart_corpus

coqui's own model, dataset and Trainer, but for one thing: an hour of speech does not show how English is spelled. So
the encoder learns it from texts whose pronunciation is known: a linear layer on it says for each character which
phonemes it stands for. The first steps train nothing else, and all others have it as one more loss. In use, characters
are all that the model is given.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from trainer import Trainer, TrainerArgs
from TTS.config import BaseAudioConfig
from TTS.config.shared_configs import BaseDatasetConfig
from TTS.tts.configs.fast_pitch_config import FastPitchConfig
from TTS.tts.configs.forward_tts_config import ForwardTTSArgs
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.datasets import load_tts_samples
from TTS.tts.models.forward_tts import ForwardTTS
from TTS.tts.utils.helpers import sequence_mask
from TTS.tts.utils.text.tokenizer import TTSTokenizer

HERE = Path(__file__).resolve().parent
CHARACTERS = CharactersConfig(
    characters_class="TTS.tts.utils.text.characters.Graphemes",
    pad="_",
    eos="~",
    bos="^",
    blank=None,
    characters="abcdefghijklmnopqrstuvwxyz",
    punctuations="!'\"(),-.:;? ",
)
# the vocoder's own mels, so that nothing is converted
AUDIO = BaseAudioConfig(
    sample_rate=22050,
    fft_size=1024,
    hop_length=256,
    win_length=1024,
    num_mels=80,
    mel_fmin=0.0,
    mel_fmax=8000.0,
    log_func="np.log",
    spec_gain=1,
    signal_norm=False,
    preemphasis=0.0,
    do_trim_silence=False,
    pitch_fmin=80.0,
    pitch_fmax=500.0,
)
MODEL = ForwardTTSArgs(
    hidden_channels=192,
    use_aligner=False,
    positional_encoding=False,  # the convolutions see it, and it would be most of a megabyte
    encoder_type="fftransformer",
    encoder_params={"hidden_channels_ffn": 576, "num_heads": 2, "num_layers": 4, "dropout_p": 0.1},
    decoder_type="residual_conv_bn",
    decoder_params={"kernel_size": 3, "dilations": [1, 2, 4, 8] * 2, "num_conv_blocks": 2, "num_res_blocks": 8},
    pitch_predictor_hidden_channels=192,
    duration_predictor_hidden_channels=192,
    detach_duration_predictor=True,
)
RAREST = 10  # pronunciations of a character that occur less often are not learned
IGNORED = -100  # the label that `cross_entropy` leaves out
TEXT_BATCH = 16  # texts of a step beside the speech; twice as many in the first steps
G2P_WEIGHT = 0.2


class Pronunciations:
    """Texts as token numbers, with the number of what each token says.

    Args:
        path: File of `prepare.py`.
        tokenizer: The model's.
    """

    def __init__(self, path: Path, tokenizer: TTSTokenizer) -> None:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        counts = Counter(label for _, labels in rows for label in labels)
        self.labels = sorted(label for label, count in counts.items() if count >= RAREST)
        numbers = {label: number for number, label in enumerate(self.labels)}
        known = set(CHARACTERS.characters + CHARACTERS.punctuations)
        self.items = []
        for text, labels in rows:
            if known.issuperset(text):
                targets = [IGNORED, *(numbers.get(label, IGNORED) for label in labels), IGNORED]
                self.items.append((torch.tensor(tokenizer.text_to_ids(text)), torch.tensor(targets)))

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens (count, N), their number for each text (count,), and labels (count, N)."""
        tokens, labels = zip(*random.sample(self.items, count), strict=True)
        lengths = torch.tensor([len(item) for item in tokens])
        return (
            pad_sequence(tokens, batch_first=True),
            lengths,
            pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        )


class SpellingForwardTTS(ForwardTTS):
    """FastPitch that also learns how characters are pronounced.

    Args:
        config: The model's.
        tokenizer: The model's.
        durations: Frames of each token, by the unique name of the file.
        pronunciations: What to learn.
        spelling_steps: How many steps learn nothing else.
        steps: All of them; then the learning rate has fallen to nothing.
    """

    def __init__(
        self,
        config: FastPitchConfig,
        tokenizer: TTSTokenizer,
        durations: dict[str, list[int]],
        pronunciations: Pronunciations,
        spelling_steps: int,
        steps: int,
    ) -> None:
        super().__init__(config, tokenizer=tokenizer)
        self.durations = durations
        self.pronunciations = pronunciations
        self.spelling_steps, self.steps, self.step = spelling_steps, steps, 0
        self.pronounce = nn.Linear(self.args.hidden_channels, len(pronunciations.labels))

    def format_batch(self, batch: dict) -> dict:
        """Add the durations: coqui's own way, by attention masks, gives them to the wrong files of the batch, because
        its `collate_fn` (0.28) sorts masks twice."""
        durations = [torch.tensor(self.durations[name], dtype=torch.float) for name in batch["audio_unique_names"]]
        return super().format_batch(batch) | {"durations": pad_sequence(durations, batch_first=True)}

    def spelling_loss(self, count: int) -> Tensor:
        """Cross entropy of what the characters of `count` texts say."""
        tokens, lengths, labels = (item.to(self.device) for item in self.pronunciations.draw(count))
        mask = sequence_mask(lengths, tokens.shape[1])[:, None].float()
        encoded, *_ = self._forward_encoder(tokens, mask)
        return F.cross_entropy(self.pronounce(encoded.transpose(1, 2)).float().flatten(0, 1), labels.flatten())

    def train_step(self, batch, criterion, optimizer_idx=None):
        """One step on texts, and after the first ones on speech as well."""
        if self.training and self.step < self.spelling_steps:
            loss = self.spelling_loss(2 * TEXT_BATCH)
            return {}, {"loss": loss, "loss_spelling": loss}
        outputs, losses = super().train_step(batch, criterion, optimizer_idx)
        if self.training:
            losses["loss_spelling"] = self.spelling_loss(TEXT_BATCH)
            losses["loss"] = losses["loss"] + G2P_WEIGHT * losses["loss_spelling"]
        return outputs, losses

    def train_log(self, *args, **kwargs) -> None:
        """Plot nothing: the first steps have no mel."""

    def on_train_step_start(self, trainer: Trainer) -> None:
        """Set the learning rate: up in 300 steps, then down along a cosine, for spelling and then for speech."""
        self.step = trainer.total_steps_done
        step, steps = self.step, self.spelling_steps
        if step >= steps:
            step, steps = step - steps, self.steps - steps
        fall = 0.5 * (1 + math.cos(math.pi * min(1, step / max(1, steps))))
        (optimizer,) = trainer.optimizer
        for group in optimizer.param_groups:
            group["lr"] = trainer.config.lr * min(1, (step + 1) / 300) * (0.02 + 0.98 * fall)


def make_config(args: argparse.Namespace) -> FastPitchConfig:
    """The configuration of a run."""
    corpus = args.corpus.resolve()
    dataset = BaseDatasetConfig(
        formatter="ljspeech",
        dataset_name="heart",
        language="en",
        path=str(corpus),
        meta_file_train="metadata.csv",
        meta_file_val="held_out.csv",
    )
    return FastPitchConfig(
        run_name="fast_pitch_heart",
        output_path=str(args.out),
        audio=AUDIO,
        datasets=[dataset],
        model_args=MODEL,
        characters=CHARACTERS,
        text_cleaner="english_cleaners",
        use_phonemes=False,
        enable_eos_bos_chars=True,
        f0_cache_path=str(corpus / "pitch"),
        batch_size=8,
        batch_group_size=8,
        eval_batch_size=16,
        num_loader_workers=args.num_loader_workers,
        num_eval_loader_workers=args.num_loader_workers,
        shuffle=True,
        max_text_len=200,
        min_audio_len=1,
        optimizer="AdamW",
        optimizer_params={"betas": [0.9, 0.99], "weight_decay": 0.01},
        lr=args.lr,
        lr_scheduler=None,
        grad_clip=1.0,
        spec_loss_type="l1",
        use_ssim_loss=False,
        mixed_precision=args.bf16,
        precision="bf16",
        run_eval=False,
        test_sentences=[],
        print_step=50,
        save_step=min(250, args.spelling_steps + args.steps),
        save_best_after=10**9,
        save_n_checkpoints=2,
    )


def train(args: argparse.Namespace) -> Path:
    """Train until the steps are done and return the folder of the run."""
    torch.set_num_threads(args.threads)
    config = make_config(args)
    tokenizer, config = TTSTokenizer.init_from_config(config)
    pronunciations = Pronunciations(args.corpus / "pronunciations.jsonl", tokenizer)
    durations = json.loads((args.corpus / "durations.json").read_text(encoding="utf-8"))
    steps = args.spelling_steps + args.steps
    model = SpellingForwardTTS(config, tokenizer, durations, pronunciations, args.spelling_steps, steps)
    samples, held_out = load_tts_samples(config)
    config.epochs = 1 + math.ceil(steps / (len(samples) / config.batch_size))  # a checkpoint comes one step late
    trainer = Trainer(
        TrainerArgs(continue_path=args.continue_path),
        config,
        output_path=str(args.out),
        model=model,
        train_samples=samples,
        eval_samples=held_out,
        parse_command_line_args=False,
    )
    trainer.fit()
    return Path(trainer.output_path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the FastPitch that ships with the plugin.")
    add = parser.add_argument
    add("--corpus", type=Path, default=HERE.parent / "heart_corpus", help="folder (default: %(default)s)")
    add("--out", type=Path, default=HERE, help="folder for the runs (default: %(default)s)")
    add("--continue_path", default="", help="folder of a run to go on with")
    add("--spelling_steps", type=int, default=1800, help="steps on texts alone (default: %(default)s)")
    add("--steps", type=int, default=4500, help="steps on speech (default: %(default)s)")
    add("--lr", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    add("--bf16", action="store_true", help="bfloat16, faster where the processor has it")
    add("--threads", type=int, default=1, help="threads of the processor (default: %(default)s)")
    add("--num_loader_workers", type=int, default=0, help="processes that read audio (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(parse_args())
