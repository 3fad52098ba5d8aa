"""Named local models: folders with a `config.json` and a weight file, found by the names `tts --vocoder_name` takes.

The user's models lie where coqui-tts keeps those it downloads: `<user data>/vocoder_models--en--ljspeech--<name>`, with
`TTS_HOME` honoured. Models that ship with the plugin lie in `bundled/<name>` in this package. Under the same name,
the user's model is taken.
"""

import json
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from trainer.io import get_user_data_dir

from apnet2_tts_plugin.errors import ModelError, ModelNotFoundError
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights

PREFIX = "vocoder_models/en/ljspeech/"
BUNDLED = Path(__file__).parents[1] / "bundled"

SHORTHANDS = {"xtts"}  # names that coqui-tts takes for a model of another name


def names() -> dict[str, Path]:
    """The names of all models, sorted, with their folders."""
    unnamed = _user_folder("")
    bundled = {folder.name: folder for folder in _model_folders(BUNDLED, "*")}
    users = {folder.name[len(unnamed.name) :]: folder for folder in _model_folders(unnamed.parent, f"{unnamed.name}*")}
    return dict(sorted({**bundled, **users}.items()))


def resolve(name_or_folder: str | os.PathLike) -> Path:
    """The folder of a model.

    Args:
        name_or_folder: A name (`apnet2`), a full name (`vocoder_models/en/ljspeech/apnet2`) or the path of a folder.

    Raises:
        ModelNotFoundError: if it is none of these; the message lists the known names.
        ModelError: if it is a folder without an APNet2 model.
    """
    known = names()
    name = short_name(str(name_or_folder))
    if name in known:
        return known[name]
    folder = Path(name_or_folder)
    if not folder.is_dir():
        msg = f"no APNet2 model is called {str(name_or_folder)!r}; known: {', '.join(known) or 'none'}"
        raise ModelNotFoundError(msg)
    _check_model(folder)
    return folder


def path_of(name_or_path: str | os.PathLike) -> Path:
    """The folder of a model that has a name, or else the path as it is."""
    return names().get(short_name(str(name_or_path)), Path(name_or_path))


def short_name(name: str) -> str:
    """`name` without the `vocoder_models/en/ljspeech/` of a full name."""
    return name.removeprefix(PREFIX)


def is_apnet2(name: str) -> bool:
    """Whether `name`, short or full, is a model's here or can only mean one, as every `apnet2...` does."""
    short = short_name(name)
    return short in names() or ("/" not in short and short.lower().startswith("apnet2"))


def is_model(folder: str | os.PathLike) -> bool:
    """Whether `folder` has a `config.json` that says `"model": "apnet2"`."""
    return is_config(Path(folder, CONFIG_NAME))


def is_config(path: str | os.PathLike) -> bool:
    """Whether `path` is a JSON file that says `"model": "apnet2"`; False if it cannot be read."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("model")).lower() == "apnet2"


def install(folder: str | os.PathLike, name: str) -> Path:
    """Copy a model to where `tts --vocoder_name <name>` finds it, in place of an older one of that name.

    Only `config.json`, the weights and a `README.md` are copied. The model is put together in a folder beside its
    place and moved there at the end, so that a half-written one is never found.

    Args:
        folder: Folder with the model.
        name: Letters, digits, `_`, `.` and `-`, beginning with a letter or digit.

    Returns:
        The model's new folder.

    Raises:
        ModelError: if `folder` holds no APNet2 model, the name is not allowed, or coqui-tts has a model of that name.
        CheckpointError: if there are no weights in it.
    """
    _check_name(name)
    _check_model(folder)
    target = _user_folder(name)
    if target.exists() and not is_model(target):
        raise ModelError(f"{target} exists and is no APNet2 model; choose another name")
    files = [Path(folder, CONFIG_NAME), find_weights(folder), Path(folder, "README.md")]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".apnet2-", dir=target.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        for file in filter(Path.is_file, files):
            shutil.copyfile(file, new / file.name)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    return target


def remove(name: str) -> None:
    """Delete one of the user's models, named as in `resolve`. A bundled model of that name is found again after that.

    Raises:
        ModelNotFoundError: if no model has this name.
        ModelError: if only a bundled model has it.
    """
    folder = names().get(short_name(name))
    if folder is None:
        raise ModelNotFoundError(f"no APNet2 model is called {name!r}; known: {', '.join(names()) or 'none'}")
    if folder.parent == BUNDLED:
        raise ModelError(f"{short_name(name)!r} ships with apnet2-tts-plugin and cannot be removed")
    with tempfile.TemporaryDirectory(prefix=".apnet2-", dir=folder.parent) as temporary:
        folder.rename(Path(temporary, "old"))  # gone at once, whatever becomes of the files


def _user_folder(name: str) -> Path:
    return get_user_data_dir("tts") / f"vocoder_models--en--ljspeech--{name}"


def _model_folders(parent: Path, pattern: str) -> list[Path]:
    return [folder for folder in parent.glob(pattern) if is_model(folder)]


def _check_model(folder: str | os.PathLike) -> None:
    if not is_model(folder):
        raise ModelError(f'{folder} holds no APNet2 model: it needs a config.json that says "model": "apnet2"')


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ModelError(f"{name!r} is no name: use letters, digits, '_', '.' and '-', with a letter or digit first")
    if name in _stock_names():
        raise ModelError(f"coqui-tts has a model of its own called {name}; choose another name")


def _stock_names() -> set[str]:
    """The last parts of the names of all models in coqui's own catalogue, and its shorthands."""
    package = find_spec("TTS")
    catalogue = Path(package.submodule_search_locations[0], ".models.json")
    kinds = json.loads(catalogue.read_text(encoding="utf-8")).values()
    datasets = [dataset for languages in kinds for language in languages.values() for dataset in language.values()]
    return SHORTHANDS.union(*datasets)
