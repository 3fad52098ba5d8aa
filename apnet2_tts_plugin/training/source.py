"""What features in files depend on, so that those of others are never mixed in."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from apnet2_tts_plugin.errors import DataError
from apnet2_tts_plugin.files import write_text

SOURCE_NAME = "source.json"


def note_source(folder: Path, source: dict[str, Any], what: str, takes_unknown: bool = False) -> None:
    """Note in `source.json` what the features below `folder` depend on, so that those of others are never mixed in.

    A note is binding as soon as there are features.

    Args:
        folder: The folder; made if need be.
        source: What they depend on, as JSON has it.
        what: What they are called in a message.
        takes_unknown: Take features without a note for ones of this source.

    Raises:
        DataError: if the folder has features of another source.
        OSError: if the note cannot be written.
    """
    path = folder / SOURCE_NAME
    is_empty = next(folder.rglob("*.npy"), None) is None
    if is_empty or takes_unknown and not path.is_file():
        write_text(path, json.dumps(source, indent=1))
        return
    if not path.is_file():
        raise DataError(
            f"{folder}: has {what} and no {path.name} that says of what; delete the folder, or name another one"
        )
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete the folder it is in") from error
    if differing := [name for name, value in source.items() if noted.get(name) != value]:
        raise DataError(
            f"{folder}: has {what} of another {' and '.join(differing)}, see {path.name} in it; "
            "delete the folder, or name another one"
        )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of the weights of a module and their names, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
