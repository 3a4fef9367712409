"""Limits of one HTTP connection, below the application: uvicorn's protocol with clocks and counts.

uvicorn never closes a connection whose header is unfinished, reads headers of any length, and waits
for ever for a client that stopped reading. Here a header has ``header_timeout_s`` and
``max_header_bytes``, an answer that nobody reads ``send_timeout_s``, and the server
``max_http_connections``. A connection whose client closed its sending side is gone: without
reading, a half-closed client cannot be told from one that left.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.metrics import Metrics
from serving.settings import Settings


class HttpConnection(HttpToolsProtocol):
    """One connection; :func:`limit_connections` binds it to a server."""

    settings: Settings
    metrics: Metrics

    # Of the request being read: None once its header is complete.
    _header_bytes: int | None = 0
    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _refused: tuple[HTTPStatus, str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.metrics.connections.set(len(self.connections))
        if len(self.connections) > self.settings.max_http_connections:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "connections",
                f"{self.settings.max_http_connections} connections are open already "
                f"(setting max_http_connections); try again later",
            )
        else:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.metrics.connections.set(len(self.connections))
        self._stop_header_timer()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._refused is not None or self.transport.is_closing():
            return
        super().data_received(data)
        if self._refused is not None or self.transport.is_closing():
            return
        if self._header_bytes is None:
            # What follows an answer is the next header, even where it does not look like one yet.
            if self.cycle is not None and self.cycle.response_complete:
                self._start_header_timer()
            return
        # The parser holds what of a header has not ended yet.
        self._header_bytes += len(data)
        self._start_header_timer()
        if self._header_bytes > self.settings.max_header_bytes:
            self._refuse(*self._too_long())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._start_header_timer()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_header_bytes:
            self._refused = self._too_long()
            # The parser stops, and send_400_response answers.
            raise ValueError
        self._header_bytes = None
        self._stop_header_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request: as the refusal says where there is one."""
        refused = self._refused or (HTTPStatus.BAD_REQUEST, "invalid_request", msg)
        self._refuse(*refused)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(
                self.settings.send_timeout_s, self._stop_sending
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _too_long(self) -> tuple[HTTPStatus, str, str]:
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header_bytes",
            f"the header is longer than {self.settings.max_header_bytes} bytes "
            f"(setting max_header_bytes)",
        )

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self.settings.header_timeout_s, self._stop_waiting
            )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_waiting(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # The header of a pipelined request: the answer before it comes first.
            self._start_header_timer()
            return
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            "header_timeout",
            f"the header was not complete after {self.settings.header_timeout_s:g} s "
            f"(setting header_timeout_s)",
        )

    def _stop_sending(self) -> None:
        self._send_timer = None
        self.metrics.reject("send_timeout")
        self.transport.abort()

    def _refuse(self, status: HTTPStatus, reason: str, text: str) -> None:
        """Answers without the application, and closes."""
        self._refused = (status, reason, text)
        self.metrics.reject(reason)
        self._stop_header_timer()
        body = json.dumps({"error": text, "code": reason}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def limit_connections(settings: Settings, metrics: Metrics) -> type[asyncio.Protocol]:
    """The protocol class for one server's uvicorn."""
    return type("Connection", (HttpConnection,), {"settings": settings, "metrics": metrics})
