"""A model folder made of whatever holds a model: a folder, a file, an HTTP(S) address, a repository of Hugging Face."""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from apnet2_tts_plugin.errors import (
    Apnet2Error,
    CheckpointError,
    DamagedError,
    DownloadError,
    MissingFileError,
    ModelError,
)
from apnet2_tts_plugin.weights import convert, store
from apnet2_tts_plugin.weights.checkpoints import read_tensors
from apnet2_tts_plugin.weights.find import CONFIG_NAME, WEIGHTS_NAME, find_weights

logger = logging.getLogger(__name__)

SAFETENSORS = Path(WEIGHTS_NAME).suffix
PARTS = ".apnet2-downloads"  # in the data folder: what is not yet whole


@contextmanager
def model_folder(
    source: str, config_path: str | os.PathLike | None = None, sha256: str | None = None
) -> Iterator[Path]:
    """Give a folder with a model, to load or to `store.install`; what had to be fetched or made is deleted afterwards.

    A file, here or elsewhere, is one of: `.safetensors`, as `apnet2 export` writes it, with its `config.json`; a
    checkpoint of the Trainer, which holds its configuration; or an official generator, `g_XXXXXXXX`, with the official
    `config.json`, or without one if the settings are those of LJSpeech. Nothing in them is executed.

    Args:
        source: A folder, a file, an `http://` or `https://` address of a file, or what `hub.fetch` takes.
        config_path: The `config.json`; by default the one beside the weights.
        sha256: What the SHA-256 of the file of weights must be, in hexadecimal digits.

    Raises:
        ModelError: if there is nothing at `source`, a `config.json` is missing, or one is given that is of no use.
        DownloadError: if it cannot be fetched.
        CheckpointError: if the weights cannot be used, or are others than `sha256` says.
    """
    if "://" not in source and Path(source).is_dir():
        if config_path is not None:
            raise ModelError(f"{source}: leave --config away for a folder, or name the file of weights in it")
        if sha256 is not None:
            _check_sum(find_weights(source), sha256, source)
        yield Path(os.path.abspath(source))
        return
    parent = store.data_folder()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".apnet2-", dir=parent) as temporary:
        try:
            weights, config = _weights_and_config(source, config_path, Path(temporary))
            if sha256 is not None:
                _check_sum(weights, sha256, source)
            folder = Path(temporary, "model")
            if weights.suffix == SAFETENSORS:
                _link(weights, config, folder)
            else:
                _convert(weights, config, folder, source, config_path is not None)
            if (readme := weights.with_name("README.md")).is_file():
                shutil.copyfile(readme, folder / readme.name)
            yield folder
        except Apnet2Error as error:
            inside = f"{temporary}{os.sep}"
            if inside not in str(error):
                raise
            raise type(error)(f"{source}: {str(error).replace(inside, '')}") from error


def _weights_and_config(
    source: str, config_path: str | os.PathLike | None, temporary: Path
) -> tuple[Path, Path | None]:
    """The files of a model, fetched if they are elsewhere; the configuration may be missing."""
    scheme = urlsplit(source).scheme if "://" in source else ""
    if scheme in ("http", "https"):
        return _download(source, config_path, temporary)
    if scheme == "hf":
        from apnet2_tts_plugin.weights import hub

        weights = hub.fetch(source)
    elif scheme:
        raise DownloadError(f"{source}: {scheme}:// is not supported, expected https://, http:// or hf://")
    elif Path(source).is_file():
        weights = Path(os.path.abspath(source))
    else:
        raise ModelError(
            f"{source}: no such folder or file; elsewhere, a model is at https://... or hf://OWNER/REPOSITORY"
        )
    beside = weights.with_name(CONFIG_NAME)
    config = _given(config_path) or (beside if beside.is_file() else None)
    _check_config(weights.name, config, source)
    return weights, config


def _download(url: str, config_path: str | os.PathLike | None, temporary: Path) -> tuple[Path, Path | None]:
    """The file at `url`, and the configuration beside it, unless one is given."""
    from apnet2_tts_plugin.weights.download import download

    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2])
    if not name.strip("."):
        raise DownloadError(f"{url}: names no file; give the address of the file of weights")
    parts = store.data_folder() / PARTS
    config = _given(config_path)
    if config is None:
        config = temporary / CONFIG_NAME
        try:
            download(urljoin(url, CONFIG_NAME), config, parts)
        except MissingFileError:
            config = None
    _check_config(name, config, url)
    weights = temporary / "weights" / name
    weights.parent.mkdir()
    download(url, weights, parts)
    return weights, config


def _given(config_path: str | os.PathLike | None) -> Path | None:
    if config_path is not None and not Path(config_path).is_file():
        raise ModelError(f"{config_path}: no such file, expected a {CONFIG_NAME}")
    return None if config_path is None else Path(config_path)


def _check_config(weights_name: str, config: Path | None, source: str) -> None:
    """Refuse weights that will be of no use, before they are fetched."""
    if not weights_name.endswith(SAFETENSORS):
        return
    if config is None:
        raise ModelError(f"{source}: no {CONFIG_NAME} beside it; fetch the model's own and name it by --config")
    if not store.is_config(config):
        raise ModelError(f'{source}: its {CONFIG_NAME} is not of an APNet2, it does not say "model": "apnet2"')


def _check_sum(weights: Path, expected: str, source: str) -> None:
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest() != expected.lower():
        raise DamagedError(f"{source}: the SHA-256 of {weights.name} is {digest.hexdigest()}, expected {expected}")


def _link(weights: Path, config: Path, folder: Path) -> None:
    """Make a model folder of files that may stay as they are."""
    folder.mkdir()
    shutil.copyfile(config, folder / CONFIG_NAME)
    (folder / WEIGHTS_NAME).symlink_to(weights)


def _convert(weights: Path, config: Path | None, folder: Path, source: str, config_is_given: bool) -> None:
    """Make a model folder of a torch file."""
    content = read_tensors(weights)
    if "generator" in content:
        if config is None:
            logger.warning("%s: no %s beside it, so it gets the settings of LJSpeech", source, CONFIG_NAME)
        convert.import_official(weights, folder, config_path=config)
    elif "model" in content:
        if config_is_given:
            raise ModelError(f"{source}: leave --config away, a checkpoint of the Trainer has its own")
        convert.export(weights, folder)
    else:
        held = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise CheckpointError(
            f"{weights}: holds {held}; expected a checkpoint of the Trainer or an official generator (g_...)"
        )
