"""Files, and folders of them, that are there whole or not at all; and JSON as coqui-tts reads it."""

import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apnet2_tts_plugin.errors import OutputError

STRING_OR_COMMENT = re.compile(r"""("(?:[^"\\]|\\.)*")|//.*""")  # the string is the group


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary file beside `path`, then rename it to `path`; on failure nothing is left.

    Missing folders are made. Not even a power cut leaves a part of the file at `path`. The temporary file's suffix is
    none that says a format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whatever a killed process leaves must not look like a checkpoint: the Trainer's `*.pth` matches hidden files too.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # with the rights that the umask leaves, which `tempfile` does not give, and threads cannot ask for
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    rights = os.fstat(handle).st_mode
    os.close(handle)
    try:
        write(temporary)
        temporary.chmod(rights)  # safetensors puts a file of its own there
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def prepare_folder(folder: str | os.PathLike[Any]) -> Path:
    """A folder to write to, made before hours are spent on what goes into it.

    Raises:
        OutputError: if it cannot be made, or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: no folder can be made there ({error.strerror})") from error
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OutputError(f"{path}: nothing can be written to this folder ({error.strerror})") from error
    return path


def prepare_file(file: str | os.PathLike[Any]) -> Path:
    """A file to write to, whose folder is prepared as by `prepare_folder`.

    Raises:
        OutputError: if it cannot be written.
    """
    path = Path(file)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected the name of a file")
    prepare_folder(path.parent)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def fill_folder(folder: str | os.PathLike[Any], last: str) -> Iterator[Path]:
    """Give a folder to write files to, all of which move to `folder` at the end; after a failure none is there.

    So nothing of another's ever lies among them.

    Args:
        folder: A new folder, made with those above it, or an empty one.
        last: Name of the file without which the others mean nothing; it moves last.

    Raises:
        OutputError: if there is something in `folder` already.
        OSError: if it cannot be made, or written to.
    """
    folder = Path(folder)
    with removed_if_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if found := sorted(folder.iterdir()):
            raise OutputError(f"{folder}: not empty ({found[0].name} is in it); name a new folder, or delete this one")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as temporary:
            yield Path(temporary)
            for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == last):
                file.replace(folder / file.name)
    _sync_folder(folder)


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """After a failure, remove a folder that has nothing in it, be it new or not."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def read_json(path: str | os.PathLike[Any]) -> Any:
    """What a JSON file holds. Comments (`// ...`) are left out, as `TTS.config.load_config` leaves them out.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is none.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return json.loads(STRING_OR_COMMENT.sub(lambda found: found[1] or "", text))


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
