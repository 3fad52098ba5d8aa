"""Named local models: which are found, and that installing is checked and all or nothing."""

import json
from pathlib import Path

import pytest

from apnet2_tts_plugin.errors import CheckpointError, ModelError, ModelNotFoundError
from apnet2_tts_plugin.weights import store
from apnet2_tts_plugin.weights.find import find_weights


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder and a folder of bundled models for each test."""
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "bundled")
    return tmp_path / "home" / "tts"


def make_model(folder: Path, weights=b"weights", name="model.safetensors", model="apnet2", dataset="") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": model, "dataset": dataset}))
    (folder / name).write_bytes(weights)
    return folder


def test_install_and_find(home, tmp_path):
    model = make_model(tmp_path / "model")
    (model / "README.md").write_text("card")
    (model / "events.log").write_text("not copied")
    folder = store.install(model, "best_v1.0-x")
    assert folder == home / "vocoder_models--universal--unknown--best_v1.0-x"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert store.names() == {"best_v1.0-x": folder}
    assert store.resolve("best_v1.0-x") == store.resolve("vocoder_models/universal/unknown/best_v1.0-x") == folder
    assert [path.name for path in home.iterdir()] == [folder.name]


def test_full_names_have_the_dataset(home, tmp_path):
    """A model of another dataset takes the place of one of its name, as any other does."""
    for dataset in ("en/ljspeech", "de/thorsten-2022"):
        folder = store.install(make_model(tmp_path / "model", dataset=dataset), "b--1")
        full_name = f"vocoder_models/{dataset}/b--1"
        assert store.full_name(folder) == full_name and store.resolve(full_name) == folder
        assert list(home.iterdir()) == [folder] and store.names() == {"b--1": folder}
    with pytest.raises(ModelNotFoundError, match="known: b--1"):
        store.resolve("vocoder_models/en/ljspeech/b--1")
    bundled = make_model(tmp_path / "bundled" / "c", dataset="en/vctk")
    assert store.full_name(bundled) == "vocoder_models/en/vctk/c"
    for nonsense in ("en", "a/b/c", "a/b--c", 3):
        assert store.full_name(make_model(bundled, dataset=nonsense)) == "vocoder_models/universal/unknown/c"


def test_users_model_hides_bundled_one(tmp_path):
    bundled = make_model(tmp_path / "bundled" / "apnet2")
    assert store.resolve("apnet2") == bundled
    installed = store.install(make_model(tmp_path / "model"), "apnet2")
    assert store.resolve("apnet2") == installed
    store.remove("apnet2")
    assert store.resolve("apnet2") == bundled
    with pytest.raises(ModelError, match="ships with"):
        store.remove("apnet2")
    assert bundled.is_dir()


def test_install_replaces_the_whole_model(home, tmp_path):
    store.install(make_model(tmp_path / "old", b"old", "model.pth"), "a")
    folder = store.install(make_model(tmp_path / "new", b"new"), "a")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert find_weights(folder).read_bytes() == b"new"
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("failing", [(store.shutil, "copyfile"), (Path, "rename")])
def test_failed_install_keeps_the_old_model(failing, home, tmp_path, monkeypatch):
    folder = store.install(make_model(tmp_path / "old", b"old"), "a")
    original = getattr(*failing)

    def fail(path, target):
        if failing[1] == "rename" and path.name != "new":
            return original(path, target)
        raise OSError("disk full")

    monkeypatch.setattr(*failing, fail)
    with pytest.raises(OSError, match="disk full"):
        store.install(make_model(tmp_path / "new", b"new"), "a")
    assert find_weights(folder).read_bytes() == b"old"
    assert [path.name for path in home.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "-x", ".x", "a b", "a\n", "é"])
def test_names_that_are_refused(name, home, tmp_path):
    with pytest.raises(ModelError, match="is no name"):
        store.install(make_model(tmp_path / "model"), name)
    assert not home.exists()


@pytest.mark.parametrize("name", ["xtts", "xtts_v2", "vits", "bark", "freevc24", "hifigan_v2", "wavegrad"])
def test_names_of_coquis_own_models_are_refused(name, home, tmp_path):
    """Of any kind: `TTS("xtts")` must not become a vocoder."""
    with pytest.raises(ModelError, match=f"coqui-tts has a model of its own called {name}"):
        store.install(make_model(tmp_path / "model"), name)
    assert not home.exists()


def test_folders_that_are_refused(tmp_path):
    other, two = make_model(tmp_path / "other", model="gan"), make_model(tmp_path / "two", name="a.pth")
    make_model(tmp_path / "two", name="b.pth")
    for folder, error, reason in (
        (tmp_path / "missing", ModelError, "missing holds no APNet2 model"),
        (other, ModelError, "other holds no APNet2 model"),
        (make_model(tmp_path / "no_weights", name="notes.txt"), CheckpointError, "no_weights: .* found none"),
        (two, CheckpointError, r"two: .* found a\.pth, b\.pth"),
    ):
        with pytest.raises(error, match=reason):
            store.install(folder, "a")
    assert store.names() == {}
    (other / "config.json").write_text("no json")
    assert not store.is_model(other)


def test_a_foreign_model_is_neither_listed_nor_replaced(home, tmp_path):
    foreign = make_model(home / "vocoder_models--universal--unknown--theirs", model="gan", name="model_file.pth")
    assert store.names() == {}
    with pytest.raises(ModelError, match="choose another name"):
        store.install(make_model(tmp_path / "model"), "theirs")
    with pytest.raises(ModelNotFoundError):
        store.remove("theirs")
    assert (foreign / "model_file.pth").is_file()


def test_resolve_takes_a_folder(tmp_path):
    folder = make_model(tmp_path / "run")
    assert store.resolve(folder) == folder
    with pytest.raises(ModelError, match="holds no APNet2 model"):
        store.resolve(tmp_path)


def test_unknown_name_lists_the_known(tmp_path):
    for known, added in (("none", "b"), ("b", "a"), ("a, b", "z")):
        for function in (store.resolve, store.remove):
            with pytest.raises(ModelNotFoundError, match=f"'c'; known: {known}$"):
                function("c")
        store.install(make_model(tmp_path / "model"), added)


def test_which_names_are_ours(tmp_path):
    store.install(make_model(tmp_path / "model"), "best")
    unknown = "vocoder_models/universal/unknown"
    for name in ("best", f"{unknown}/best", "apnet2", "APNet2-x", "vocoder_models/en/vctk/apnet2"):
        assert store.is_apnet2(name), name
    for name in ("hifigan_v2", "vocoder_models/en/vctk/best", "tts_models/en/ljspeech/best", "other"):
        assert not store.is_apnet2(name), name
