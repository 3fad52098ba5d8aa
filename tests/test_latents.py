"""APNet2 as the decoder of a VITS: same latents, right lengths, an untouched VITS, and latents to train with."""

import threading

import numpy as np
import pytest
import soundfile as sf
import torch
import vits_models
from golden_weights import golden_waveform
from TTS.tts.models.vits import Vits
from vits_models import CHANNELS, HOP, SAMPLE_RATE, SPEAKER_CHANNELS, SPEAKERS, make_vits, make_vocoder

from apnet2_tts_plugin import latents
from apnet2_tts_plugin.checkpoints import CheckpointError, export
from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.corpus import DataError, find_audio, usable, with_features
from apnet2_tts_plugin.data import Segments, Utterances
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.vocode import InputError, speak

tts_models = vits_models.multi_speaker_vits, vits_models.latent_vocoder, vits_models.speaker_latent_vocoder
multi_speaker_vits, latent_vocoder, speaker_latent_vocoder = tts_models  # fixtures

SENTENCES = [torch.arange(3, 15)[None], torch.arange(20, 4, -1)[None]]


@pytest.fixture
def vits() -> Vits:
    return make_vits()


def decoded(model: Vits, tokens: torch.Tensor, aux_input: dict | None = None) -> tuple[dict, dict]:
    """What `inference` gives, and the arguments that its decoder got."""
    calls = []
    hook = model.waveform_decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append({"z": args[0], **kwargs}), with_kwargs=True
    )
    torch.manual_seed(0)  # of the prior's noise
    outputs = model.inference(tokens, aux_input)
    hook.remove()
    (call,) = calls
    return outputs, call


def with_vocoder(vits: Vits, vocoder: Apnet2) -> Vits:
    return latents.with_decoder(vits, latents.LatentDecoder(vocoder))


def state_of(model: torch.nn.Module) -> dict:
    tensors = {name: (tensor.data_ptr(), tensor.sum().item()) for name, tensor in model.state_dict().items()}
    return {"modules": dict(model.named_modules()), "tensors": tensors, "attributes": set(vars(model))}


@pytest.mark.parametrize("n_frames", [1, 2, 50])
def test_a_latent_becomes_whole_hops_of_sound(n_frames):
    z = torch.randn(2, CHANNELS, n_frames)
    waveform = latents.LatentDecoder(make_vocoder())(z)
    assert waveform.shape == (2, 1, n_frames * HOP) and waveform.dtype == torch.float32


def test_the_last_frame_is_taken_twice_and_the_speaker_is_in_every_frame():
    z, g = torch.randn(2, 3, 5), torch.randn(2, 4, 1)
    torch.testing.assert_close(latents.vocoder_latent(z), torch.cat([z, z[:, :, -1:]], dim=2), rtol=0, atol=0)
    stacked = latents.vocoder_latent(z, g)
    assert stacked.shape == (2, 7, 6)
    torch.testing.assert_close(stacked[:, :3], latents.vocoder_latent(z), rtol=0, atol=0)
    torch.testing.assert_close(stacked[:, 3:], g.repeat(1, 1, 6), rtol=0, atol=0)


def test_the_vocoder_speaks_what_the_own_decoder_would_get(vits):
    vocoder = make_vocoder()
    own, call = decoded(vits, SENTENCES[0])
    torch.testing.assert_close(call["z"], own["z"] * own["y_mask"], rtol=0, atol=0)
    outputs, _ = decoded(with_vocoder(vits, vocoder), SENTENCES[0])
    z = call["z"]
    expected = vocoder.inference(torch.cat([z, z[:, :, -1:]], dim=2))
    torch.testing.assert_close(outputs["model_outputs"], expected, rtol=0, atol=0)
    assert outputs["model_outputs"].shape == own["model_outputs"].shape == (1, 1, z.shape[2] * HOP)
    assert outputs["model_outputs"].abs().max() > 1e-3


@pytest.mark.parametrize("speaker", range(len(SPEAKERS)))
def test_every_speaker_has_a_voice(speaker):
    vits, vocoder = make_vits(speakers=SPEAKERS), make_vocoder(speaker_channels=SPEAKER_CHANNELS)
    aux_input = {"speaker_ids": torch.tensor([speaker])}
    _, call = decoded(vits, SENTENCES[0], aux_input)
    torch.testing.assert_close(call["g"][0, :, 0], vits.emb_g.weight[speaker], rtol=0, atol=0)
    outputs, _ = decoded(with_vocoder(vits, vocoder), SENTENCES[0], aux_input)
    z = call["z"]
    g = call["g"].expand(-1, -1, z.shape[2])
    expected = vocoder.inference(torch.cat([z, g], dim=1)[:, :, [*range(z.shape[2]), -1]])
    torch.testing.assert_close(outputs["model_outputs"], expected, rtol=0, atol=0)


def test_voices_are_converted(speaker_latent_vocoder):
    vits, vocoder = make_vits(speakers=SPEAKERS), load_model("apnet2-speakers")
    spectrogram, lengths = torch.rand(1, 513, 30), torch.tensor([30])
    waveforms = []
    for target in (0, 1):
        torch.manual_seed(0)
        waveforms.append(with_vocoder(vits, vocoder).inference_voice_conversion(spectrogram, lengths, 0, target)[0])
        assert waveforms[-1].shape == (1, 1, 30 * HOP)
    assert (waveforms[0] - waveforms[1]).abs().max() > 1e-3


def test_items_of_a_batch_sound_as_they_would_alone():
    decoder = latents.LatentDecoder(make_vocoder(speaker_channels=4))
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
    (expected, _), vocoder = decoded(vits, SENTENCES[0]), make_vocoder()
    model = with_vocoder(vits, vocoder)
    decoded(model, SENTENCES[0])
    assert state_of(vits) == before and type(vits) is type(model) is class_before
    again, _ = decoded(vits, SENTENCES[0])
    torch.testing.assert_close(again["model_outputs"], expected["model_outputs"], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"latent of shape \(1, 32, 49\), expected \(batch, 48, frames\)"):
        decoded(with_vocoder(vits, make_vocoder(speaker_channels=SPEAKER_CHANNELS)), SENTENCES[0])
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


def test_threads_get_their_own_sentences(vits):
    """The noise of the prior is off, as threads share the generator of random numbers."""
    vits.inference_noise_scale = 0.0
    models = [vits, with_vocoder(vits, make_vocoder())]
    tasks = [(model, tokens) for model in models for tokens in SENTENCES]
    expected = [model.inference(tokens)["model_outputs"] for model, tokens in tasks]
    results = [[] for _ in tasks]

    def run(i):
        model, tokens = tasks[i]
        for _ in range(4):
            results[i].append(model.inference(tokens)["model_outputs"])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for waveforms, waveform in zip(results, expected, strict=True):
        assert len(waveforms) == 4
        for found in waveforms:
            torch.testing.assert_close(found, waveform, atol=1e-6, rtol=1e-4)


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
    latent = latents.encode(vits, waveform, g, torch.Generator().manual_seed(7))
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
    latent = latents.encode(vits, golden_waveform(1000, seed=1)[:n_samples])
    assert latent.shape == (CHANNELS, n_samples // HOP + 1) and np.isfinite(latent).all()


@pytest.mark.parametrize(
    ("interpolate_z", "rates", "hop_length"), [(True, [8, 8, 2, 2], 256), (False, [8, 8, 4, 2], 512)]
)
@pytest.mark.parametrize("n_samples", [256 * 100, 256 * 101, 256 * 101 + 255])
def test_the_encoder_may_have_a_lower_rate(interpolate_z, rates, hop_length, n_samples):
    kernels = [2 * rate for rate in rates]
    settings = dict(upsample_rates_decoder=rates, upsample_kernel_sizes_decoder=kernels, interpolate_z=interpolate_z)
    vits = make_vits(encoder_sample_rate=SAMPLE_RATE // 2, **settings)
    assert latents.latent_hop(vits.config) == hop_length
    latent = latents.encode(vits, golden_waveform(n_samples, seed=1))
    assert latent.shape == (CHANNELS, n_samples // hop_length + 1) and np.isfinite(latent).all()


def test_an_embedding_must_fit():
    waveform = golden_waveform(3000, seed=1)
    with pytest.raises(latents.LatentError, match=r"speaker: embedding of shape None, expected \(1, 16, 1\)"):
        latents.encode(make_vits(speakers=SPEAKERS), waveform)
    with pytest.raises(latents.LatentError, match=r"speaker: embedding of shape \(1, 4, 1\), expected None"):
        latents.encode(make_vits(), waveform, torch.zeros(1, 4, 1))


def test_what_does_not_fit_is_named_with_both_values():
    single, several = make_vits().config, make_vits(speakers=SPEAKERS).config
    assert latents.mismatch(single, make_vocoder().config) == []
    assert latents.mismatch(several, make_vocoder(speaker_channels=SPEAKER_CHANNELS).config) == []
    assert latents.mismatch(several, make_vocoder().config) == [
        "speaker_channels: 0, expected the 16 speaker channels of the VITS"
    ]
    other = Apnet2Config(input="latent")
    other.audio.sample_rate, other.audio.hop_length = 24000, 300
    assert latents.mismatch(single, other) == [
        "latent_channels: 192, expected the 32 latent channels of the VITS",
        "audio.sample_rate: 24000, expected the 22050 Hz of the VITS",
        "audio.hop_length: 300, expected the 256 samples to a frame of the VITS",
    ]
    several.model_args.use_d_vector_file, several.model_args.d_vector_dim = True, 512
    assert latents.speaker_channels(several) == 512


@pytest.fixture
def corpus(tmp_path):
    """Two recordings, one of them in a folder of its own."""
    for name, n_samples in (("a", 30000), ("deep/b", 20000)):
        path = tmp_path / "wavs" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, golden_waveform(n_samples, seed=1), SAMPLE_RATE, subtype="FLOAT")
    return tmp_path


def write(vits, corpus) -> int:
    wavs = corpus / "wavs"
    return latents.write_latents(vits, usable(find_audio(wavs)), wavs, corpus / "latents")


def test_a_corpus_gets_its_latents_once(vits, corpus):
    assert write(vits, corpus) == 2
    first = {path: path.read_bytes() for path in (corpus / "latents").rglob("*.npy")}
    assert {str(path.relative_to(corpus / "latents")) for path in first} == {"a.npy", "deep/b.npy"}
    assert write(vits, corpus) == 0
    (corpus / "latents" / "a.npy").unlink()
    torch.manual_seed(99)
    assert write(vits, corpus) == 1
    assert {path: path.read_bytes() for path in first} == first  # the same noise again
    a, b = (np.load(path) for path in sorted(first))
    mean, log_scale = plain_posterior(vits, golden_waveform(30000, seed=1))
    noise = (torch.from_numpy(a[:, :-1]) - mean) / log_scale.exp()
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    assert not np.allclose(a[:, :60], b[:, :60], atol=0.1)  # the recordings begin alike, their noise does not


def test_segments_are_cut_from_latent_and_audio_alike(vits, corpus):
    write(vits, corpus)
    files = usable(find_audio(corpus / "wavs"))
    place = (corpus / "wavs", corpus / "latents", CHANNELS, SAMPLE_RATE, HOP)
    files = with_features(files, *place, kind="latent")
    latent, waveform = np.load(corpus / "latents" / "a.npy"), golden_waveform(30000, seed=1)
    item = Segments(files, SAMPLE_RATE, HOP, 8192, seed=0, padding=0.0)[3, 0]
    (start,) = [i for i in range(118) if np.array_equal(latent[:, i : i + 33], item["mel"])]
    np.testing.assert_array_equal(item["waveform"], waveform[start * HOP : start * HOP + 8192])
    short = Utterances(files, SAMPLE_RATE, HOP, min_samples=8192 * 5, padding=0.0)[0]
    assert short["mel"].shape == (CHANNELS, 161) and not short["mel"][:, 118:].any()
    np.save(corpus / "latents" / "a.npy", latent[:16])
    with pytest.raises(DataError, match=r"a\.npy: latent of shape \(16, 118\), expected \(32, frames\)"):
        with_features(files, *place, kind="latent")
    (corpus / "latents" / "a.npy").unlink()
    with pytest.raises(DataError, match=r"a\.wav: no latent in .*1 of 2 audio files have none"):
        with_features(files, *place, kind="latent")


def test_latents_of_two_models_are_not_mixed(vits, corpus):
    write(vits, corpus)
    with pytest.raises(latents.LatentError, match="latents: has latents of another VITS"):
        write(make_vits(seed=8), corpus)
    vits.config.audio.win_length = 512  # the same weights, another analysis
    with pytest.raises(latents.LatentError, match="latents: has latents of another VITS"):
        write(vits, corpus)


def test_recordings_without_a_latent_are_named_when_all_others_have_theirs(vits, corpus):
    waveform = golden_waveform(30000, seed=1)
    waveform[20000] = np.nan
    sf.write(corpus / "wavs" / "a.wav", waveform, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(latents.LatentError, match=r"wavs/a\.wav: no latent, for the reason in the log; mend or remove"):
        write(vits, corpus)
    assert [path.name for path in (corpus / "latents").rglob("*.npy")] == ["b.npy"]
    (corpus / "wavs" / "a.wav").unlink()
    assert write(vits, corpus) == 0


def test_recordings_must_have_the_rate_of_the_vits(vits, corpus):
    sf.write(corpus / "wavs" / "a.wav", golden_waveform(30000, seed=1), 16000)
    with pytest.raises(latents.LatentError, match=r"a\.wav: 16000 Hz, expected the 22050 Hz of the VITS"):
        write(vits, corpus)
    assert not (corpus / "latents").exists()


def test_training_without_latents_is_refused_in_one_line(corpus):
    config = make_vocoder().config
    config.data_path, config.eval_split_size = str(corpus / "wavs"), 1
    for is_eval in (False, True):
        with pytest.raises(DataError, match="feature_path: none, expected the folder of latents") as caught:
            Apnet2(config).get_data_loader(config, is_eval=is_eval)
        assert "\n" not in str(caught.value)


def test_the_posterior_encoder_is_loaded_alone(vits, tmp_path):
    folder = vits_models.save_vits(vits, tmp_path / "vits")
    waveform = golden_waveform(20000, seed=1)
    expected = latents.encode(vits, waveform, generator=torch.Generator().manual_seed(1))
    (folder / "speakers.pth").touch()  # no checkpoint
    for path in (folder, folder / "model_file.pth"):
        loaded = latents.load_encoder(path)
        found = latents.encode(loaded, waveform, generator=torch.Generator().manual_seed(1))
        np.testing.assert_array_equal(found, expected)


def test_other_models_have_no_latents(vits, tmp_path, multi_speaker_vits, glow_tts):
    with pytest.raises(latents.LatentError, match="a VITS of several speakers, expected one"):
        latents.load_encoder(multi_speaker_vits)
    with pytest.raises(latents.LatentError, match=r"config\.json: a configuration of 'glow_tts', expected .* a VITS"):
        latents.load_encoder(glow_tts)
    with pytest.raises(CheckpointError, match="expected best_model.pth or one other .pth file, found none"):
        (tmp_path / "empty").mkdir()
        make_vits().config.save_json(tmp_path / "empty" / "config.json")
        latents.load_encoder(tmp_path / "empty")
    folder = vits_models.save_vits(vits, tmp_path / "vits")
    (folder / "other.pth").touch()
    with pytest.raises(CheckpointError, match="found model_file.pth, other.pth; name the file"):
        latents.load_encoder(folder)
    torch.save({"model": {}}, folder / "best_model.pth")
    with pytest.raises(latents.LatentError, match=r"best_model\.pth: no posterior encoder of these sizes") as caught:
        latents.load_encoder(folder)
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(latents.LatentError, match=r"config\.json: not a usable configuration"):
        latents.load_encoder(folder)


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_latents_in_files_are_spoken(latent_vocoder, tmp_path, suffix):
    model, latent = load_model("apnet2-latent"), torch.randn(CHANNELS, 20)
    path = tmp_path / f"a.{suffix}"
    np.save(path, latent.numpy()) if suffix == "npy" else torch.save(latent, path)
    waveform = speak(model, path)
    assert waveform.shape == (19 * HOP,)
    torch.testing.assert_close(waveform, model.inference(latent[None]).flatten().clamp(-1, 1))


def test_recordings_are_not_latents(latent_vocoder, tmp_path):
    model = load_model("apnet2-latent")
    sf.write(tmp_path / "a.wav", golden_waveform(20000, seed=1), SAMPLE_RATE)
    with pytest.raises(InputError, match=r"a\.wav: is a recording, .* expected a \.npy or \.pt file of shape \(32, fr"):
        speak(model, tmp_path / "a.wav")
    np.save(tmp_path / "a.npy", np.zeros((80, 20), dtype=np.float32))
    with pytest.raises(InputError, match=r"has shape \(80, 20\), expected \(32, frames\)"):
        speak(model, tmp_path / "a.npy")


def test_export_keeps_what_the_vocoder_speaks(tmp_path):
    model = make_vocoder(speaker_channels=SPEAKER_CHANNELS)
    torch.save({"model": model.state_dict(), "config": model.config.to_dict()}, tmp_path / "checkpoint_1.pth")
    export(tmp_path / "checkpoint_1.pth", tmp_path / "out")
    loaded, latent = load_model(tmp_path / "out"), torch.randn(1, CHANNELS + SPEAKER_CHANNELS, 12)
    assert loaded.config.input == "latent"
    torch.testing.assert_close(loaded.inference(latent), model.inference(latent), rtol=0, atol=0)
