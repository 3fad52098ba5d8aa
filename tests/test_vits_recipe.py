"""The recipe that trains APNet2 as the decoder of a VITS, from recordings to a vocoder that speaks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scripts
import tiny
import torch
from small_run import make_corpus, stub_trainer
from vits_models import CHANNELS, HOP, make_vits, save_vits

from apnet2_tts_plugin.config import Apnet2Config
from apnet2_tts_plugin.finetuning import latents
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.pairing.vits import LatentDecoder, mismatch, with_decoder
from apnet2_tts_plugin.weights import convert

N_FILES, N_SAMPLES = 5, 9000


@pytest.fixture(scope="module")
def recipe():
    """The recipe as a module, but that it makes small networks."""
    with pytest.MonkeyPatch.context() as patch:
        module = scripts.load(scripts.RECIPES / "ljspeech" / "apnet2_vits" / "train_apnet2.py", patch)
        make_config = module.make_config

        def make_small_config(*args) -> Apnet2Config:
            config, small = make_config(*args), tiny.config(mpd_periods=[2], mrd_resolutions=[[512, 128, 512]])
            for name in ("amplitude", "phase", "mpd_periods", "mpd_channels", "mrd_resolutions", "mrd_channels"):
                config[name] = small[name]
            config.eval_metrics, config.num_eval_loader_workers = [], 0
            return config

        patch.setattr(module, "make_config", make_small_config)
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the VITS and the recordings are, and latents and output are to be."""
    folder = tmp_path_factory.mktemp("recipe")
    save_vits(make_vits(), folder / "vits")
    make_corpus(folder / "wavs", N_FILES, N_SAMPLES)
    return folder


@pytest.fixture(scope="module")
def given(folder) -> list[str]:
    """Arguments with which the recipe can work; the later of two equal ones is taken."""
    places = {"vits_path": "vits", "data_path": "wavs", "feature_path": "latents", "output_path": "out"}
    paths = [f"--{name}={folder / place}" for name, place in places.items()]
    return [*paths, "--eval_split_size=1", "--batch_size=2", "--num_loader_workers=0"]


@pytest.fixture(scope="module")
def run_folder(recipe, folder, given) -> Path:
    """Where the recipe left a run of two steps."""
    recipe.main([*given, "--steps", "2"])
    (run,) = (folder / "out").iterdir()
    return run


def test_all_recordings_have_latents(run_folder, folder):
    found = sorted((folder / "latents").glob("*.npy"))
    assert [path.stem for path in found] == sorted(path.stem for path in (folder / "wavs").glob("*.wav"))
    assert {np.load(path).shape for path in found} == {(CHANNELS, N_SAMPLES // HOP + 1)}


def test_the_vocoder_speaks_in_the_place_of_the_decoder(run_folder, tmp_path):
    convert.export(run_folder / "checkpoint_2.pth", tmp_path / "exported")
    vocoder, vits = load_model(tmp_path / "exported"), make_vits()
    assert (vocoder.config.input_features, vocoder.config.n_inputs) == ("latent", CHANNELS)
    assert mismatch(vits.config, vocoder.config) == []
    spoken = with_decoder(vits, LatentDecoder(vocoder)).inference(torch.arange(3, 15)[None])
    assert spoken["model_outputs"].shape == (1, 1, spoken["z"].shape[2] * HOP)


def test_an_interrupted_run_goes_on_without_the_vits(recipe, run_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for name in ("checkpoint_2.pth", "best_model.pth", "best_model_2.pth"):
        (folder / name).unlink()
    monkeypatch.delattr(latents, "load_encoder")
    recipe.main(["--continue_path", str(folder)])
    assert (folder / "checkpoint_2.pth").is_file()


def test_each_process_extracts_its_share(recipe, given, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    names = []
    for rank in range(3):
        out = tmp_path / str(rank)
        recipe.extract_latents(recipe.parse_args([*given, f"--feature_path={out}", f"--rank={rank}"]))
        names.append({path.stem for path in out.glob("*.npy")})
    assert sorted(map(len, names)) == [1, 2, 2] and len(set.union(*names)) == N_FILES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--vits_path="], "--vits_path: none, expected the folder of a trained VITS"),
        (["--vits_path=nowhere"], "nowhere: no such file or folder"),
        (["--data_path=nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_is_missing_is_named_in_one_line(recipe, given, tmp_path, settings, message):
    error = scripts.refusal(recipe.main, *given, f"--output_path={tmp_path / 'out'}", *settings)
    assert error.startswith(f"error: {message}") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--feature_path", "--output_path"])
def test_a_folder_that_is_a_file_is_named_in_one_line(recipe, given, tmp_path, option):
    (tmp_path / "file").write_text("a file")
    settings = [f"--output_path={tmp_path / 'out'}", f"{option}={tmp_path / 'file'}"]
    assert str(tmp_path / "file") in scripts.refusal(recipe.main, *given, *settings)


def test_a_vocoder_learns_from_latents(recipe, given):
    args = recipe.parse_args(given)
    config = recipe.make_config(args)
    config.lr_gen, config.steps_to_start_discriminator = 5e-3, 100
    torch.manual_seed(0)
    model = Apnet2(config)
    trainer = stub_trainer(model)
    (batch,) = model.get_data_loader(config, is_eval=True)
    assert batch["features"].shape == (1, CHANNELS, N_SAMPLES // HOP + 1)
    losses = [model.optimize(batch, trainer)[1]["loss_gen"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
