"""What features in files depend on, so that those of others are never mixed in."""

import json
from pathlib import Path
from typing import Any

from apnet2_tts_plugin.errors import FinetuningError
from apnet2_tts_plugin.files import write_text

SOURCE_NAME = "source.json"


def note_source(folder: Path, source: dict[str, Any], what: str) -> None:
    """Note in `source.json` what the features below `folder` depend on, so that those of others are never mixed in.

    A note is binding as soon as there are features.

    Args:
        folder: The folder; made if need be.
        source: What they depend on, as JSON has it.
        what: What they are called in a message.

    Raises:
        FinetuningError: if the folder has features of another source.
    """
    path = folder / SOURCE_NAME
    if next(folder.rglob("*.npy"), None) is None:
        write_text(path, json.dumps(source, indent=1))
        return
    if not path.is_file():
        raise FinetuningError(
            f"{folder}: has {what} and no {path.name} that says of what; delete the folder, or name another one"
        )
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuningError(f"{path}: cannot be read ({error}); delete the folder it is in") from error
    if differing := [name for name, value in source.items() if noted.get(name) != value]:
        raise FinetuningError(
            f"{folder}: has {what} of another {' and '.join(differing)}, see {path.name} in it; "
            "delete the folder, or name another one"
        )
