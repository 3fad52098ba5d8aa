"""APNet2 as the decoder of a VITS: same latents, right lengths, an untouched VITS, and latents to train with."""

import numpy as np
import pytest
import soundfile as sf
import torch
from golden_weights import golden_waveform
from small_run import spoil_middle
from TTS.tts.models.vits import Vits
from vits_models import CHANNELS, HOP, SAMPLE_RATE, SPEAKER_CHANNELS, SPEAKERS, make_vits, make_vocoder, save_vits

from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.errors import Apnet2Error, DataError, FinetuningError, PairingError
from apnet2_tts_plugin.finetuning.latents import encode, load_encoder, write_latents
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.pairing import vits as decoding
from apnet2_tts_plugin.pairing.vits import LatentDecoder, mismatch, vocoder_latent, with_decoder
from apnet2_tts_plugin.training.corpus import usable
from apnet2_tts_plugin.training.source import SOURCE_NAME, note_source

SENTENCE = torch.arange(3, 15)[None]


@pytest.fixture
def vits() -> Vits:
    return make_vits()


def decoded(model: Vits, tokens: torch.Tensor, aux_input: dict | None = None) -> tuple[dict, dict]:
    """What `inference` gives, and the arguments that its decoder got."""
    calls = []
    hook = model.waveform_decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append({"z": args[0], **kwargs}), with_kwargs=True
    )
    outputs = model.inference(tokens, aux_input)
    hook.remove()
    (call,) = calls
    return outputs, call


def with_vocoder(vits: Vits, vocoder: Apnet2) -> Vits:
    return with_decoder(vits, LatentDecoder(vocoder))


def state_of(model: torch.nn.Module) -> dict:
    tensors = {name: (tensor.data_ptr(), tensor.sum().item()) for name, tensor in model.state_dict().items()}
    return {"modules": dict(model.named_modules()), "tensors": tensors, "attributes": set(vars(model))}


@pytest.mark.parametrize("n_frames", [1, 2, 50])
def test_a_latent_becomes_whole_hops_of_sound(n_frames):
    waveform = LatentDecoder(make_vocoder())(torch.randn(2, CHANNELS, n_frames))
    assert waveform.shape == (2, 1, n_frames * HOP) and waveform.dtype == torch.float32


def test_sound_that_is_not_finite_is_refused():
    vocoder = make_vocoder()
    torch.nn.init.constant_(vocoder.generator.amplitude.output_conv.bias, torch.nan)
    with pytest.raises(PairingError, match="the vocoder gave NaN or infinite samples"):
        LatentDecoder(vocoder)(torch.randn(1, CHANNELS, 5))


def test_the_last_frame_is_taken_twice_and_the_speaker_is_in_every_frame():
    z, g = torch.randn(2, 3, 5), torch.randn(2, 4, 1)
    assert torch.equal(vocoder_latent(z), torch.cat([z, z[:, :, -1:]], dim=2))
    assert torch.equal(vocoder_latent(z, g), torch.cat([vocoder_latent(z), g.repeat(1, 1, 6)], dim=1))


@pytest.mark.parametrize("speaker", [None, 0, 1])
def test_the_vocoder_gets_what_the_own_decoder_would_get(speaker):
    has_speakers = speaker is not None
    vits = make_vits(speakers=SPEAKERS if has_speakers else None)
    vocoder = make_vocoder(speaker_channels=SPEAKER_CHANNELS if has_speakers else 0)
    aux_input = {"speaker_ids": torch.tensor([speaker])} if has_speakers else None
    own, call = decoded(vits, SENTENCE, aux_input)
    latent = call["z"]
    assert torch.equal(latent, own["z"] * own["y_mask"])
    if has_speakers:
        assert torch.equal(call["g"][0, :, 0], vits.emb_g.weight[speaker])
        latent = torch.cat([latent, call["g"].expand(-1, -1, latent.shape[2])], dim=1)
    outputs, _ = decoded(with_vocoder(vits, vocoder), SENTENCE, aux_input)
    assert torch.equal(outputs["model_outputs"], vocoder.inference(torch.cat([latent, latent[:, :, -1:]], dim=2)))
    assert outputs["model_outputs"].shape == own["model_outputs"].shape == (1, 1, latent.shape[2] * HOP)
    assert outputs["model_outputs"].abs().max() > 1e-3


def test_voices_are_converted():
    vits, vocoder = make_vits(speakers=SPEAKERS), make_vocoder(speaker_channels=SPEAKER_CHANNELS)
    spectrogram, lengths = torch.rand(1, 513, 30), torch.tensor([30])
    waveforms = []
    for target in (0, 1):
        torch.manual_seed(0)
        waveforms.append(with_vocoder(vits, vocoder).inference_voice_conversion(spectrogram, lengths, 0, target)[0])
        assert waveforms[-1].shape == (1, 1, 30 * HOP)
    assert (waveforms[0] - waveforms[1]).abs().max() > 1e-3


def test_items_of_a_batch_sound_as_they_would_alone():
    decoder = LatentDecoder(make_vocoder(speaker_channels=4))
    z, g = torch.randn(3, CHANNELS, 40), torch.randn(3, 4, 1)
    lengths = [40, 1, 25]
    for item, length in zip(z, lengths, strict=True):
        item[:, length:] = 0
    batch = decoder(z, g)
    for i, length in enumerate(lengths):
        alone = decoder(z[i : i + 1, :, :length], g[i : i + 1])
        torch.testing.assert_close(batch[i, :, : length * HOP], alone[0], atol=1e-5, rtol=1e-4)
        assert not batch[i, :, length * HOP :].any()


def test_the_vits_stays_as_it_is(vits):
    before, class_before = state_of(vits), type(vits)
    (expected, _), vocoder = decoded(vits, SENTENCE), make_vocoder()
    model = with_vocoder(vits, vocoder)
    decoded(model, SENTENCE)
    assert state_of(vits) == before and type(vits) is type(model) is class_before
    again, _ = decoded(vits, SENTENCE)
    assert torch.equal(again["model_outputs"], expected["model_outputs"])
    with pytest.raises(ValueError, match=r"latent of shape \(1, 32, 49\), expected \(batch, 48, frames\)"):
        decoded(with_vocoder(vits, make_vocoder(speaker_channels=SPEAKER_CHANNELS)), SENTENCE)
    assert state_of(vits) == before


def test_the_vocoder_stays_its_owners(vits):
    vocoder = make_vocoder()
    model = with_vocoder(vits, vocoder)
    assert not [name for name in model.state_dict() if name.startswith("waveform_decoder")]
    assert model.state_dict().keys() < vits.state_dict().keys()
    model.double()
    assert {p.dtype for p in vocoder.parameters()} == {torch.float32}
    assert model.text_encoder is vits.text_encoder  # which is shared, and double now as well
    vits.float()


def plain_posterior(vits: Vits, waveform: np.ndarray, g: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Mean and log scale (C, T) of a recording, from a spectrogram that is written out here."""
    padded = np.pad(waveform, (1024 - HOP) // 2, mode="reflect")
    window = torch.hann_window(1024).numpy()
    starts = range(0, len(padded) - 1024 + 1, HOP)
    frames = np.stack([np.abs(np.fft.rfft(padded[start : start + 1024] * window)) for start in starts], axis=1)
    spectrogram = torch.from_numpy(np.sqrt(frames**2 + 1e-6).astype(np.float32))[None]
    encoder = vits.posterior_encoder
    with torch.inference_mode():
        hidden = encoder.enc(encoder.pre(spectrogram), torch.ones(1, 1, spectrogram.shape[2]), g=g)
        return encoder.proj(hidden)[0].chunk(2)


@pytest.mark.parametrize("n_samples", [30000, 30000 // HOP * HOP, 1024])
@pytest.mark.parametrize("speakers", [None, SPEAKERS])
def test_latents_are_samples_of_the_posterior(n_samples, speakers):
    vits = make_vits(speakers=speakers)
    waveform = golden_waveform(n_samples, seed=1)
    g = vits.emb_g.weight[1][None, :, None].detach() if speakers else None
    mean, log_scale = plain_posterior(vits, waveform, g)
    latent = encode(vits, waveform, g, torch.Generator().manual_seed(7))
    n_frames = n_samples // HOP
    assert latent.shape == (CHANNELS + (SPEAKER_CHANNELS if speakers else 0), n_frames + 1)
    assert latent.dtype == np.float32
    noise = torch.randn(1, CHANNELS, n_frames, generator=torch.Generator().manual_seed(7))[0]
    torch.testing.assert_close(
        torch.from_numpy(latent[:CHANNELS, :-1]), mean + noise * log_scale.exp(), atol=1e-4, rtol=1e-3
    )
    np.testing.assert_array_equal(latent[:, -1], latent[:, -2])
    if speakers:
        np.testing.assert_array_equal(latent[CHANNELS:, 0], g[0, :, 0])


@pytest.mark.parametrize("n_samples", [1, 255, 256, 300, 700])
def test_the_shortest_recordings_have_latents(vits, n_samples):
    latent = encode(vits, golden_waveform(1000, seed=1)[:n_samples])
    assert latent.shape == (CHANNELS, n_samples // HOP + 1) and np.isfinite(latent).all()


@pytest.mark.parametrize(
    ("interpolate_z", "rates", "hop_length"), [(True, [8, 8, 2, 2], 256), (False, [8, 8, 4, 2], 512)]
)
@pytest.mark.parametrize("n_samples", [256 * 100, 256 * 101, 256 * 101 + 255])
def test_the_encoder_may_have_a_lower_rate(interpolate_z, rates, hop_length, n_samples):
    kernels = [2 * rate for rate in rates]
    settings = dict(upsample_rates_decoder=rates, upsample_kernel_sizes_decoder=kernels, interpolate_z=interpolate_z)
    vits = make_vits(encoder_sample_rate=SAMPLE_RATE // 2, **settings)
    assert decoding.latent_hop(vits.config) == hop_length
    latent = encode(vits, golden_waveform(n_samples, seed=1))
    assert latent.shape == (CHANNELS, n_samples // hop_length + 1) and np.isfinite(latent).all()


@pytest.mark.parametrize(
    ("speakers", "shape", "message"),
    [
        (SPEAKERS, None, r"embedding of shape None, expected \(1, 16, 1\)"),
        (None, (1, 4, 1), r"embedding of shape \(1, 4, 1\), expected None"),
    ],
)
def test_an_embedding_must_fit(speakers, shape, message):
    speaker = None if shape is None else torch.zeros(shape)
    with pytest.raises(FinetuningError, match=f"speaker: {message}"):
        encode(make_vits(speakers=speakers), golden_waveform(3000, seed=1), speaker)


def test_what_does_not_fit_is_named_with_both_values():
    single, several = make_vits().config, make_vits(speakers=SPEAKERS).config
    assert mismatch(single, make_vocoder().config) == []
    assert mismatch(several, make_vocoder(speaker_channels=SPEAKER_CHANNELS).config) == []
    assert mismatch(several, make_vocoder().config) == [
        "speaker_channels: 0, expected the 16 speaker channels of the VITS"
    ]
    other = Apnet2Config(input_features="latent")
    other.audio.sample_rate, other.audio.hop_length = 24000, 300
    assert mismatch(single, other) == [
        "latent_channels: 192, expected the 32 latent channels of the VITS",
        "audio.sample_rate: 24000, expected the 22050 Hz of the VITS",
        "audio.hop_length: 300, expected the 256 samples to a frame of the VITS",
    ]
    several.model_args.use_d_vector_file, several.model_args.d_vector_dim = True, 512
    assert decoding.speaker_channels(several) == 512


@pytest.fixture
def corpus(tmp_path):
    """Two recordings, one of them in a folder of its own."""
    for name, n_samples in (("a", 30000), ("deep/b", 20000)):
        path = tmp_path / "wavs" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, golden_waveform(n_samples, seed=1), SAMPLE_RATE, subtype="FLOAT")
    return tmp_path


def write(vits, corpus) -> dict[str, int]:
    """Write the latents; the names of the files and when they were written."""
    wavs, folder = corpus / "wavs", corpus / "latents"
    write_latents(vits, usable(find_audio(wavs)), wavs, folder)
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


def test_a_corpus_gets_its_latents_once(vits, corpus):
    times = write(vits, corpus)
    assert times.keys() == {"a.npy", "deep/b.npy"}
    assert write(vits, corpus) == times
    a, b = (np.load(corpus / "latents" / name) for name in sorted(times))
    (corpus / "latents" / "a.npy").unlink()
    torch.manual_seed(99)
    assert write(vits, corpus)["deep/b.npy"] == times["deep/b.npy"]
    np.testing.assert_array_equal(np.load(corpus / "latents" / "a.npy"), a)  # the same noise again
    mean, log_scale = plain_posterior(vits, golden_waveform(30000, seed=1))
    noise = (torch.from_numpy(a[:, :-1]) - mean) / log_scale.exp()
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    assert not np.allclose(a[:, :60], b[:, :60], atol=0.1)  # the recordings begin alike, their noise does not


def test_batches_have_latents_beside_their_waveforms(vits, corpus):
    write(vits, corpus)
    paths = dict(data_path=str(corpus / "wavs"), feature_path=str(corpus / "latents"))
    model = make_vocoder(**paths, eval_split_size=1, batch_size=1, seq_len=HOP * 150, num_loader_workers=0)
    (batch,) = model.get_data_loader(model.config, is_eval=False)
    latent, waveform = np.load(corpus / "latents" / "a.npy"), golden_waveform(30000, seed=1)
    np.testing.assert_array_equal(batch["features"][0, :, :118], latent)
    np.testing.assert_array_equal(batch["waveform"].flatten()[: 117 * HOP], waveform[: 117 * HOP])
    assert batch["features"].shape == (1, CHANNELS, 151) and not batch["features"][:, :, 118:].any()  # no mel's silence


def test_latents_of_others_are_not_mixed_in(vits, corpus):
    folder = corpus / "latents"

    def refused(what):
        return pytest.raises(DataError, match=f"{folder}: has latents of another {what}, see source.json in it")

    note_source(folder, {"checkpoint": "of an acoustic model"}, "mels")
    write(vits, corpus)  # there is nothing but the note yet
    with refused("posterior_encoder"):
        write(make_vits(seed=8), corpus)
    vits.config.audio.win_length = 512  # the same weights, another analysis
    with refused("settings"):
        write(vits, corpus)
    with pytest.raises(DataError, match=f"{folder}: has mels of another checkpoint, see source.json in it"):
        note_source(folder, {"checkpoint": "of an acoustic model"}, "mels")
    note = (folder / SOURCE_NAME).read_text()
    (folder / SOURCE_NAME).write_text(note[:-1])
    with pytest.raises(DataError, match=r"source\.json: cannot be read \(.*; delete the folder it is in"):
        write(vits, corpus)


def test_recordings_without_a_latent_are_named_when_all_others_have_theirs(vits, corpus):
    sf.write(corpus / "wavs" / "a.wav", golden_waveform(30000, seed=1), SAMPLE_RATE)
    spoilt = spoil_middle(corpus / "wavs" / "a.wav")
    with pytest.raises(FinetuningError, match=r"wavs/a\.flac: no latent, for the reason in the log; mend or remove"):
        write(vits, corpus)
    spoilt.unlink()
    assert write(vits, corpus).keys() == {"deep/b.npy"}


def test_recordings_must_have_the_rate_of_the_vits(vits, corpus):
    sf.write(corpus / "wavs" / "a.wav", golden_waveform(30000, seed=1), 16000)
    with pytest.raises(FinetuningError, match=r"a\.wav: 16000 Hz, expected the 22050 Hz of the VITS"):
        write(vits, corpus)
    assert not (corpus / "latents").exists()


def test_the_posterior_encoder_is_loaded_alone(vits, tmp_path):
    folder, waveform = save_vits(vits, tmp_path / "vits"), golden_waveform(20000, seed=1)
    (folder / "speakers.pth").touch()  # no checkpoint
    latents = [
        encode(encoder, waveform, generator=torch.Generator().manual_seed(1))
        for encoder in (vits, load_encoder(folder), load_encoder(folder / "model_file.pth"))
    ]
    np.testing.assert_array_equal(latents[1:], [latents[0]] * 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model_file.pth").unlink(), "expected model.safetensors, .* found none"),
        (lambda folder: (folder / "other.pth").touch(), "found model_file.pth, other.pth; name the file"),
        (
            lambda folder: torch.save({"model": {}}, folder / "best_model.pth"),
            r"best_model\.pth: no posterior encoder of these sizes",
        ),
        (
            lambda folder: torch.save({"generator": {}}, folder / "best_model.pth"),
            r"best_model\.pth: no 'model' in it, expected a checkpoint of coqui's Trainer",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not a usable configuration"),
        (
            lambda folder: Apnet2Config().save_json(folder / "config.json"),
            r"config\.json: a configuration of 'apnet2', expected one of a VITS",
        ),
        (
            lambda folder: make_vits(speakers=SPEAKERS).config.save_json(folder / "config.json"),
            "a VITS of several speakers, expected one",
        ),
    ],
)
def test_other_models_have_no_latents(spoil, message, vits, tmp_path):
    folder = save_vits(vits, tmp_path / "vits")
    spoil(folder)
    with pytest.raises(Apnet2Error, match=message) as caught:
        load_encoder(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
