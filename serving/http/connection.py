"""One HTTP connection: its clocks and counts, around requests that ``framing`` cuts.

A header has ``header_timeout_s``, an idle connection ``keep_alive_s``, an answer that nobody reads
``send_timeout_s``, and the server ``max_http_connections``; where all are taken, the one that has
idled longest makes room. A connection whose client closed its sending side is gone: without
reading, a half-closed client cannot be distinguished from one that left.

Requests are answered one after the other: the next is not looked at before the answer to the one
before it is complete, however many were sent at once.

An answer, mostly a refusal, may come before its request's body has. What is left of the body is
then read and dropped, within ``max_request_bytes`` and ``upload_timeout_s``: were the connection
closed instead, a reset could take the answer from a client that still sends (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.types import Scope
from uvicorn import Config
from uvicorn.server import ServerState

from serving.http.exchange import Exchange, TrustedProxies, begin_answer, parse_address
from serving.http.framing import ProtocolError, RequestHead, RequestReader
from serving.observability.metrics import Metrics
from serving.settings import Settings

# So much is read ahead of the application, or of the answer before it.
MAX_BUFFERED_BYTES = 1 << 16
# Answers that say what is wrong with a request's body.
_REFUSED_BODIES = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT)
# For a client that was refused to read why, while what it still sends is dropped.
LINGER_S = 2.0


class HttpConnection(asyncio.Protocol):
    """One connection; :func:`limit_connections` binds it to a server.

    uvicorn's server makes one for each client, and asks of it to be in ``connections`` of the
    server's state while it is open, and to end by ``shutdown``.
    """

    settings: Settings
    metrics: Metrics
    proxies: TrustedProxies
    # Those of the server that wait for their next request, the longest waiting first.
    idle: dict[HttpConnection, None]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        # What continues after an answer does so outside of the answered request's context.
        self._context = contextvars.copy_context()
        self._reader = RequestReader(
            self.settings.max_header_bytes, self.settings.max_header_fields
        )
        self._transport: asyncio.Transport
        self._peer: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._scheme = "http"
        # The request that is being answered, or whose body is being dropped after its answer.
        self._exchange: Exchange | None = None
        self._is_dropping = False
        self._dropped_bytes = 0
        self._is_refused = False
        self._closes_after_body = False
        self._is_paused = False
        self._is_scheduled = False
        self._writable: asyncio.Event | None = None
        # One clock for what is read (a header, trailers, the body's rest, nothing), one for
        # what is written.
        self._timer: asyncio.TimerHandle | None = None
        self._timed = ""
        self._send_timer: asyncio.TimerHandle | None = None

    # What the transport calls.

    # uvloop's transports are asyncio's by what they do alone.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._peer = _name_address(transport.get_extra_info("peername"))
        self._server = _name_address(transport.get_extra_info("sockname"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        connections = self._state.connections
        if len(connections) >= self.settings.max_http_connections and self.idle:
            longest = next(iter(self.idle))
            longest._close()
            connections.discard(longest)
        # uvicorn names its own protocol classes; it asks no more than ``shutdown`` of them.
        connections.add(self)  # type: ignore[arg-type]
        self.metrics.connections.set(len(connections))
        if len(connections) > self.settings.max_http_connections:
            text = (
                f"{self.settings.max_http_connections} connections are open already "
                f"(setting max_http_connections); try again later"
            )
            self._refuse(ProtocolError(text, HTTPStatus.SERVICE_UNAVAILABLE, "connections"))
        else:
            self._time("header")

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        self._state.connections.discard(self)
        self.metrics.connections.set(len(self._state.connections))
        self._stop_timer()
        self.resume_writing()
        if self._exchange is not None:
            self._exchange.disconnect()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing() or self._is_refused:
            return
        self._reader.feed(data)
        self._advance()

    def eof_received(self) -> None:
        """Closes the transport of a client that has half-closed its side."""

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.Event()
            self._send_timer = self._loop.call_later(
                self.settings.send_timeout_s, self._stop_sending
            )

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    # What uvicorn's server calls.

    def shutdown(self) -> None:
        """Closes after the request that is being answered, at once where there is none."""
        if self._exchange is None:
            self._close()
        elif self._is_dropping:
            self._closes_after_body = True
        else:
            self._exchange.keep_alive = False

    # What the exchange calls.

    def write(self, *parts: bytes) -> None:
        """Writes each part by itself, so that a large one is not copied."""
        if not self._transport.is_closing():
            for part in parts:
                self._transport.write(part)

    async def drain(self) -> None:
        """Returns once the client has read enough of what was written, or is gone."""
        if self._writable is not None:
            await self._writable.wait()

    def resume_body(self) -> None:
        """Reads on: the application has taken what there was of the body."""
        if self._reader.in_body and self._reader.buffered:
            self._schedule()
        elif self._reader.in_body:
            self._set_paused(False)

    def end_exchange(self) -> None:
        """Ends a complete answer and drops what is left of the request's body."""
        self._state.total_requests += 1
        exchange = self._exchange
        if exchange is None or self._transport.is_closing():
            return
        self._closes_after_body = not exchange.keep_alive
        if not self._reader.in_body:
            self._end_request()
            return
        if exchange.awaits_continue:
            # The client may send its body or not: nobody knows what comes next (RFC 9110, 10.1.1).
            self._linger()
            return
        self._is_dropping, self._dropped_bytes = True, exchange.buffered
        self._time("body")
        self._set_paused(False)
        self._schedule()

    def break_off(self) -> None:
        """Closes in the middle of an answer."""
        self._close()

    # Reading.

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._advance_later, context=self._context)

    def _advance_later(self) -> None:
        self._is_scheduled = False
        if not self._transport.is_closing() and not self._is_refused:
            self._advance()

    def _advance(self) -> None:
        """Reads on in what has come, as far as it may be looked at now."""
        try:
            if self._exchange is None:
                head = self._reader.read_head()
                if head is None:
                    if self._reader.has_begun:
                        self.idle.pop(self, None)
                        self._time("header")
                    return
                self._begin_exchange(head)
            if self._reader.in_body:
                self._read_body()
        except ProtocolError as error:
            self._refuse(error)
            return
        self._set_paused(self._reader.buffered > MAX_BUFFERED_BYTES or self._exchange_is_full)

    def _begin_exchange(self, head: RequestHead) -> None:
        self._stop_timer()
        self.idle.pop(self, None)
        self._exchange = exchange = Exchange(
            self, head, self._build_scope(head), self._state.default_headers
        )
        if not self._reader.in_body:
            exchange.add_body(b"", is_last=True)
        task = self._loop.create_task(exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _build_scope(self, head: RequestHead) -> Scope:
        client = self._peer
        scheme = self._scheme
        if client is not None and self.proxies.trusts(client[0]):
            scheme = self.proxies.find_scheme(client[0], scheme, head.headers)
            client = (self.proxies.find_client(client[0], head.headers), 0)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": client,
            "scheme": scheme,
            "method": head.method,
            "root_path": "",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }

    @property
    def _exchange_is_full(self) -> bool:
        """Returns whether the application has more of a body to take than is read ahead of it."""
        exchange = self._exchange
        return (
            exchange is not None
            and not self._is_dropping
            and exchange.buffered > MAX_BUFFERED_BYTES
        )

    def _read_body(self) -> None:
        """Reads one step of the body: one of many small chunks must let other connections run."""
        exchange = self._exchange
        assert exchange is not None
        if self._exchange_is_full:
            return
        before = self._reader.buffered
        piece = self._reader.read_body()
        is_last = not self._reader.in_body
        if self._is_dropping:
            self._dropped_bytes += len(piece)
            if is_last:
                self._end_request()
                return
            if self._dropped_bytes > self.settings.max_request_bytes:
                self._give_up("request_bytes")
                return
        else:
            exchange.add_body(piece, is_last=is_last)
            if self._reader.in_trailers:
                self._time("header")
            elif is_last:
                self._stop_timer()
        if not is_last and 0 < self._reader.buffered < before:
            self._schedule()

    def _end_request(self) -> None:
        """Closes after an answer and its request's body, or waits for the next request."""
        self._exchange = None
        self._is_dropping = False
        if self._closes_after_body and self._reader.buffered:
            self._linger()
            return
        if self._closes_after_body:
            self._close()
            return
        self._set_paused(False)
        self._time("idle")
        self.idle[self] = None
        if self._reader.buffered:
            self._schedule()

    def _set_paused(self, paused: bool) -> None:
        if paused != self._is_paused and not self._transport.is_closing():
            self._is_paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # Clocks.

    def _time(self, what: str) -> None:
        """Starts the clock of what is awaited now, unless it runs already."""
        if what == self._timed and self._timer is not None:
            return
        self._stop_timer()
        seconds, then = self._clocks()[what]
        self._timed, self._timer = what, self._loop.call_later(seconds, then)

    def _clocks(self) -> dict[str, tuple[float, Callable[[], None]]]:
        s = self.settings
        return {
            "header": (s.header_timeout_s, self._stop_waiting),
            "body": (s.upload_timeout_s, lambda: self._give_up("upload_timeout")),
            "idle": (s.keep_alive_s, self._close),
        }

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_waiting(self) -> None:
        self._timer = None
        what = "trailers were" if self._exchange is not None else "header was"
        self._refuse(
            ProtocolError(
                f"the {what} not complete after {self.settings.header_timeout_s:g} s "
                f"(setting header_timeout_s)",
                HTTPStatus.REQUEST_TIMEOUT,
                "header_timeout",
            )
        )

    def _stop_sending(self) -> None:
        self._send_timer = None
        self.metrics.reject("send_timeout")
        self._transport.abort()

    # Closing.

    def _give_up(self, reason: str) -> None:
        self._count_refusal(reason)
        self._close()

    def _count_refusal(self, reason: str) -> None:
        """Counts one, unless the request was refused for its body before, and so counted: what is
        dropped behind that answer is mostly against the same limit again."""
        if self._exchange is None or self._exchange.status not in _REFUSED_BODIES:
            self.metrics.reject(reason)

    def _refuse(self, error: ProtocolError) -> None:
        """Answers without the application, where no answer has begun, and closes."""
        self._is_refused = True
        self._count_refusal(error.reason)
        self._stop_timer()
        self.idle.pop(self, None)
        exchange = self._exchange
        if exchange is not None:
            exchange.disconnect()
        if exchange is not None and exchange.is_begun:
            self._close()
            return
        body = json.dumps({"error": str(error), "code": error.reason}).encode()
        headers = [
            *self._state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append((b"allow", b"GET, HEAD, OPTIONS, POST, PUT"))
        self.write(begin_answer(error.status, headers) + b"\r\n" + body)
        if error.reason == "connections":
            # One too many is not kept any longer.
            self._close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Closes once the client has: what it still sends is read and dropped until then.

        Unread, it would make the kernel reset the connection, and the answer with it
        (RFC 9112, 9.6).
        """
        self._is_refused = True
        if not self._transport.can_write_eof():
            self._close()
            return
        self._set_paused(False)
        self._transport.write_eof()
        self._stop_timer()
        self._timer = self._loop.call_later(LINGER_S, self._close)

    def _close(self) -> None:
        """Closes behind what was written, which the client has ``send_timeout_s`` to read."""
        self.idle.pop(self, None)
        self._stop_timer()
        self._transport.close()
        if self._send_timer is None and self._transport.get_write_buffer_size():
            self._send_timer = self._loop.call_later(
                self.settings.send_timeout_s, self._stop_sending
            )


def limit_connections(settings: Settings, metrics: Metrics) -> type[asyncio.Protocol]:
    """Returns the protocol class for one server's uvicorn."""
    bound = {
        "settings": settings,
        "metrics": metrics,
        "proxies": TrustedProxies(settings.trusted_proxies),
        "idle": {},
    }
    return type("Connection", (HttpConnection,), bound)


def _name_address(found: object) -> tuple[str, int] | None:
    """Returns host and port of a socket's address; None where it has none."""
    if not isinstance(found, tuple) or len(found) < 2:
        return None
    return str(parse_address(str(found[0])) or found[0]), int(found[1])
