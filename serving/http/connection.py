"""Limits of one HTTP connection, below the application: uvicorn's protocol with clocks and counts.

uvicorn never closes a connection whose header is unfinished, reads headers of any length, and waits
for ever for a client that stopped reading. Here a header has ``header_timeout_s`` and
``max_header_bytes``, an answer that nobody reads ``send_timeout_s``, and the server
``max_http_connections``. A connection whose client closed its sending side is gone: without
reading, a half-closed client cannot be told from one that left.

An answer, mostly a refusal, may come before its request's body has. What is left of the body is
then read and dropped, within ``max_request_bytes`` and ``upload_timeout_s``: were the connection
closed instead, a reset could take the answer from a client that still sends (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.answer_writer import AnswerWriter
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
    # Requests whose header was complete, and of the last of them:
    _messages = 0
    _has_body_left = False
    # While what is left of a body is dropped.
    _drop_timer: asyncio.TimerHandle | None = None
    _dropped_bytes = 0
    _closes_after_body = False

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
        self._stop_dropping()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._refused is not None or self.transport.is_closing():
            return
        drops = self._drop_timer is not None
        super().data_received(data)
        if self._refused is not None or self.transport.is_closing():
            return
        if self._header_bytes is None and drops:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > self.settings.max_request_bytes:
                self._give_up_body("request_bytes")
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
        self._messages += 1
        self._has_body_left = True
        super().on_headers_complete()
        self.cycle.transport = AnswerWriter(  # type: ignore[assignment]
            self.transport, self.loop, partial(self._close_after, self._messages)
        )

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._has_body_left = False
        if self._drop_timer is None:
            return
        self._stop_dropping()
        if self._closes_after_body:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_body_left and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self._dropped_bytes = 0
            self._drop_timer = self.loop.call_later(
                self.settings.upload_timeout_s, self._give_up_body, "upload_timeout"
            )

    def _close_after(self, message: int) -> None:
        """Closes once the body of that message, from 1, has come."""
        # An answer that broke off is not to be waited with.
        if message == self._messages and self._has_body_left and self.cycle.response_complete:
            self._closes_after_body = True
        else:
            self.transport.close()

    def shutdown(self) -> None:
        if self._drop_timer is not None:
            self._closes_after_body = True
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request: as the refusal says where there is one."""
        if self._drop_timer is not None:
            # Of a request that has its answer.
            self.transport.close()
            return
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

    def _stop_dropping(self) -> None:
        if self._drop_timer is not None:
            self._drop_timer.cancel()
            self._drop_timer = None

    def _give_up_body(self, reason: str) -> None:
        self._stop_dropping()
        self.metrics.reject(reason)
        self.transport.close()

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
