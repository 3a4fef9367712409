"""The page of metrics, and the port that it has for itself.

The port answers from threads of its own, so that a scrape comes through while the event loop is
stuck. Anybody who reaches it may ask, without a key: it has few connections, each for a short
time, and writing the page takes at most a part of the time of the interpreter, however many ask.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

MAX_CONNECTIONS = 32
# Of one connection, from its first byte to its last: Prometheus' own default for a scrape.
CONNECTION_S = 10.0
# A page may take so much of the time: with many models it is a megabyte of text, made by Python.
MAX_SHARE = 0.25
MAX_PAUSE_S = 2.0
METHODS = "GET, HEAD, OPTIONS"


class MetricsPage:
    """Writes the page on a thread of its own: once for all that ask while one is being written.

    Every page is begun after it was asked for, so it holds what was counted before.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._next: Future[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._not_before = 0.0

    def ask(self) -> Future[bytes]:
        """Returns the next page, which others may wait for too; do not cancel it."""
        with self._lock:
            if self._next is None:
                self._next = self._thread.submit(self._write)
            return self._next

    def close(self) -> None:
        """Writes no more pages; whoever waits for one gets a CancelledError."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self) -> bytes:
        time.sleep(max(0.0, self._not_before - time.monotonic()))
        with self._lock:
            self._next = None
        start = time.monotonic()
        page = generate_latest(self._registry)
        end = time.monotonic()
        self._not_before = end + min((end - start) * (1.0 / MAX_SHARE - 1.0), MAX_PAUSE_S)
        return page


class _Handler(BaseHTTPRequestHandler):
    """A connection with one request (HTTP/1.0)."""

    server: MetricsServer
    # Of each read and write.
    timeout = CONNECTION_S

    def do_GET(self) -> None:
        """Answers with the page, whatever the path is, as clients of Prometheus do."""
        self.server.begin(self.connection)
        if self.path.partition("?")[0] == "/favicon.ico":
            self._answer(404, b"", [])
            return
        page, headers = self.server.page.ask().result(), [("Content-Type", CONTENT_TYPE_LATEST)]
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            page = gzip.compress(page, 1)
            headers.append(("Content-Encoding", "gzip"))
        self._answer(200, page, headers)

    def do_OPTIONS(self) -> None:
        """Returns which methods there are."""
        self._answer(204, b"", [("Allow", METHODS)])

    def do_POST(self) -> None:
        """Refuses the method."""
        self._answer(405, f"expected {METHODS}\n".encode(), [("Allow", METHODS)])

    # The names are http.server's.
    do_HEAD = do_GET  # noqa: N815
    do_PUT = do_DELETE = do_PATCH = do_TRACE = do_POST  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Does not say which version of what this is."""
        return "segserve"

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: scrapes are not logged."""


class MetricsServer(ThreadingMixIn, HTTPServer):
    """Answers scrapes on a bound socket, from a thread of its own and one for each connection.

    Above ``MAX_CONNECTIONS`` the one that has waited longest to send its request makes room; where
    all have sent theirs, the new one is closed.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, listener: socket.socket, page: MetricsPage) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_port = listener.getsockname()[1]
        self.page = page
        # When each open connection began; those whose request has not come, the oldest first.
        self._open: dict[socket.socket, float] = {}
        self._waiting: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        # Set by close(): a server that stops does not wait.
        self._pause = threading.Event()
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, name="metrics port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; connections end with their answers."""
        self._pause.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def begin(self, request: socket.socket) -> None:
        """Marks a connection whose request has come."""
        with self._lock:
            self._waiting.pop(request, None)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection; waits a little where no file is left for one."""
        try:
            return super().get_request()
        except OSError:
            self._pause.wait(0.05)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a new connection on a thread, or closes it where there are too many."""
        with self._lock:
            is_full = len(self._open) >= MAX_CONNECTIONS
            if is_full and self._waiting:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                self._open.pop(oldest, None)
                _end(oldest)
                is_full = False
            if not is_full:
                self._open[request] = time.monotonic()
                self._waiting[request] = None
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._open.pop(request, None)
            self._waiting.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends what has been open for too long: a byte now and then must not keep it open."""
        now = time.monotonic()
        with self._lock:
            for request, began in self._open.items():
                if now - began > CONNECTION_S:
                    _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores the error: a client that has disconnected is not one of the server's."""


def _end(request: socket.socket) -> None:
    """Makes its thread's reads and writes return."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
