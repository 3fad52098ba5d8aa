"""Named local models: folders with a `config.json` and a weight file, found by the names `tts --vocoder_name` takes.

The user's models lie where coqui-tts keeps those it downloads: `<user data>/vocoder_models--<dataset>--<name>`, with
`TTS_HOME` honoured; the dataset is that of the model's configuration, such as `en--ljspeech`. Models that ship with the
plugin lie in `bundled/<name>` in this package, and one acoustic model with them, for speech without a download. Under
the same name, the user's model is taken. Nothing here imports torch or coqui-tts, which takes longer than all that is
done here.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apnet2_tts_plugin.errors import Apnet2Error, ModelError, ModelNotFoundError
from apnet2_tts_plugin.files import read_json
from apnet2_tts_plugin.weights.find import CONFIG_NAME, find_weights

KIND = "vocoder_models"
UNKNOWN = "universal/unknown"  # language and dataset of a model whose configuration does not say them
BUNDLED = Path(__file__).parents[1] / "bundled"
ACOUSTIC_MODEL = "tts_models/en/heart/fast_pitch"  # in `bundled/fast_pitch`
ACOUSTIC_WEIGHTS = "model.pth"  # coqui-tts reads no safetensors

DEFAULTS = {"input_features": "mel", "latent_channels": 192, "speaker_channels": 0, "audio": {}}  # of `config`
DEFAULT_AUDIO = {"sample_rate": 22050, "num_mels": 80}
SHORTHANDS = {"xtts"}  # names that coqui-tts takes for a model of another name


def names() -> dict[str, Path]:
    """The names of all models, sorted, with their folders."""
    bundled = {folder.name: folder for folder in _model_folders(BUNDLED, "*")}
    users = {folder.name.split("--", 3)[3]: folder for folder in _model_folders(data_folder(), f"{KIND}--*--*--*")}
    return dict(sorted({**bundled, **users}.items()))


def acoustic_files(name: str | None) -> tuple[Path, Path] | None:
    """Weights and configuration of the acoustic model that ships with the plugin, if `name` is its name."""
    folder = BUNDLED / ACOUSTIC_MODEL.rpartition("/")[2]
    return (folder / ACOUSTIC_WEIGHTS, folder / CONFIG_NAME) if name == ACOUSTIC_MODEL else None


def full_name(folder: Path) -> str:
    """The name of the model in `folder`, one of `names`, as coqui-tts writes it: with kind, language and dataset."""
    if folder.parent != BUNDLED:
        return "/".join(folder.name.split("--", 3))
    return f"{KIND}/{_dataset(folder)}/{folder.name}"


def data_folder() -> Path:
    """Where coqui-tts keeps models: on Linux, what `get_user_data_dir("tts")` of `trainer.io` says."""
    data = os.environ.get("TTS_HOME", os.environ.get("XDG_DATA_HOME", "~/.local/share"))
    try:
        return Path(data).expanduser().resolve() / "tts"
    except RuntimeError:  # no home, as of a user whom the system does not know; in Docker that is the root folder
        return Path("/.local/share/tts")


def model_table() -> Iterator[str]:
    """One line for each named model: name, origin, input, sample rate, size and folder, or what is wrong with it.

    Of its configuration no more is read than that.
    """
    for name, folder in names().items():
        origin = "bundled" if folder.parent == BUNDLED else "user"
        try:
            size = find_weights(folder).stat().st_size / 1e6
            facts = f"{_input_and_rate(folder / CONFIG_NAME)}  {size:7.1f} MB  {folder}"
        except Apnet2Error as error:
            facts = f"broken: {error}"
        yield f"{name:16}  {origin:7}  {facts}"
    weights, _ = acoustic_files(ACOUSTIC_MODEL)
    if weights.is_file():
        size = weights.stat().st_size / 1e6
        yield f"{ACOUSTIC_MODEL}, an acoustic model for --model_name: {size:.1f} MB  {weights.parent}"


def _input_and_rate(path: Path) -> str:
    settings = {**DEFAULTS, **_settings(path)}
    kind = settings["input_features"]
    try:
        audio = {**DEFAULT_AUDIO, **settings["audio"]}
        n_inputs = audio["num_mels"] if kind == "mel" else settings["latent_channels"] + settings["speaker_channels"]
        return f"{f'{kind} of {n_inputs:d}':13}  {audio['sample_rate']:6d} Hz"
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a usable configuration, a setting in it is of the wrong type") from error


def resolve(name_or_folder: str | os.PathLike) -> Path:
    """The folder of a model.

    Args:
        name_or_folder: A name (`apnet2`), a full name (`vocoder_models/en/natural/apnet2`) or the path of a folder.

    Raises:
        ModelNotFoundError: if it is none of these; the message lists the known names.
        ModelError: if it is a folder without an APNet2 model.
    """
    if (named := _find(str(name_or_folder))) is not None:
        return named
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise _no_such_model(str(name_or_folder))
    _check_model(folder)
    return folder


def path_of(name_or_path: str | os.PathLike) -> Path:
    """The folder of a model that has a name, or else the path as it is."""
    return _find(str(name_or_path)) or Path(name_or_path)


def is_apnet2(name: str) -> bool:
    """Whether `name`, short or full, is a model's here or can only mean one, as every `apnet2...` does."""
    short = name.rpartition("/")[2] if name.startswith(f"{KIND}/") else name
    return _find(name) is not None or ("/" not in short and short.lower().startswith("apnet2"))


def _find(name: str) -> Path | None:
    """The folder of the model that has this name, short or full."""
    known = names()
    return known.get(name) or next((folder for folder in known.values() if full_name(folder) == name), None)


def _no_such_model(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"no APNet2 model is called {name!r}; known: {', '.join(names()) or 'none'}")


def is_model(folder: str | os.PathLike) -> bool:
    """Whether `folder` has a `config.json` that says `"model": "apnet2"`."""
    return is_config(Path(folder, CONFIG_NAME))


def is_config(path: str | os.PathLike) -> bool:
    """Whether `path` is a JSON file that says `"model": "apnet2"`; False if it cannot be read."""
    return str(_settings(path).get("model")).lower() == "apnet2"


def _dataset(folder: str | os.PathLike) -> str:
    """Language and dataset of the model in `folder`."""
    dataset = str(_settings(Path(folder, CONFIG_NAME)).get("dataset"))
    return dataset if dataset.count("/") == 1 and "--" not in dataset else UNKNOWN


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
    check_name(name)
    _check_model(folder)
    target = data_folder() / f"{KIND}/{_dataset(folder)}/{name}".replace("/", "--")
    if target.exists() and not is_model(target):
        raise ModelError(f"{target} exists and is no APNet2 model; choose another name")
    replaced = names().get(name)
    if replaced is not None and replaced.parent == BUNDLED:
        replaced = None
    files = [Path(folder, CONFIG_NAME), find_weights(folder), Path(folder, "README.md")]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".apnet2-", dir=target.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        for file in filter(Path.is_file, files):
            shutil.copyfile(file, new / file.name)
        if replaced is not None:
            replaced.rename(old)
        try:
            new.rename(target)
        except OSError:
            if replaced is not None:
                old.rename(replaced)
            raise
    return target


def remove(name: str) -> None:
    """Delete one of the user's models, named as in `resolve`. A bundled model of that name is found again after that.

    Raises:
        ModelNotFoundError: if no model has this name.
        ModelError: if only a bundled model has it.
    """
    folder = _find(name)
    if folder is None:
        raise _no_such_model(name)
    if folder.parent == BUNDLED:
        raise ModelError(f"{folder.name!r} ships with apnet2-tts-plugin and cannot be removed")
    with tempfile.TemporaryDirectory(prefix=".apnet2-", dir=folder.parent) as temporary:
        folder.rename(Path(temporary, "old"))  # gone at once, whatever becomes of the files


def check_name(name: str) -> None:
    """Refuse a name that no model can be installed under.

    Raises:
        ModelError: if it has other characters than `install` takes, or coqui-tts has a model of that name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ModelError(f"{name!r} is no name: use letters, digits, '_', '.' and '-', with a letter or digit first")
    if name in _stock_names():
        raise ModelError(f"coqui-tts has a model of its own called {name}; choose another name")


def _model_folders(parent: Path, pattern: str) -> list[Path]:
    try:
        return [folder for folder in parent.glob(pattern) if is_model(folder)]
    except OSError:  # another user's home
        return []


def _settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings in a JSON file; none if it cannot be read or holds something else."""
    try:
        settings = read_json(path)
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _check_model(folder: str | os.PathLike) -> None:
    if not is_model(folder):
        raise ModelError(f'{folder} holds no APNet2 model: it needs a config.json that says "model": "apnet2"')


def _stock_names() -> set[str]:
    """The last parts of the names of all models in coqui's own catalogue, and its shorthands."""
    package = find_spec("TTS")
    catalogue = Path(package.submodule_search_locations[0], ".models.json")
    kinds = json.loads(catalogue.read_text(encoding="utf-8")).values()
    datasets = [dataset for languages in kinds for language in languages.values() for dataset in language.values()]
    return SHORTHANDS.union(*datasets)
