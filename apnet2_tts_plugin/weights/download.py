"""A file from an HTTP(S) address: whole or not at all, and gone on with where an earlier try broke off."""

import fcntl
import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from apnet2_tts_plugin.errors import DownloadError, MissingFileError, one_line, system_reason

TIMEOUT_S = 30.0  # without a byte
N_TRIES = 5
PAUSE_S = 2.0  # before another try
PIECE = 2**14  # bytes; what is not yet a whole piece is lost when the connection breaks
MISSING = (403, 404, 410)  # statuses; the first is what storage services say of files that they do not list


def download(url: str, target: Path, parts: Path) -> None:
    """Fetch a file. What arrives before a failure is kept, and the next call asks the server for the rest only.

    It does so if the server named a version of the file (`ETag` or `Last-Modified`) and still has that one. A broken
    connection is taken up again at once, a few times, as long as each try brings something.

    Args:
        url: An `http://` or `https://` address; the latter is not left for the former by a redirection.
        target: File to make, in a folder of the file system that `parts` is on.
        parts: Folder to keep incomplete files in; each has a folder of its own there, which is gone once it is whole.

    Raises:
        MissingFileError: if there is no such file, or a web page in its place.
        DownloadError: if it cannot be had, or another process is fetching it.
        OSError: if it cannot be written.
    """
    part = _Part(parts / hashlib.sha256(url.encode()).hexdigest()[:16])
    with part.locked(url):
        try:
            _fetch(url, part)
            part.file.replace(target)
        finally:
            part.tidy()


class _Part:
    """What there is of a file so far, and the version of it, in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.file, self.version_file = folder, folder / "part", folder / "version"

    def size(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0

    def version(self) -> str:
        return self.version_file.read_text() if self.version_file.is_file() else ""

    def resumable(self) -> bool:
        return bool(self.size() and self.version())

    def tidy(self) -> None:
        """Delete the folder if there is nothing in it to go on with."""
        if not self.resumable():
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self, url: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DownloadError(f"{url}: another process is fetching it; wait until it is done") from error
            yield


def _fetch(url: str, part: _Part) -> None:
    with requests.Session() as session:
        if url.lower().startswith("https:"):
            del session.adapters["http://"]  # so that a redirection there fails
        for n_left in reversed(range(N_TRIES)):
            before = part.size()
            try:
                return _receive(session, url, part)
            except requests.RequestException as error:
                if not n_left or part.size() <= before:
                    raise DownloadError(f"{url}: {_reason(error, url)}{_advice(part)}") from error
            time.sleep(PAUSE_S)


def _receive(session: requests.Session, url: str, part: _Part) -> None:
    """Ask once, for what is missing, and write what comes."""
    headers = {"Accept-Encoding": "identity"}  # or lengths and ranges would be those of something else
    if part.resumable():
        headers |= {"Range": f"bytes={part.size()}-", "If-Range": part.version()}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416 and part.resumable():  # nothing is missing, or the file has become shorter
            part.file.unlink()
            return _receive(session, url, part)
        _check(response, url)
        start, length = _extent(response, url, part)
        name = Path(urlsplit(url).path).name
        with (
            part.file.open("ab") as file,
            tqdm(total=length, initial=start, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
        ):
            file.truncate(start)
            part.version_file.write_text(_version(response))  # only now, or it were that of other bytes
            for piece in response.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))
    if length is not None and part.size() != length:
        raise requests.exceptions.ChunkedEncodingError(f"{part.size()} of {length} bytes came")


def _check(response: requests.Response, url: str) -> None:
    status = f"{response.status_code} {response.reason}"
    if response.status_code in MISSING:
        raise MissingFileError(f"{url}: no such file there ({status})")
    if not response.ok:
        raise DownloadError(f"{url}: the server answers {status}; try another time, or another address")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise MissingFileError(
            f"{url}: a web page, expected a file; give the address of the file itself, and for a repository of Hugging "
            "Face hf://OWNER/REPOSITORY"
        )


def _extent(response: requests.Response, url: str, part: _Part) -> tuple[int, int | None]:
    """Where in the file the response begins, and how long the file is, None if the server does not say."""
    if response.status_code != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() and not _is_encoded(response) else None
    extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if extent is None or int(extent[1]) != part.size():
        part.file.unlink(missing_ok=True)
        raise DownloadError(f"{url}: the server sends another part than it was asked for; try again")
    return int(extent[1]), int(extent[2])


def _version(response: requests.Response) -> str:
    """What to go on by, see RFC 9110, 13.1.5; "" if the server tells nothing that is good for it."""
    etag = response.headers.get("ETag", "")
    if _is_encoded(response):
        return ""
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _is_encoded(response: requests.Response) -> bool:
    return response.headers.get("Content-Encoding", "identity") != "identity"


def _reason(error: requests.RequestException, url: str) -> str:
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "it leads to an address that is not encrypted; if you trust that one, give it"
    if isinstance(error, requests.exceptions.SSLError):
        return f"no secure connection ({one_line(error)})"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"nothing came for {TIMEOUT_S:g} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {urlsplit(url).hostname} ({system_reason(error)}); is this machine online?"
    return one_line(error)


def _advice(part: _Part) -> str:
    return f"; run it again to go on after {part.size() / 1e6:.1f} MB" if part.resumable() else ""
