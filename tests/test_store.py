"""Named local models: which are found, and that installing is checked and all or nothing."""

import json
from pathlib import Path

import pytest

from apnet2_tts_plugin import store


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder and a folder of bundled models for each test."""
    monkeypatch.setenv("TTS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "bundled")
    return tmp_path / "home" / "tts"


def make_model(
    folder: Path, weights: bytes = b"weights", name: str = "model.safetensors", model: str = "apnet2"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": model}))
    (folder / name).write_bytes(weights)
    return folder


def test_nothing_there():
    assert store.names() == {}
    with pytest.raises(store.ModelNotFoundError, match="known: none"):
        store.resolve("apnet2")


def test_install_and_find(home, tmp_path):
    model = make_model(tmp_path / "model")
    (model / "README.md").write_text("card")
    (model / "events.log").write_text("not copied")
    folder = store.install(model, "best_v1.0-x")
    assert folder == home / "vocoder_models--en--ljspeech--best_v1.0-x"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert store.names() == {"best_v1.0-x": folder}
    assert store.resolve("best_v1.0-x") == store.resolve("vocoder_models/en/ljspeech/best_v1.0-x") == folder
    assert [path.name for path in home.iterdir()] == [folder.name]


def test_users_model_hides_bundled_one(tmp_path):
    bundled = make_model(tmp_path / "bundled" / "apnet2")
    assert store.resolve("apnet2") == bundled
    installed = store.install(make_model(tmp_path / "model"), "apnet2")
    assert store.resolve("apnet2") == installed
    store.remove("apnet2")
    assert store.resolve("apnet2") == bundled
    with pytest.raises(store.StoreError, match="ships with"):
        store.remove("apnet2")
    assert bundled.is_dir()


def test_install_replaces_the_whole_model(home, tmp_path):
    store.install(make_model(tmp_path / "old", b"old", "model.pth"), "a")
    folder = store.install(make_model(tmp_path / "new", b"new"), "a")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert store.weights_file(folder).read_bytes() == b"new"
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("failing", ["copyfile", "rename"])
def test_failed_install_keeps_the_old_model(failing, home, tmp_path, monkeypatch):
    folder = store.install(make_model(tmp_path / "old", b"old"), "a")
    rename = Path.rename

    def no_copy(*arguments):
        raise OSError("disk full")

    def no_new(path, target):
        if path.name == "new":
            raise OSError("disk full")
        return rename(path, target)

    if failing == "copyfile":
        monkeypatch.setattr(store.shutil, "copyfile", no_copy)
    else:
        monkeypatch.setattr(Path, "rename", no_new)
    with pytest.raises(OSError, match="disk full"):
        store.install(make_model(tmp_path / "new", b"new"), "a")
    assert store.weights_file(folder).read_bytes() == b"old"
    assert [path.name for path in home.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "-x", ".x", "a b", "a\n", "é", "hifigan_v2"])
def test_names_that_are_refused(name, home, tmp_path):
    with pytest.raises(store.StoreError, match="name"):
        store.install(make_model(tmp_path / "model"), name)
    assert not home.exists()


def test_folders_that_are_refused(tmp_path):
    for folder in (
        tmp_path / "missing",
        make_model(tmp_path / "other", model="gan"),
        make_model(tmp_path / "no_weights", name="notes.txt"),
    ):
        with pytest.raises(store.StoreError, match=folder.name):
            store.install(folder, "a")
    make_model(tmp_path / "two", name="a.pth")
    make_model(tmp_path / "two", name="b.pth")
    with pytest.raises(store.StoreError, match=r"a\.pth, b\.pth"):
        store.install(tmp_path / "two", "a")
    (tmp_path / "other" / "config.json").write_text("no json")
    assert not store.is_model(tmp_path / "other")


def test_a_foreign_model_is_neither_listed_nor_replaced(home, tmp_path):
    foreign = make_model(home / "vocoder_models--en--ljspeech--theirs", model="gan", name="model_file.pth")
    assert store.names() == {}
    with pytest.raises(store.StoreError, match="choose another name"):
        store.install(make_model(tmp_path / "model"), "theirs")
    with pytest.raises(store.ModelNotFoundError):
        store.remove("theirs")
    assert (foreign / "model_file.pth").is_file()


def test_resolve_takes_a_folder(tmp_path):
    folder = make_model(tmp_path / "run", name="best_model.pth")
    assert store.resolve(folder) == folder
    assert store.weights_file(folder).name == "best_model.pth"
    with pytest.raises(store.StoreError, match="holds no APNet2 model"):
        store.resolve(tmp_path)


def test_unknown_name_lists_the_known(tmp_path):
    store.install(make_model(tmp_path / "model"), "b")
    store.install(make_model(tmp_path / "model"), "a")
    with pytest.raises(store.ModelNotFoundError, match="'c'; known: a, b"):
        store.resolve("c")
    with pytest.raises(store.ModelNotFoundError, match="'c'; known: a, b"):
        store.remove("c")


def test_claims(tmp_path):
    store.install(make_model(tmp_path / "model"), "best")
    for name in ("best", "vocoder_models/en/ljspeech/best", "apnet2", "APNet2-x", "vocoder_models/en/ljspeech/apnet2"):
        assert store.claims(name), name
    for name in ("hifigan_v2", "vocoder_models/en/vctk/apnet2", "tts_models/en/ljspeech/best", "other"):
        assert not store.claims(name), name
