"""The recipe that trains APNet2 as the decoder of a VITS, from recordings to a vocoder that speaks."""

import importlib.util
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vits_models
from small_run import SMALL, make_corpus

from apnet2_tts_plugin import checkpoints, corpus, latents
from apnet2_tts_plugin.config import Apnet2Config, PredictorConfig
from apnet2_tts_plugin.loader import load_model
from apnet2_tts_plugin.losses import weighted_sum
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.step import parts, spectral_terms

RECIPE = Path(__file__).parent.parent / "recipes" / "ljspeech" / "apnet2_vits" / "train_apnet2.py"
N_FILES, N_SAMPLES = 5, 9000


@pytest.fixture(scope="module")
def recipe():
    """The recipe as a module, but that it makes small networks and holds out a single file."""
    spec = importlib.util.spec_from_file_location("apnet2_vits_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look themselves up
    spec.loader.exec_module(module)
    make_config = module.make_config

    def make_small_config(*args) -> Apnet2Config:
        config = make_config(*args)
        config.amplitude, config.phase = PredictorConfig(**SMALL), PredictorConfig(**SMALL)
        config.mpd_periods, config.mpd_channels, config.mrd_channels = [2], [4, 8], 4
        config.mrd_resolutions, config.eval_metrics, config.num_eval_loader_workers = [[512, 128, 512]], [], 0
        config.check_values()
        return config

    module.make_config = make_small_config
    module.split = lambda paths, n_eval: corpus.split(paths, min(n_eval, 1))
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def paths(tmp_path_factory, tts_home) -> list[str]:
    """The recipe's arguments that name folders: of a VITS, recordings, latents and output."""
    folder = tmp_path_factory.mktemp("recipe")
    vits_models.save_vits(vits_models.make_vits(), folder / "vits")
    make_corpus(folder / "wavs", N_FILES, N_SAMPLES)
    arguments = ["--vits_path", folder / "vits", "--data_path", folder / "wavs"]
    return [str(part) for part in [*arguments, "--feature_path", folder / "latents", "--output_path", folder / "out"]]


@pytest.fixture(scope="module")
def run_folder(recipe, paths) -> Path:
    """Where the recipe left a run of two steps."""
    recipe.main([*paths, "--batch_size", "2", "--steps", "2", "--num_loader_workers", "0"])
    (folder,) = Path(paths[-1]).iterdir()
    return folder


def test_all_recordings_have_latents(run_folder, paths):
    found = sorted(Path(paths[5]).glob("*.npy"))
    assert [path.stem for path in found] == [path.stem for path in sorted(Path(paths[3]).glob("*.wav"))]
    for path in found:
        latent = np.load(path)
        assert latent.shape == (vits_models.CHANNELS, N_SAMPLES // vits_models.HOP + 1)
        assert latent.dtype == np.float32


def test_the_vocoder_speaks_in_the_place_of_the_decoder(run_folder, tmp_path):
    checkpoints.export(run_folder / "checkpoint_2.pth", tmp_path / "exported")
    vocoder, vits = load_model(tmp_path / "exported"), vits_models.make_vits()
    assert (vocoder.config.input, vocoder.config.n_inputs) == ("latent", vits_models.CHANNELS)
    assert latents.mismatch(vits.config, vocoder.config) == []
    spoken = latents.with_decoder(vits, latents.LatentDecoder(vocoder)).inference(torch.arange(3, 15)[None])
    assert spoken["model_outputs"].shape == (1, 1, spoken["z"].shape[2] * vits_models.HOP)


def test_an_interrupted_run_goes_on_without_the_vits(recipe, run_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for name in ("checkpoint_2.pth", "best_model.pth", "best_model_2.pth"):
        (folder / name).unlink()
    monkeypatch.delattr(latents, "load_encoder")
    recipe.main(["--continue_path", str(folder)])
    assert (folder / "checkpoint_2.pth").is_file()


def test_each_process_extracts_its_share(recipe, paths, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    names = []
    for rank in range(3):
        latents_of_rank = tmp_path / str(rank)
        recipe.extract_latents(recipe.parse_args([*paths, "--feature_path", str(latents_of_rank), "--rank", str(rank)]))
        names.append({path.stem for path in latents_of_rank.glob("*.npy")})
    assert sorted(map(len, names)) == [1, 2, 2] and len(set.union(*names)) == N_FILES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--vits_path="], "vits_path: none, expected the folder of a trained VITS"),
        (["--vits_path", "nowhere"], "nowhere: no such file or folder"),
        (["--data_path", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_is_missing_is_named_in_one_line(recipe, paths, tmp_path, settings, message):
    with pytest.raises(SystemExit) as end:
        recipe.main([*paths, "--output_path", str(tmp_path / "out"), *settings])
    assert end.value.code.startswith(f"error: {message}") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--feature_path", "--output_path"])
def test_a_folder_that_is_a_file_is_named_in_one_line(recipe, paths, tmp_path, option):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(SystemExit) as end:
        recipe.main([*paths, "--output_path", str(tmp_path / "out"), option, str(tmp_path / "file")])
    error, hint = end.value.code.split("\n")
    assert error.startswith("error: ") and str(tmp_path / "file") in error and hint.startswith("recipes/")


def test_the_recipe_for_mels_names_a_folder_that_is_a_file(paths, tmp_path):
    (tmp_path / "file").write_text("a file")
    recipe = runpy.run_path(str(RECIPE.parent.parent / "apnet2" / "train_apnet2.py"))
    recipe["main"].__globals__["split"] = lambda paths, n_eval: corpus.split(paths, 1)
    with pytest.raises(SystemExit) as end:
        recipe["main"](["--data_path", paths[3], "--output_path", str(tmp_path / "file")])
    assert end.value.code.startswith("error: ") and str(tmp_path / "file") in end.value.code


def test_ctrl_c_ends_the_extraction_in_one_line(recipe, paths, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(latents, "write_latents", interrupted)
    with pytest.raises(SystemExit) as end:
        recipe.main([*paths, "--feature_path", str(tmp_path / "latents")])
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted; the same command goes on\n"


def test_a_vocoder_learns_from_latents(recipe, paths):
    args = recipe.parse_args(paths)
    config = recipe.make_config(args, recipe.extract_latents(args))
    torch.manual_seed(0)
    model = Apnet2(config)
    (batch,) = model.get_data_loader(config, is_eval=True)
    assert batch["mel"].shape == (1, vits_models.CHANNELS, N_SAMPLES // vits_models.HOP + 1)
    optimizer = torch.optim.AdamW(model.generator.parameters(), 5e-3)
    losses = []
    for _ in range(20):
        (part,) = parts(model, batch)
        loss = weighted_sum(spectral_terms(model, part, model(part.mel)), config.loss_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
