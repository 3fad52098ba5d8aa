"""A phase that starts from the pitch: known tones come out; batches, seeds and look-ahead are as promised."""

import json
import shutil
import sys
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
from small_run import fit, small_config

from apnet2_tts_plugin.config import Apnet2AudioConfig, PredictorConfig
from apnet2_tts_plugin.errors import ConfigError, DataError, MissingPackageError
from apnet2_tts_plugin.metrics.envelope import frame_line_db
from apnet2_tts_plugin.network import harmonics
from apnet2_tts_plugin.network.harmonics import (
    NOISE_PERIOD,
    NoisePhase,
    PulseTrain,
    fundamental_phase,
    glide,
    integrate,
)
from apnet2_tts_plugin.network.pitch import Pitch, PitchPredictor, bin_labels
from apnet2_tts_plugin.network.spectra import ISTFT, STFT
from apnet2_tts_plugin.training.corpus import usable
from apnet2_tts_plugin.training.pitch import PERIOD, pitch_at, write_pitch
from apnet2_tts_plugin.training.source import SOURCE_NAME
from apnet2_tts_plugin.training.step import MicroBatch, Networks, predict

RATE, HOP, FFT = 22050, 256, 1024
SIZES = dict(channels=16, hidden_channels=32, blocks=2, output_kernel_size=1, response_norm="none", look_ahead=4)


def pitch_config(**changes):
    sections = {name: PredictorConfig(**SIZES | changes.pop(name, {})) for name in ("phase", "pitch")}
    amplitude = PredictorConfig(**SIZES | dict(channels=513, blocks=1, output_kernel_size=7))
    starts = dict(amplitude_start="pseudo_inverse", amplitude=amplitude, phase_start="pitch")
    return starts | dict(consistency_iterations=2, consistency_target="mel") | sections | changes


def model(**changes):
    return tiny.model(**pitch_config(**changes))


def angle(difference) -> np.ndarray:
    """Its distance from 0 on the circle."""
    return np.abs(np.angle(np.exp(1j * np.asarray(difference, dtype=np.float64))))


def tone(f0, n_frames: int = 120, n_harmonics: int = 25):
    """A voice of equal periods: samples (1, N), f0 (1, T) and phase (1, T) of the fundamental at the frames."""
    time = np.arange((n_frames - 1) * HOP + 1) / RATE
    phase = 2 * np.pi * np.cumsum(f0(time)) / RATE
    samples = sum(np.cos(h * phase) / h for h in range(1, n_harmonics + 1))[:-1]
    at = slice(None, None, HOP)
    return (torch.tensor(x, dtype=torch.float32)[None] for x in (0.1 * samples, f0(time)[at], phase[at]))


GLIDES = {
    "steady": lambda time: np.full_like(time, 150.0),
    "glide": lambda time: 110 + 80 * time / time[-1],
    "vibrato": lambda time: 200 + 12 * np.sin(2 * np.pi * 5 * time),
}


@pytest.mark.parametrize("f0", GLIDES.values(), ids=GLIDES)
def test_the_start_alone_gives_a_tone_back(f0):
    waveform, frequency, true_phase = tone(f0)
    stft, istft = STFT(FFT, HOP, FFT), ISTFT(FFT, HOP, FFT)
    spectrum = stft(waveform)
    pitch = Pitch(frequency, torch.ones_like(frequency))
    phi = fundamental_phase(waveform, pitch, HOP, RATE, stft.window)
    inner = slice(4, -4)
    assert angle(phi - true_phase)[0, inner].max() < 0.002
    pulses = PulseTrain(HOP, RATE, istft.window)(pitch, phi)
    again = istft(torch.polar(spectrum.abs(), pulses.angle()))
    inner = slice(4 * HOP, -4 * HOP)
    error = (again - waveform)[0, inner]
    assert 10 * torch.log10(waveform[0, inner].square().mean() / error.square().mean()) > 40
    # from the first frame on, its integral is near
    integrated = integrate(frequency, HOP, RATE, start=true_phase[:, 0])
    assert angle(integrated - true_phase).max() < 0.15


@pytest.mark.parametrize("f0", GLIDES.values(), ids=GLIDES)
def test_a_generator_that_knows_the_pitch_vocodes_at_that_pitch(f0):
    waveform, frequency, _ = tone(f0)
    network = model(consistency_iterations=2)
    pitch = Pitch(frequency, torch.ones_like(frequency))
    with torch.no_grad():
        vocoded = network.generator(network.log_mel(waveform), pitch).waveform[0].double().numpy()
    found, _, _ = librosa.pyin(vocoded, fmin=70, fmax=400, sr=RATE, hop_length=HOP, frame_length=2048)
    inner = slice(8, -8)
    cents = 1200 * np.log2(found[inner] / frequency[0, inner].numpy())
    assert np.nanmedian(np.abs(cents)) < 15 and np.isnan(cents).mean() < 0.1


@pytest.mark.parametrize(
    ("f0", "slope"), [(123.4, 0.0), (122.5, 0.0), (61.7, -300.0), (500.0, 2000.0), (RATE / 2, 0.0)]
)
@pytest.mark.parametrize("win_length", [FFT, 800])
def test_the_pulses_are_the_sum_of_all_harmonics(f0, slope, win_length):
    window, phi = ISTFT(FFT, HOP, win_length).window, 0.7
    time = np.arange(-FFT // 2, FFT // 2) / RATE
    phase = phi + 2 * np.pi * (f0 * time + slope / 2 * time**2)
    numbers = np.arange(1, int(RATE / 2 // f0) + 1)[:, None]
    expected = np.fft.rfft(2 * np.cos(numbers * phase).sum(0) * window.double().numpy()) / window.sum().item()
    frequency = f0 + slope * HOP / RATE * torch.arange(-1.0, 3.0)[None]
    voiced = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    pulses = PulseTrain(HOP, RATE, window)(Pitch(frequency, voiced), torch.full_like(frequency, phi))[0].numpy()
    np.testing.assert_allclose(pulses[:, 1], expected, atol=1e-4)
    assert not pulses[:, 3].any()


def test_the_pulses_have_no_weights_and_stay_in_float32():
    network = model().bfloat16()
    assert network.generator.pulses.window.dtype == network.generator.pulses.time.dtype == torch.float32
    assert not any("pulses" in name for name in network.state_dict())


def test_the_slope_of_the_pitch():
    f0 = torch.tensor([[100.0, 102.0, 106.0, 300.0, 200.0, 190.0]])
    voiced = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0, 1.0]])
    slopes = glide(Pitch(f0, voiced), HOP, RATE)[0] * HOP / RATE
    torch.testing.assert_close(slopes, torch.tensor([1.0, 3.0, 2.0, 0.0, -5.0, -5.0]))
    jumps = glide(Pitch(f0, torch.ones_like(f0)), HOP, RATE)[0] / f0[0]
    torch.testing.assert_close(jumps[[2, 4]], torch.tensor([harmonics.MAX_GLIDE, -harmonics.MAX_GLIDE]))
    assert glide(Pitch(f0[:, :1], voiced[:, :1]), HOP, RATE) == 0


@pytest.mark.parametrize("f0", [110.0, 220.0])
def test_sound_does_not_gather_at_the_frames(f0):
    """Where the amplitude has no valleys between harmonics, as it has none above 2 kHz when it comes from a mel."""
    generator = model().generator
    pitch = Pitch(torch.full((1, 400), f0), torch.ones(1, 400))
    parts = torch.zeros(1, 4, generator.n_bins, 400)
    parts[:, 0], parts[:, 2] = 1.0, generator.phase.NOISE_SHARE
    pulses = generator.pulses(pitch, integrate(pitch.f0, HOP, RATE).float())
    parts, pulses = parts.flatten(1, 2), (pulses.real, pulses.imag)
    z = torch.complex(*generator.phase.combine(parts, pulses, generator.noise(400))).sgn()
    waveform = generator.istft(z)[0].numpy()
    assert frame_line_db(waveform, RATE) < 2  # 19.8 and 20.1 by the phases of the pulses alone


@pytest.mark.parametrize("win_length", [FFT, 1001])
def test_training_predicts_around_the_phase_of_the_recording(win_length):
    """Untrained, with the pitch of a voice that moves: 0.23 if that counted as steady within the window."""
    waveform, frequency, _ = tone(GLIDES["vibrato"])
    network = model(consistency_iterations=0, audio=Apnet2AudioConfig(win_length=win_length))
    spectrum = network.log_mel.stft(waveform)
    networks = Networks(network.generator, None, None, network.log_mel)
    part = MicroBatch(1.0, waveform, spectrum, network.log_mel.from_spectrum(spectrum), frequency)
    with torch.no_grad():
        error = angle(predict(networks, part).phase - spectrum.angle())
    loud = spectrum.abs() > 0.1 * spectrum.abs().amax(1, keepdim=True)
    assert np.median(error[loud]) < 0.18


def test_integration_does_not_drift_over_ten_minutes():
    n_frames = 600 * RATE // HOP
    frequency = torch.full((1, n_frames), 123.25)
    expected = 2 * np.pi * np.mod(np.arange(n_frames) * (123.25 * HOP / RATE), 1.0)
    assert angle(integrate(frequency, HOP, RATE)[0] - expected).max() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"consistency_iterations": 1},
        {"consistency_iterations": 0},
        {"f0_min": 70.0, "consistency_iterations": 1},
        {"f0_min": 70.0},
        {"consistency_target": "amplitude"},
    ],
    ids=str,
)
def test_padded_batches_equal_single_runs(settings):
    check_batches(tiny.half_voiced(model(**settings), batch()))


def test_iterations_serve_the_published_networks_too():
    """Untrained, their phase is the angle of numbers near 0, which rounding turns far: 1.1e-5 on one processor."""
    check_batches(tiny.model(consistency_iterations=3, pools=True), atol=3e-5)


def batch():
    return torch.randn(3, 80, 40, generator=torch.Generator().manual_seed(1)) - 4


def check_batches(network, atol=1e-5):
    mel = batch()
    lengths = torch.tensor([40, 17, 2])
    together = network.inference(mel, lengths)
    for item, length in enumerate(lengths.tolist()):
        alone = network.inference(mel[item : item + 1, :, :length])
        n_samples = (length - 1) * HOP
        torch.testing.assert_close(together[item, :, :n_samples], alone[0], atol=atol, rtol=0)
        assert not together[item, :, n_samples:].any()


def test_forward_and_inference_agree_and_the_seed_decides():
    network = model()
    mel = torch.randn(1, 80, 30, generator=torch.Generator().manual_seed(1)) - 4
    vocoded = network.inference(mel)
    assert torch.equal(vocoded, network.inference(mel))
    with torch.no_grad():
        torch.testing.assert_close(network.generator(mel).waveform, vocoded[:, 0], atol=1e-5, rtol=0)
    assert not torch.equal(vocoded, model(noise_seed=1).inference(mel))


def test_a_frame_has_its_noise_wherever_a_piece_begins():
    noise = NoisePhase(513, seed=3).eval()
    whole = noise(NOISE_PERIOD + 7)
    assert whole.shape == (1, 513, NOISE_PERIOD + 7) and 0 <= whole.min() and whole.max() < 2 * torch.pi
    assert torch.equal(noise(7), whole[:, :, :7]) and torch.equal(noise(7), whole[:, :, NOISE_PERIOD:])
    assert torch.equal(noise(20, first=NOISE_PERIOD - 13), whole[:, :, NOISE_PERIOD - 13 :])
    assert not torch.equal(noise(7), NoisePhase(513, seed=4).eval()(7))


def test_noise_of_training_is_new_each_time():
    noise = NoisePhase(513, seed=3).train()
    assert not torch.equal(noise(7), noise(7))


@pytest.mark.parametrize("mel", [torch.full((1, 80, 20), -11.5), torch.full((1, 80, 2), -11.5), torch.zeros(1, 80, 3)])
def test_silence_and_the_shortest_mels(mel):
    waveform = model().inference(mel)
    assert waveform.shape == (1, 1, (mel.shape[2] - 1) * HOP) and waveform.isfinite().all()


@pytest.mark.parametrize(
    ("sample_rate", "fft_size", "hop_length"), [(16000, 1024, 200), (24000, 2048, 300), (48000, 2048, 512)]
)
def test_other_rates_and_hops(sample_rate, fft_size, hop_length):
    audio = Apnet2AudioConfig(sample_rate=sample_rate, fft_size=fft_size, win_length=fft_size, hop_length=hop_length)
    amplitude = PredictorConfig(**SIZES | dict(channels=fft_size // 2 + 1, output_kernel_size=7))
    settings = pitch_config() | dict(audio=audio, amplitude=amplitude, seq_len=20 * hop_length)
    network = tiny.model(**settings)
    time = torch.arange(sample_rate) / sample_rate
    waveform = network.copy_synthesis(0.1 * torch.sin(2 * torch.pi * 150 * time), sample_rate)
    assert waveform.shape == (sample_rate,) and waveform.isfinite().all()


def test_pitch_is_read_where_the_labels_say_it_is():
    predictor = PitchPredictor(80, PredictorConfig(**SIZES), 50.0, 800.0)
    frequency = torch.tensor([[54.0, 61.7, 200.0, 441.3, 750.0]])
    labels = bin_labels(frequency, 50.0, predictor.n_bins)
    decoded = predictor.decode(labels.log(), torch.tensor([[-1.0, -1.0, 2.0, 2.0, 2.0]]))
    assert (1200 * (decoded.f0 / frequency).log2()).abs().max() < 5
    assert decoded.voiced.tolist() == [[0, 0, 1, 1, 1]]
    torch.testing.assert_close(labels.sum(1), torch.ones(1, 5))


def test_pitch_between_its_times(tmp_path):
    np.save(tmp_path / "f0.npy", np.float32([[100, 110, 0, 0, 200]]))
    times = np.array([0, 0.5, 1, 1.4, 1.6, 3.4, 4, 100]) * PERIOD
    assert pitch_at(tmp_path / "f0.npy", times).tolist() == [100, 105, 110, 110, 0, 0, 200, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phase_start": "f0"}, "phase_start: 'f0'"),
        ({"f0_min": 0.0}, "f0_min: 0.0"),
        ({"f0_max": 20.0}, "f0_min: 50.0"),
        ({"consistency_iterations": -1}, "consistency_iterations: -1"),
        ({"consistency_target": "phase"}, "consistency_target: 'phase'"),
        (
            {"consistency_target": "mel", "input_features": "latent", "amplitude_start": "mel"},
            "consistency_target: 'mel', expected 'amplitude'",
        ),
        ({"phase": dict(response_norm="batch")}, "phase.response_norm: 'batch'"),
        ({"pitch": dict(look_ahead=-2)}, "pitch.look_ahead: -2"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny.config(**pitch_config(**settings))


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Files of a steady voice each, with a pause."""
    folder = tmp_path_factory.mktemp("voices")
    for i in range(4):
        waveform, *_ = tone(lambda time, i=i: np.full_like(time, 120.0 + 20 * i), n_frames=60)
        sf.write(folder / f"{i}.wav", np.pad(waveform[0].numpy(), (0, 3000)), RATE, subtype="PCM_16")
    return folder


def test_training_finds_the_pitch_once_and_learns_it(voices, tmp_path):
    settings = pitch_config() | dict(batch_size=3, epochs=40, save_step=100, lr_gen=3e-3, seq_len=8192)
    config = small_config(voices, tmp_path, **settings)
    trainer = fit(config)
    files = sorted((tmp_path / "f0").glob("*.npy"))
    assert len(files) == 4
    written = [file.stat().st_mtime_ns for file in files]
    for i, file in enumerate(files):
        frequency = np.load(file)[0]
        assert np.median(np.abs(1200 * np.log2(frequency[frequency > 0] / (120 + 20 * i)))) < 20
    segment = trainer.model.get_data_loader(config).dataset[(0, 0)]
    assert segment["f0"].shape == (33,) and segment["f0"].max() < 200
    assert [file.stat().st_mtime_ns for file in files] == written
    losses = [trainer.keep_avg_train.avg_values[f"avg_loss_{term}"] for term in ("pitch", "voicing")]
    assert losses[0] < 4.0 and losses[1] < 0.5  # about 5.5 and 0.7 at first
    assert "avg_loss_pitch" in trainer.keep_avg_eval.avg_values


def test_processes_find_the_same_pitch(voices, tmp_path):
    found = []
    for n_processes in (1, 2):
        config = small_config(voices, tmp_path, **pitch_config(), f0_path=str(tmp_path / str(n_processes)))
        write_pitch(config, usable(sorted(voices.glob("*.wav"))), n_processes)
        found.append({file.name: np.load(file) for file in sorted(Path(config.f0_path).glob("*.npy"))})
    assert len(found[0]) == 4 and found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("change", ["data_path", "f0_min"])
def test_pitch_of_others_is_not_taken(voices, tmp_path, change):
    """Every run of a recipe has the same folder for it; one without a note is of an older version."""
    others = shutil.copytree(voices, tmp_path / "others")  # copies are as old
    config = small_config(voices, tmp_path, **pitch_config())
    write_pitch(config, usable(sorted(voices.glob("*.wav"))))
    note = tmp_path / "f0" / SOURCE_NAME
    note.unlink()
    write_pitch(config, usable(sorted(voices.glob("*.wav"))))
    assert json.loads(note.read_text()) == {"data_path": str(voices), "f0_min": 50.0, "f0_max": 800.0}
    config[change] = {"data_path": str(others), "f0_min": 70.0}[change]
    with pytest.raises(DataError, match=f"f0: has pitch of another {change}, see source.json in it; delete"):
        write_pitch(config, usable(sorted(Path(config.data_path).glob("*.wav"))))


def test_pitch_needs_a_package_that_the_shell_is_told_to_install(voices, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyworld", None)
    with pytest.raises(
        MissingPackageError, match=r"^pyworld is not installed: pip install 'apnet2-tts-plugin\[eval\]'$"
    ):
        write_pitch(small_config(voices, tmp_path, **pitch_config()), [])


def test_pitch_needs_the_folder_of_the_audio(voices):
    network = tiny.model(**pitch_config())
    with pytest.raises(DataError, match="data_path: none"):
        network.get_data_loader(network.config, samples=sorted(voices.glob("*.wav")))
