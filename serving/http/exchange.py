"""One request and its answer, between a connection and the ASGI application.

The head of an answer is held until its body's first part, and both are sent in one call of the
kernel, which costs more than to make them.

A request's client is who connected, or, behind ``trusted_proxies``, who ``X-Forwarded-For`` names.
Anybody can write that header: it is read from the right, as each proxy adds the address it was
asked from at the end, and believed only as far as those that wrote it are trusted.

Source: ASGI specification 3.0, HTTP & WebSocket message format 2.3.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from serving.http.framing import RequestHead

log = logging.getLogger("segserve")

# asyncio's own transport joins what is written together, and a large body is not to be copied.
MAX_JOINED_BYTES = 1 << 16
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")


class Wire(Protocol):
    """The part of a connection that an exchange uses."""

    def write(self, *parts: bytes) -> None: ...

    async def drain(self) -> None:
        """Returns once the client has read enough of what was written."""
        ...

    def resume_body(self) -> None:
        """Lets more of the request's body come."""
        ...

    def end_exchange(self) -> None:
        """Ends the exchange: the answer is complete."""
        ...

    def break_off(self) -> None:
        """Closes the connection of an answer that cannot be completed, so that the client
        notices."""
        ...


def begin_answer(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns a status line and headers, without the empty line behind them.

    Raises:
        ValueError: a name or a value would break out of its line.
    """
    try:
        phrase = HTTPStatus(status).phrase.encode()
    except ValueError:
        phrase = b""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, phrase)]
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"{name!r}: {value!r} is not a valid header")
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


class Exchange:
    """Runs the application for one request.

    Attributes:
        keep_alive: whether another request may follow the answer.
        is_begun, is_complete: of the answer.
        status: of the answer; 0 before it has begun.
        buffered: bytes of the body that the application has not taken.
        awaits_continue: whether the client still waits for 100 Continue; then no other
            request may follow.
    """

    def __init__(
        self,
        wire: Wire,
        head: RequestHead,
        scope: Scope,
        default_headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        self.keep_alive = head.keep_alive
        self.is_begun = False
        self.is_complete = False
        self.status = 0
        self.buffered = 0
        self._wire = wire
        self._scope = scope
        self._default_headers = default_headers
        self._is_head = head.method == "HEAD"
        self._version = head.version
        self.awaits_continue = head.expects_continue
        self._pieces: list[bytes] = []
        self._body_has_ended = False
        self._end_was_received = False
        self._is_gone = False
        self._changed = asyncio.Event()
        # Of the answer: its head until the first part of the body, and how that body is framed.
        self._held: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._has_no_body = False
        self._is_chunked = False
        self._left: int | None = None

    async def run(self, app: ASGIApp) -> None:
        """Awaits the application; an error of it that nobody caught becomes a 500."""
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._wire.break_off()
            raise
        except Exception:
            log.exception("the application failed")
            await self._fail()
        else:
            if not self.is_complete and not self._is_gone:
                log.error("the application did not complete its answer")
                await self._fail()

    def add_body(self, piece: bytes, *, is_last: bool) -> None:
        """Takes a part of the request's body from the wire."""
        if piece:
            self._pieces.append(piece)
            self.buffered += len(piece)
            self.awaits_continue = False
        self._body_has_ended = is_last
        self._changed.set()

    def disconnect(self) -> None:
        """Tells the application that nobody reads its answer any more."""
        self._is_gone = True
        self._changed.set()

    async def receive(self) -> Message:
        """Implements ASGI's ``receive``: the body in parts, then ``http.disconnect``."""
        if self.awaits_continue and not self._is_gone:
            self.awaits_continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (
            self._is_gone
            or self.is_complete
            or self._pieces
            or (self._body_has_ended and not self._end_was_received)
        ):
            self._wire.resume_body()
            self._changed.clear()
            await self._changed.wait()
        if self._is_gone or self.is_complete:
            return {"type": "http.disconnect"}
        pieces, self._pieces = self._pieces, []
        self.buffered = 0
        self._end_was_received = self._body_has_ended
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": not self._body_has_ended}

    async def send(self, message: Message) -> None:
        """Implements ASGI's ``send``; without effect once the client is gone."""
        await self._wire.drain()
        if self._is_gone:
            return
        if message["type"] == "http.response.start" and not self.is_begun:
            self.is_begun = True
            self._held = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body" and self.is_begun and not self.is_complete:
            self._send_body(message.get("body", b""), bool(message.get("more_body", False)))
        else:
            raise RuntimeError(f"{message['type']} at the wrong time")

    def _send_body(self, body: bytes, more: bool) -> None:
        head = b""
        if self._held is not None:
            (status, headers), self._held = self._held, None
            head = self._build_head(status, headers, None if more else len(body))
        if self._left is not None:
            if len(body) > self._left or (not more and len(body) < self._left):
                raise RuntimeError(f"{len(body)} bytes of a body that should have {self._left}")
            self._left -= len(body)
        if self._is_chunked:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = framed if more else framed + b"0\r\n\r\n"
        elif self._has_no_body:
            body = b""
        if len(body) <= MAX_JOINED_BYTES:
            self._wire.write(head + body)
        else:
            self._wire.write(head, body)
        if not more:
            self.is_complete = True
            self._changed.set()
            self._wire.end_exchange()

    def _build_head(
        self, status: int, headers: list[tuple[bytes, bytes]], length: int | None
    ) -> bytes:
        """Frames the answer: by its length, in chunks, or by the end of the connection.

        Args:
            length: of the whole body where it is known already.
        """
        self.status = status
        self._has_no_body = self._is_head or status in (204, 304)
        kept: list[tuple[bytes, bytes]] = [*self._default_headers]
        has_length = False
        for name, value in headers:
            name = name.lower()
            if name == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
            elif name == b"transfer-encoding" or (name == b"content-length" and status == 204):
                continue
            else:
                kept.append((name, value))
                if name == b"content-length":
                    has_length = True
                    self._left = int(value)
        if self._has_no_body:
            self._left = None
        elif not has_length and length is not None:
            kept.append((b"content-length", b"%d" % length))
            self._left = length
        elif not has_length and self._version == "1.1":
            kept.append((b"transfer-encoding", b"chunked"))
            self._is_chunked = True
        elif not has_length:
            self.keep_alive = False
        self.keep_alive = self.keep_alive and not self.awaits_continue
        if not self.keep_alive:
            kept.append((b"connection", b"close"))
        elif self._version == "1.0":
            kept.append((b"connection", b"keep-alive"))
        return begin_answer(status, kept) + b"\r\n"

    async def _fail(self) -> None:
        """Answers that the server failed, if it is not too late."""
        self.keep_alive = False
        if self.is_complete or self._is_gone:
            return
        if self.is_begun and self._held is None:
            self._wire.break_off()
            return
        self.is_begun, self._held = True, None
        self._left = None
        body = b'{"error": "the server failed; see its log", "code": "internal"}'
        headers = [(b"content-type", b"application/json")]
        self._wire.write(self._build_head(500, headers, len(body)), b"" if self._is_head else body)
        self.is_complete = True
        self._changed.set()
        self._wire.end_exchange()


Address = IPv4Address | IPv6Address
MAX_HOPS = 32


class TrustedProxies:
    """Finds the client's own address and scheme behind the proxies that are trusted.

    Args:
        networks: addresses or networks, as ``10.0.0.0/8`` or ``::1``.

    Raises:
        ValueError: one of them is neither.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ip_network(network) for network in networks)

    def trusts(self, host: str) -> bool:
        """Returns whether a peer of that address may say for whom it asks."""
        if not self._networks:
            return False
        address = parse_address(host)
        return address is not None and self._contains(address)

    def find_client(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Returns the address of the last hop that is not trusted; the peer's where it is not.

        An entry that is not an address ends the search at the proxy that passed it on.
        """
        if not self.trusts(peer):
            return peer
        values = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        client = peer
        for entry in reversed(values.split(b",")[-MAX_HOPS:]):
            address = parse_address(entry.decode("latin-1"))
            if address is None:
                break
            client = str(address)
            if not self._contains(address):
                break
        return client

    def find_scheme(self, peer: str, scheme: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Returns what the client speaks: ``X-Forwarded-Proto`` where a trusted proxy says so."""
        if self.trusts(peer):
            for name, value in reversed(headers):
                if name == b"x-forwarded-proto":
                    last = value.rpartition(b",")[2].strip().lower()
                    return last.decode("ascii") if last in (b"http", b"https") else scheme
        return scheme

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse_address(text: str) -> Address | None:
    """Returns an address written alone, in brackets, or with a port; None for anything else.

    IPv4 inside IPv6 (``::ffff:192.0.2.1``, what a socket of both sees) is IPv4.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
