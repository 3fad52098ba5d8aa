"""Build backend: setuptools', and two files more in every wheel, which load the plugin when Python starts.

setuptools has no setting that puts a file of ours straight into site-packages, from where Python reads them:

* ``apnet2_tts_plugin.pth``, whose one line Python up to 3.14 executes. It is guarded, because Python would print a
  traceback at every start once an editable checkout has moved away. The name sorts after ``__editable__...pth``, so
  that an editable install is importable by then.
* ``apnet2_tts_plugin.start``, which takes its place from Python 3.15 on (PEP 829).
"""

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that stay as they are

STARTUP_FILES = {
    "apnet2_tts_plugin.pth": r"import sys; exec('try: import apnet2_tts_plugin\nexcept Exception: pass')" + "\n",
    "apnet2_tts_plugin.start": "apnet2_tts_plugin._boot:install\n",
}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 517 hook: setuptools' wheel with the startup files."""
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    add_startup_files(Path(wheel_directory, name))
    return name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 660 hook: setuptools' editable wheel with the startup files."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    add_startup_files(Path(wheel_directory, name))
    return name


def add_startup_files(wheel: Path) -> None:
    """Write `wheel` anew with the startup files at its root and their lines in RECORD, by which pip removes them."""
    larger = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(larger, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                for name, text in STARTUP_FILES.items():
                    new.writestr(zipfile.ZipInfo(name, item.date_time), text)
                    data += record_line(name, text.encode()).encode()
            new.writestr(item, data)
    larger.replace(wheel)


def record_line(name: str, data: bytes) -> str:
    """A file's line in RECORD: path, hash and size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"
