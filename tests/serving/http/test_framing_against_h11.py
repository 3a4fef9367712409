"""The reader of HTTP/1.1 against another one: what both take, they cut in the same places."""

from __future__ import annotations

import random
from typing import TypeAlias

import h11
import pytest

from serving.http.framing import ProtocolError, RequestReader

Requests: TypeAlias = list[tuple[str, bytes]]
WHOLE = (
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nabcde\r\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
)
PIECES = (
    b"POST / HTTP/1.1\r\n", b"GET /a HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 05\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\nabcde\r\n",
    b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"hello", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"Connection: close\r\n", b" ", b"\n", b"\r", b":", b"3;x\r\nabc\r\n", b"\0",
    b"Transfer-Encoding: gzip\r\n",
)  # fmt: skip


def read_ours(data: bytes) -> tuple[Requests, bool]:
    """The requests, and whether the stream broke off in an error."""
    reader, found = RequestReader(4096, 64), Requests()
    reader.feed(data)
    try:
        while (head := reader.read_head()) is not None:
            body = b""
            while reader.in_body:
                before = reader.buffered
                body += reader.read_body()
                if reader.in_body and reader.buffered in (0, before):
                    return found, False
            found.append((head.method, body))
            if not head.keep_alive:
                break
    except ProtocolError:
        return found, True
    return found, False


def read_theirs(data: bytes) -> tuple[Requests, bool]:
    connection, found = h11.Connection(h11.SERVER), Requests()
    connection.receive_data(data)
    method, body = "", b""
    try:
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                method, body = event.method.decode(), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, body))
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return found, True
    return found, False


def mutate(rng: random.Random) -> bytes:
    data = bytearray(b"".join(rng.choice(WHOLE) for _ in range(rng.randint(1, 3))))
    for _ in range(rng.randint(0, 3)):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.5:
            data[at:at] = rng.choice(PIECES)
        elif kind < 0.75:
            del data[at : at + rng.randint(1, 4)]
        else:
            data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_no_stream_is_cut_otherwise(seed: int) -> None:
    rng, both = random.Random(seed), 0
    for _ in range(1500):
        data = mutate(rng)
        ours, theirs = read_ours(data), read_theirs(data)
        common = min(len(ours[0]), len(theirs[0]))
        assert ours[0][:common] == theirs[0][:common], data
        # Where h11 finds nothing wrong, no more requests are seen than it sees.
        if not theirs[1]:
            assert len(ours[0]) <= len(theirs[0]), data
        both += not ours[1] and not theirs[1]
    # The streams are not all broken.
    assert both > 300
