"""A file server on this machine that can answer in parts, break off, or know no ranges."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from training.datasets.preparation import Archive


class Files:
    """A file server that notes which ranges it was asked for."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut = 0  # bytes after which an answer breaks off
        self.ranges = True
        self.port = 0

    def archive(self, file: str, content: bytes, moved: tuple[str, str] = ("", "")) -> Archive:
        self.content[f"/{file}"] = content
        digest = hashlib.sha1(content).hexdigest()
        return Archive(file, digest, f"http://127.0.0.1:{self.port}/{file}", moved)


@contextmanager
def serve_files() -> Iterator[Files]:
    """Serves until the block ends."""
    served = Files()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.asked.append((self.path, wanted))
            content = served.content.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            start = start if served.ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: served.cut] if served.cut else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()
