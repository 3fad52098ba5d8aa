"""coqui's acoustic models, small, random and on disk as its Synthesizer loads them, and the settings to try them with.

Each takes letters as tokens, without a phonemizer, speaks for as many frames as `AcousticModel.frames` says, and gives
values around 6 in its lowest band to -6 in its highest, so that a normalised mel is clipped at both ends.

`python tests/acoustic_models.py` prints the table of `docs/acoustic_models.md`.
"""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from TTS.tts.configs.align_tts_config import AlignTTSArgs, AlignTTSConfig
from TTS.tts.configs.delightful_tts_config import DelightfulTtsArgs, DelightfulTTSConfig, VocoderConfig
from TTS.tts.configs.fast_pitch_config import FastPitchConfig
from TTS.tts.configs.fast_speech_config import FastSpeechConfig
from TTS.tts.configs.fastspeech2_config import Fastspeech2Config
from TTS.tts.configs.glow_tts_config import GlowTTSConfig
from TTS.tts.configs.neuralhmm_tts_config import NeuralhmmTTSConfig
from TTS.tts.configs.overflow_config import OverflowConfig
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.configs.speedy_speech_config import SpeedySpeechConfig
from TTS.tts.configs.tacotron2_config import Tacotron2Config
from TTS.tts.configs.tacotron_config import TacotronConfig
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models import setup_model

FRAMES_PER_TOKEN = 4
DECODER_STEPS = 6  # of the Tacotrons, which would not stop by themselves
HOP = 256  # of the models that make waveforms; it is built into them
SPEAKERS = ("anna", "bert")
D_VECTOR_SIZE = 512  # the only one that AlignTTS takes
MEL, LINEAR, WAVEFORM = "mel", "linear spectrogram", "waveform"
IDS, D_VECTORS = "speaker ids", "d-vectors"


@dataclass(frozen=True)
class AcousticModel:
    """What a model of coqui's is, and what it gives.

    Args:
        title: Its name for readers.
        config: Makes its configuration of the fields given, with small sizes.
        prepare: Fixes its durations and spreads its values.
        frames: Frames of a sentence of so many letters; for a waveform, of `HOP` samples.
        output: `MEL`, `LINEAR` or `WAVEFORM`.
        speakers: Kinds of speakers that it can have, besides a single one.
        shortest: Letters of the shortest sentence that coqui can speak with it.
        remark: What else a user should know.
    """

    title: str
    config: Callable
    prepare: Callable[[nn.Module], None]
    frames: Callable[[int], int] = lambda letters: FRAMES_PER_TOKEN * letters
    output: str = MEL
    speakers: tuple[str, ...] = (IDS, D_VECTORS)
    shortest: int = 1
    remark: str = ""


def build(name: str, folder: Path, speakers: str | None = None, **audio) -> Path:
    """Make the model `name` of `MODELS` in `folder`: `model_file.pth`, `config.json` and a file of its speakers.

    Args:
        name: Key of `MODELS`.
        folder: Where to, a new folder; it is returned again.
        speakers: `IDS` or `D_VECTORS` of `SPEAKERS`; None for a single speaker.
        audio: Audio settings that differ from the model's defaults.
    """
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    config = MODELS[name].config(**text_settings(), **_speaker_settings(speakers, folder))
    config.audio.do_trim_silence = False
    for key, value in audio.items():
        config.audio[key] = value
    _set_channels(config, MODELS[name].output)
    model = setup_model(config)
    with torch.no_grad():
        MODELS[name].prepare(model)
    return save(model, config, folder)


def save(model: nn.Module, config, folder: Path) -> Path:
    """Write the files of a model as the Trainer leaves them; `folder` again."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, folder / "model_file.pth")
    config.save_json(folder / "config.json")
    return folder


def text_settings() -> dict:
    """Settings for text without a phonemizer: its letters are the model's tokens."""
    characters = CharactersConfig(
        characters_class="TTS.tts.utils.text.characters.Graphemes",
        pad="_",
        eos="~",
        bos="^",
        blank="$",
        characters="abcdefghijklmnopqrstuvwxyz",
        punctuations=" ,.!?",
    )
    return dict(characters=characters, use_phonemes=False, text_cleaner="basic_cleaners", test_sentences=[])


def _speaker_settings(speakers: str | None, folder: Path) -> dict:
    path = folder / "speakers.pth"
    if speakers is None:
        return {}
    if speakers == IDS:
        torch.save({name: number for number, name in enumerate(SPEAKERS)}, path)
        return dict(use_speaker_embedding=True, speakers_file=str(path))
    vectors = {f"{name}.wav": {"name": name, "embedding": torch.randn(D_VECTOR_SIZE).tolist()} for name in SPEAKERS}
    torch.save(vectors, path)
    return dict(use_d_vector_file=True, d_vector_file=str(path), d_vector_dim=D_VECTOR_SIZE)


def _set_channels(config, output: str) -> None:
    """Give the sizes that follow from the audio settings, which coqui keeps twice, their values."""
    bins = config.audio.fft_size // 2 + 1
    for part in (config, config.model_args):
        if "out_channels" in part:
            part.out_channels = config.audio.num_mels if output == MEL else bins
        if "decoder_output_dim" in part:
            part.decoder_output_dim = config.audio.num_mels


def _glow_tts_config(**fields):
    return GlowTTSConfig(
        hidden_channels_enc=32,
        hidden_channels_dec=32,
        hidden_channels_dp=32,
        num_flow_blocks_dec=2,
        inference_noise_scale=0.0,
        encoder_params=dict(kernel_size=3, dropout_p=0.1, num_layers=1, num_heads=2, hidden_channels_ffn=32),
        **fields,
    )


def _prepare_glow_tts(model) -> None:
    _set_bias(model.encoder.duration_predictor.proj, math.log(1 + FRAMES_PER_TOKEN - 0.5))
    model.encoder.proj_m.weight.mul_(4)
    _spread_flow(model.decoder)


def _fft() -> dict:
    """Sizes of a feed-forward transformer."""
    return dict(hidden_channels_ffn=32, num_heads=1, num_layers=1, dropout_p=0.1)


def _forward_tts(title: str, make_config: Callable) -> AcousticModel:
    """FastPitch and its kin, which are feed-forward transformers on both sides."""

    def config(**fields):
        config = make_config(**fields)
        config.model_args.hidden_channels = 32
        config.model_args.encoder_params, config.model_args.decoder_params = _fft(), _fft()
        return config

    return AcousticModel(title, config, _prepare_forward_tts, shortest=2)


def _speedy_speech_config(**fields):
    config = SpeedySpeechConfig(**fields)
    config.model_args.hidden_channels = 32
    for params, dilations in ("encoder_params", [1, 2, 4]), ("decoder_params", [1, 2, 4, 8]):  # by default 4 times this
        config.model_args[params] |= dict(dilations=dilations, num_res_blocks=len(dilations))
    return config


def _prepare_forward_tts(model) -> None:
    _set_bias(model.duration_predictor.proj, math.log(1 + FRAMES_PER_TOKEN))
    _spread_convolutions(model.decoder.decoder.postnet)


def _align_tts_config(d_vector_dim: int = 0, **fields):
    args = AlignTTSArgs(
        hidden_channels=32,
        hidden_channels_dp=32 + d_vector_dim,
        encoder_params=_fft(),
        decoder_params=_fft(),
        use_d_vector_file=d_vector_dim > 0,
    )
    return AlignTTSConfig(model_args=args, **fields)


def _prepare_align_tts(model) -> None:
    _set_bias(model.duration_predictor.layers[-1], math.log(1 + FRAMES_PER_TOKEN))
    _spread_convolutions(model.decoder.decoder.postnet)


def _prepare_overflow(model) -> None:
    _vary_means(model)
    _spread_flow(model.decoder.glow_decoder)


def _prepare_neural_hmm(model) -> None:
    _vary_means(model)
    model.neural_hmm.output_net.parametermodel.last_layer.bias[: model.out_channels] = _spread(model.out_channels)


def _vary_means(model) -> None:
    """Let the HMM's means, which start flat, depend on the state."""
    nn.init.normal_(model.neural_hmm.output_net.parametermodel.last_layer.weight[: model.out_channels], std=0.5)


def _prepare_tacotron(model) -> None:
    model.decoder.stopnet.linear.bias.fill_(-10)
    model.last_linear.weight.mul_(10)
    model.last_linear.bias.copy_(_spread(model.out_channels))


def _prepare_tacotron2(model) -> None:
    model.decoder.stopnet[1].linear_layer.bias.fill_(-10)
    model.decoder.linear_projection.linear_layer.weight.mul_(4)
    model.decoder.linear_projection.linear_layer.bias.copy_(_spread(model.out_channels).tile(model.decoder.r_init))


def vits_config(d_vector_file: str | None = None, model_args: dict | None = None, **fields) -> VitsConfig:
    sizes = dict(
        hidden_channels=32,
        hidden_channels_ffn_text_encoder=32,
        num_layers_text_encoder=1,
        num_layers_posterior_encoder=1,
        num_layers_flow=1,
        upsample_initial_channel_decoder=32,
        use_sdp=False,
        init_discriminator=False,
        inference_noise_scale=0.0,
        d_vector_file=[d_vector_file] if d_vector_file else None,
    )
    speakers = ("use_speaker_embedding", "speakers_file", "use_d_vector_file", "d_vector_dim")
    sizes |= {name: fields[name] for name in speakers if name in fields}
    return VitsConfig(model_args=VitsArgs(**sizes | (model_args or {})), **fields)


def _prepare_vits(model) -> None:
    _set_bias(model.duration_predictor.proj, math.log(FRAMES_PER_TOKEN - 0.5))
    _make_loud(model.waveform_decoder)


def _delightful_tts_config(**fields):
    args = DelightfulTtsArgs(
        n_hidden_conformer_encoder=128,
        n_layers_conformer_encoder=1,
        n_heads_conformer_encoder=2,
        n_hidden_conformer_decoder=128,
        n_layers_conformer_decoder=1,
        n_heads_conformer_decoder=2,
        bottleneck_size_u_reference_encoder=128,
        ref_enc_filters_reference_encoder=[8] * 6,
        ref_enc_gru_size_reference_encoder=8,
        n_hidden_variance_adaptor=128,
        speaker_embedding_channels=16,
    )
    vocoder = VocoderConfig(upsample_initial_channel_decoder=32)
    return DelightfulTTSConfig(model_args=args, vocoder=vocoder, init_discriminator=False, **fields)


def _prepare_delightful_tts(model) -> None:
    _set_bias(model.acoustic_model.duration_predictor.linear_layer, math.log(1 + FRAMES_PER_TOKEN))
    _make_loud(model.waveform_decoder)


def _set_bias(projection: nn.Module, value: float) -> None:
    """Make a projection, such as the last of a duration predictor, give `value` for everything."""
    nn.init.zeros_(projection.weight)
    nn.init.constant_(projection.bias, value)


def _spread(channels: int) -> torch.Tensor:
    return torch.linspace(6, -6, channels)


def _spread_convolutions(postnet: nn.Module) -> None:
    last = postnet if isinstance(postnet, nn.Conv1d) else postnet[-1]
    last.weight.mul_(2)
    last.bias.copy_(_spread(len(last.bias)))


def _spread_flow(decoder: nn.Module) -> None:
    """Shift what a GlowTTS decoder gives, of which each step makes `num_squeeze` frames side by side."""
    bias = decoder.flows[0].bias
    bias.copy_(-_spread(decoder.in_channels).tile(decoder.num_squeeze).reshape(bias.shape))
    for coupling in decoder.flows[2::3]:
        nn.init.normal_(coupling.end.weight, std=0.1)  # zero at first, so that speakers would make no difference


def _make_loud(decoder: nn.Module) -> None:
    """Let a HiFi-GAN decoder give a waveform instead of a constant."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    nn.init.normal_(decoder.conv_pre.weight, std=1.0)
    nn.init.normal_(decoder.conv_post.weight, std=1.0)


def _tacotron_frames(letters: int) -> int:
    return 2 * DECODER_STEPS


TACOTRON2 = partial(Tacotron2Config, max_decoder_steps=DECODER_STEPS)
# a neural HMM that stays in each of a letter's two states for two frames, whatever it says there
HMM_SIZES = dict(
    state_per_phone=2,
    encoder_in_out_features=32,
    prenet_dim=32,
    memory_rnn_dim=32,
    outputnet_size=[32],
    sampling_temp=0,
    prenet_dropout_at_inference=False,
    flat_start_params=dict(mean=0.0, std=1.0, transition_p=0.4),
)
OVERFLOW = partial(OverflowConfig, hidden_channels_dec=32, num_flow_blocks_dec=2, num_block_layers=1, **HMM_SIZES)
HMM_REMARK = "coqui-tts cuts the model's mean and standard deviation to whole numbers when it loads them"

MODELS = {
    "tacotron": AcousticModel(
        "Tacotron",
        partial(TacotronConfig, max_decoder_steps=DECODER_STEPS - 1),  # it stops one step later than it is told to
        _prepare_tacotron,
        _tacotron_frames,
        output=LINEAR,
        remark="coqui-tts fails if it was trained with mean-variance statistics",
    ),
    "tacotron2": AcousticModel("Tacotron 2", TACOTRON2, _prepare_tacotron2, _tacotron_frames),
    "tacotron2_ddc": AcousticModel(
        "Tacotron 2 with double decoder consistency",
        partial(TACOTRON2, double_decoder_consistency=True),
        _prepare_tacotron2,
        _tacotron_frames,
    ),
    "glow_tts": AcousticModel(
        "GlowTTS", _glow_tts_config, _prepare_glow_tts, remark="a sentence of a single frame fails in coqui-tts"
    ),
    "fast_pitch": _forward_tts("FastPitch", FastPitchConfig),
    "fast_speech": _forward_tts("FastSpeech", FastSpeechConfig),
    "fastspeech2": _forward_tts("FastSpeech 2", Fastspeech2Config),
    "speedy_speech": AcousticModel("SpeedySpeech", _speedy_speech_config, _prepare_forward_tts, shortest=13),
    "align_tts": AcousticModel(
        "AlignTTS",
        _align_tts_config,
        _prepare_align_tts,
        speakers=(D_VECTORS,),
        shortest=4,
        remark="coqui-tts cannot make it with speaker ids",
    ),
    "overflow": AcousticModel("OverFlow", OVERFLOW, _prepare_overflow, speakers=(), remark=HMM_REMARK),
    "neural_hmm": AcousticModel(
        "Neural HMM", partial(NeuralhmmTTSConfig, **HMM_SIZES), _prepare_neural_hmm, speakers=(), remark=HMM_REMARK
    ),
    "delightful_tts": AcousticModel(
        "DelightfulTTS", _delightful_tts_config, _prepare_delightful_tts, output=WAVEFORM, shortest=2
    ),
    "vits": AcousticModel(
        "VITS",
        vits_config,
        _prepare_vits,
        lambda letters: FRAMES_PER_TOKEN * (2 * letters + 1),  # a blank around each letter
        output=WAVEFORM,
    ),
}

MILLISECONDS = dict(hop_length=None, win_length=None, frame_shift_ms=10, frame_length_ms=50)  # as old configs have it
# Settings of `build`, and a vocoder's sample rate; each value differs from the model's own settings as it says.
ANALYSES = {
    "our bands": dict(mel_fmax=8000.0),
    "full band": {},
    "16 kHz": dict(sample_rate=16000, mel_fmin=50.0, mel_fmax=7600.0, **MILLISECONDS),
    "24 kHz": dict(sample_rate=24000, fft_size=2048, hop_length=300, win_length=1200, num_mels=100, mel_fmax=12000.0),
    "44.1 kHz": dict(sample_rate=44100, fft_size=2048, hop_length=512, win_length=2048),
}
LOGARITHMS = {
    "log10": {},
    "ln": dict(log_func="np.log", spec_gain=1, min_level_db=-12, ref_level_db=1),
    "no logarithm": dict(do_amp_to_db_mel=False, do_amp_to_db_linear=False, min_level_db=-2, ref_level_db=2),
}
STATISTICS = "mean and variance"
NORMALISATIONS = {
    "symmetric": {},
    "symmetric, not clipped": dict(clip_norm=False, max_norm=5.0),
    "positive": dict(symmetric_norm=False, max_norm=2.0),
    STATISTICS: {},  # of a file, which a test writes
    "not normalised": dict(signal_norm=False),
}
PREEMPHASES = {"no preemphasis": {}, "preemphasis": dict(preemphasis=0.97)}
VOCODER_RATES = (22050, 16000, 44100)
AXES = {
    "model": [name for name, model in MODELS.items() if model.output != WAVEFORM],
    "speakers": [None, IDS, D_VECTORS],
    "analysis": list(ANALYSES),
    "logarithm": list(LOGARITHMS),
    "normalisation": list(NORMALISATIONS),
    "preemphasis": list(PREEMPHASES),
    "vocoder_rate": list(VOCODER_RATES),
}
EXACT = {"speakers": None, "analysis": "our bands", "preemphasis": "no preemphasis", "vocoder_rate": 22050}


def spectrogram_cases() -> list[dict]:
    """Cases for the models that give spectrograms.

    First all scales in `EXACT` settings, one model after the other. Then each two values of two axes meet in a case,
    if a model can have both: one starts from two that have not met yet, and is that of 30 random ones in which most
    others do.
    """
    models = itertools.cycle([name for name in AXES["model"] if not name.startswith("tacotron")])  # the small ones
    cases = [
        {"model": next(models), **EXACT, "logarithm": logarithm, "normalisation": normalisation}
        for logarithm, normalisation in itertools.product(LOGARITHMS, NORMALISATIONS)
    ]
    generator = random.Random(0)
    missing = [
        {name: first, other: second}
        for name, other in itertools.combinations(AXES, 2)
        for first, second in itertools.product(AXES[name], AXES[other])
        if not any({name: first, other: second}.items() <= case.items() for case in cases)
    ]
    while missing:
        pair = missing.pop(0)
        tries = [{name: generator.choice(values) for name, values in AXES.items()} | pair for _ in range(30)]
        if possible := [case for case in tries if is_possible(case)]:
            best = max(possible, key=lambda case: sum(pair.items() <= case.items() for pair in missing))
            missing = [pair for pair in missing if not pair.items() <= best.items()]
            cases.append(best)
    return cases


def is_possible(case: dict) -> bool:
    """Whether coqui can run this case."""
    model = MODELS[case["model"]]
    has_speakers = case["speakers"] is None or case["speakers"] in model.speakers
    return has_speakers and not (model.output == LINEAR and case["normalisation"] == STATISTICS)


def waveform_cases() -> list[dict]:
    """Cases for the models that give waveforms, whose other settings do not reach the vocoder."""
    rates = [(22050, 22050), (16000, 22050), (44100, 22050), (24000, 16000), (22050, 44100)]
    models = [name for name, model in MODELS.items() if model.output == WAVEFORM]
    return [
        {"model": name, "speakers": kind, "sample_rate": sample_rate, "vocoder_rate": vocoder_rate}
        for name in models
        for kind, (sample_rate, vocoder_rate) in zip(itertools.cycle([None, IDS, D_VECTORS]), rates, strict=False)
    ]


def table() -> str:
    """The models in Markdown: what each gives, what it is tested with, what to know of it."""
    lines = ["| Model | Output | Tested with | Remarks |", "|---|---|---|---|"]
    cases = spectrogram_cases() + waveform_cases()
    for name, model in MODELS.items():
        number = sum(case["model"] == name for case in cases)
        tested = ", ".join(["one speaker", *model.speakers]) + f"; {number} combinations of settings"
        lines.append(f"| {model.title} | {model.output} | {tested} | {_remarks(model)} |")
    return "\n".join(lines)


def _remarks(model: AcousticModel) -> str:
    shortest = f"sentences of fewer than {model.shortest} letters fail in coqui-tts" if model.shortest > 1 else ""
    return "; ".join(filter(None, [shortest, model.remark]))


if __name__ == "__main__":
    print(table())
