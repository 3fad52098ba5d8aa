"""A web server on this machine: files that break off, stall, move and change, and what it was asked for."""

import hashlib
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class WebServer(ThreadingHTTPServer):
    """What the tests set is an attribute here.

    Attributes:
        files: Contents by path.
        types: Their media types, `application/octet-stream` by default.
        moved: Addresses that paths lead to.
        statuses: Errors, and the `X-Error-Code` that goes with them, by path.
        most: Bytes of a file that one answer gives at most before the connection breaks.
        stalls: Whether the connection then stays open instead, without a byte.
        pause: Seconds between pieces of 16 KiB.
        shift: How many bytes too late the rest of a file begins that was asked for.
        versions: Whether files have an `ETag`, without which nothing is given but whole files.
        asked: The path and the first byte of each request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.types, self.moved, self.statuses, self.asked = {}, {}, {}, {}, []
        self.most, self.stalls, self.pause, self.shift, self.versions = None, False, 0.0, 0, True
        self.closing = threading.Event()
        self.scheme = "http"

    def handle_error(self, request, client_address):
        """Say nothing of clients that hang up, which is what they are here for."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"

    def put_folder(self, folder: Path, path: str) -> None:
        """Serve the files in `folder` below `path`."""
        self.files |= {f"{path}/{file.name}": file.read_bytes() for file in folder.iterdir()}

    def put_repository(self, name: str, files: dict[str, bytes]) -> None:
        """Serve a model repository as Hugging Face does, at a commit and under the revision `v1`."""
        about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        for path in (f"/api/models/{name}", f"/api/models/{name}/revision/v1"):
            self.files[path] = json.dumps(about).encode()
            self.types[path] = "application/json"
        self.files |= {f"/{name}/resolve/{COMMIT}/{file}": content for file, content in files.items()}

    def secure(self, folder: Path) -> Path:
        """Speak HTTPS, with a certificate for 127.0.0.1, whose path is returned."""
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
        names = "subjectAltName=IP:127.0.0.1"
        subprocess.run([*command.split(), names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"
        return certificate


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: one file a connection."""

    server: WebServer

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        body = self._answer()
        most = len(body) if self.server.most is None else self.server.most
        for start in range(0, min(len(body), most), 2**14):
            self.wfile.write(body[start : min(start + 2**14, most)])
            self.server.closing.wait(self.server.pause)
        if self.server.stalls and most < len(body):
            self.server.closing.wait(10)

    def _answer(self) -> bytes:
        """Send status and headers, and return the body to send."""
        server, path = self.server, self.path.partition("?")[0]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        server.asked.append((path, start))
        if path in server.moved:
            return self._headers(302, Location=server.moved[path])
        if path not in server.files:
            status, code = server.statuses.get(path, (404, ""))
            return self._headers(status, **{"X-Error-Code": code} if code else {})
        body = server.files[path]
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if not server.versions or self.headers.get("If-Range", etag) != etag:
            start = 0
        start += server.shift if start else 0
        if start >= len(body):
            return self._headers(416)
        headers = {"Content-Type": server.types.get(path, "application/octet-stream"), "X-Repo-Commit": COMMIT}
        if server.versions:
            headers["ETag"] = etag
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._headers(206 if start else 200, **headers, **{"Content-Length": str(len(body) - start)})
        return body[start:]

    def _headers(self, status: int, **headers: str) -> bytes:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return b""

    def log_message(self, *_):
        pass


@contextmanager
def web_server() -> Iterator[WebServer]:
    """A server that runs as long as the context."""
    with WebServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
