"""Where requests begin and end, on raw sockets to a real server: every fault gets its status, what
follows it is not read as something else, and what was hidden in a body never reaches the
application."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import httpx
import pytest
import uvloop

from serving.http.framing import ProtocolError, RequestReader
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    MODEL_SIZE,
    Served,
    band_labels,
    bands,
    encode,
    free_ports,
    serve_fake,
)
from tests.support.band_model import write_model as write_bands
from tests.support.waiting import wait_for

DATA = encode(bands(32, 48))
LABELS = band_labels(32, 48).tobytes()
PATH = "/v2/models/bands/segment?format=raw"
LENGTH = f"Content-Length: {len(DATA)}\r\n".encode()
LIMITS = {"max_header_bytes": 4096, "max_header_fields": 64, "header_timeout_s": 1.5}
# Loads a model: only a request that was smuggled past its own frame would do it here.
SMUGGLED = (
    b"POST /v2/repository/models/smuggled/load HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def served(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Served]:
    """On the event loop of `segserve serve`, and on asyncio's own, as transports differ."""
    folder = tmp_path_factory.mktemp("framing")
    write_bands(folder)
    engine = FakeEngine(MODEL_SIZE)
    settings = free_ports(folder).model_copy(update=LIMITS)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "uvloop":
            patch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
        thread = ServerThread(settings, serve_fake(engine))
    with thread as server:
        yield Served(server, engine)


@pytest.fixture
def reached(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Method and path of each request that reaches the application from now on."""
    found: list[str] = []
    contexts = served.server.contexts
    begin = contexts.begin

    def note(transport: str, method: str, path: str, *rest: object) -> object:
        found.append(f"{method} {path}")
        return begin(transport, method, path, *rest)

    monkeypatch.setattr(contexts, "begin", note)
    return found


def post(
    *fields: bytes, path: str = PATH, version: bytes = b"1.1", host: bytes = b"Host: here\r\n"
):
    """The head of an upload, with more fields."""
    line = f"POST {path} HTTP/".encode() + version + b"\r\n"
    return line + host + b"".join(fields) + b"\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


class Wire:
    """A connection whose answers are read one by one."""

    def __init__(self, served: Served) -> None:
        self.socket = socket.create_connection(("127.0.0.1", served.server.ports.http), 30)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, method: str = "POST") -> tuple[HTTPResponse, bytes]:
        answer = HTTPResponse(self.socket, method=method)
        # A buffer of its own would swallow the answer behind this one.
        answer.fp = self.socket.makefile("rb", buffering=0)
        answer.begin()
        return answer, answer.read()

    def rest(self) -> bytes:
        """What comes until the server closes."""
        pieces = []
        while piece := self.socket.recv(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


def check_goes_on(wire: Wire) -> None:
    """The connection's next request is read as what it is."""
    wire.send(post(LENGTH) + DATA)
    answer, body = wire.read()
    assert (answer.status, body) == (200, LABELS)


def refused(served: Served, data: bytes) -> tuple[int, bytes]:
    """Status and body of the one answer to ``data``; the connection is closed behind it."""
    with Wire(served) as wire:
        wire.send(data)
        answer, body = wire.read()
        assert answer.getheader("connection") == "close"
        assert wire.rest() == b""
    return answer.status, body


@pytest.mark.parametrize(
    "offer",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Upgrade: TLS/1.2\r\nConnection: Upgrade\r\n",
        b"Upgrade: anything/1, else\r\nConnection: keep-alive, Upgrade\r\n",
        b"Connection: upgrade\r\nUpgrade: \r\n",
        b"Upgrade: h2c\r\n",
    ],
    ids=["h2c", "websocket", "tls", "list", "empty", "without connection"],
)
@pytest.mark.parametrize("framing", ["length", "chunks", "no body"])
def test_offers_to_upgrade_are_ignored(
    served: Served, reached: list[str], offer: bytes, framing: str
) -> None:
    """RFC 9110, 7.8. The body is this request's, whatever it looks like."""
    with Wire(served) as wire:
        if framing == "no body":
            wire.send(post(offer, path="/v2").replace(b"POST", b"GET", 1))
            assert wire.read("GET")[0].status == 200
        else:
            for body, status in ((DATA, 200), (SMUGGLED, 400)):
                if framing == "length":
                    wire.send(post(offer, b"Content-Length: %d\r\n" % len(body)) + body)
                else:
                    wire.send(post(offer, CHUNKED) + chunk(body) + b"0\r\n\r\n")
                answer, content = wire.read()
                assert answer.status == status, content
                assert answer.getheader("upgrade") is None
        check_goes_on(wire)
    assert not any("smuggled" in path for path in reached)


@pytest.mark.parametrize("target", [b"here:80", b"/", b"http://here/"])
def test_connect_is_refused_and_closed(served: Served, reached: list[str], target: bytes) -> None:
    head = b"CONNECT " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n"
    status, body = refused(served, head + SMUGGLED)
    assert (status, b"CONNECT" in body) == (405, True)
    assert reached == []


MALFORMED = {
    "two hosts": post(b"Host: there\r\n", LENGTH),
    "two equal hosts": post(b"Host: here\r\n", LENGTH),
    "no host": post(LENGTH, host=b""),
    "host with a path": post(LENGTH, host=b"Host: here/there\r\n"),
    "host with a blank": post(LENGTH, host=b"Host: here there\r\n"),
    "host with a user": post(LENGTH, host=b"Host: me@here\r\n"),
    "host with a port that is none": post(LENGTH, host=b"Host: here:http\r\n"),
    "host with a bracket": post(LENGTH, host=b"Host: [::1\r\n"),
    "length and chunks": post(LENGTH, CHUNKED),
    "chunks and length": post(CHUNKED, LENGTH),
    "two lengths": post(b"Content-Length: 4\r\n", LENGTH),
    "equal lengths": post(LENGTH, LENGTH),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n"),
    "a length with a sign": post(b"Content-Length: +5\r\n"),
    "a negative length": post(b"Content-Length: -5\r\n"),
    "a hexadecimal length": post(b"Content-Length: 0x5\r\n"),
    "a length with a point": post(b"Content-Length: 5.0\r\n"),
    "a length with an underscore": post(b"Content-Length: 1_0\r\n"),
    "an empty length": post(b"Content-Length:\r\n"),
    "a superscript length": post("Content-Length: ²\r\n".encode()),
    "chunks in HTTP/1.0": post(CHUNKED, version=b"1.0"),
    "folded field": post(b"X-A: b\r\n c\r\n", LENGTH),
    "folded first": post(LENGTH, host=b" Host: here\r\n"),
    "blank before the colon": post(b"Content-Length : 5\r\n"),
    "blank in a name": post(b"X A: 5\r\n"),
    "no colon": post(b"X-A\r\n"),
    "no name": post(b": 5\r\n"),
    "bare LF": post(b"X-A: b\n", LENGTH),
    "bare LF alone": b"GET /v2 HTTP/1.1\nHost: here\n\n",
    "bare CR": post(b"X-A: b\rX-B: c\r\n", LENGTH),
    "NUL": post(b"X-A: b\0c\r\n", LENGTH),
    "HTTP/0.9": b"GET /v2\r\n",
    "HTTP/0.9 by name": b"GET /v2 HTTP/0.9\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version": b"GET /v2 HTTP/1\r\nHost: here\r\n\r\n",
    "version in lower case": b"GET /v2 http/1.1\r\nHost: here\r\n\r\n",
    "two blanks": b"GET  /v2 HTTP/1.1\r\nHost: here\r\n\r\n",
    "tab": b"GET\t/v2 HTTP/1.1\r\nHost: here\r\n\r\n",
    "blank in the target": b"GET /v2 x HTTP/1.1\r\nHost: here\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: here\r\n\r\n",
    "authority as target": b"GET here:80 HTTP/1.1\r\nHost: here\r\n\r\n",
    "another scheme": b"GET ftp://here/v2 HTTP/1.1\r\nHost: here\r\n\r\n",
    "absolute without a host": b"GET http:///v2 HTTP/1.1\r\nHost: here\r\n\r\n",
    "absolute with a user": b"GET http://me@here/v2 HTTP/1.1\r\nHost: here\r\n\r\n",
    "star": b"GET * HTTP/1.1\r\nHost: here\r\n\r\n",
    "method": b"GE(T /v2 HTTP/1.1\r\nHost: here\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_could_be_read_in_two_ways_is_refused(
    served: Served, reached: list[str], data: bytes
) -> None:
    """RFC 9112; at once, not after the header's time is over."""
    begin = time.monotonic()
    status, _ = refused(served, data + (SMUGGLED if b"\r\n\r\n" in data else b""))
    assert status == 400
    assert time.monotonic() - begin < 60
    assert reached == []


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"gzip, chunked", 501),
        (b"xchunked", 501),
        (b"chunked, chunked", 501),
        (b"identity", 501),
        (b"chunked, identity", 501),
        (b"CHUNKED", 200),
        (b"chunked \t", 200),
    ],
)
def test_only_the_coding_chunked_is_known(
    served: Served, reached: list[str], coding: bytes, status: int
) -> None:
    data = post(b"Transfer-Encoding: " + coding + b"\r\n") + chunk(DATA) + b"0\r\n\r\n"
    with Wire(served) as wire:
        wire.send(data)
        assert wire.read()[0].status == status
        if status == 200:
            check_goes_on(wire)
    assert len(reached) == (2 if status == 200 else 0)


@pytest.mark.parametrize("version", [b"2.0", b"3.0"])
def test_other_versions_are_named(served: Served, version: bytes) -> None:
    status, body = refused(served, post(LENGTH, version=version))
    assert (status, b"HTTP/1.1" in body) == (505, True)


@pytest.mark.parametrize(
    "head",
    [
        post(b"Content-Length: " + b"0" * 3000 + b"%d\r\n" % len(DATA)),
        post(b"Content-Length:%d \t\r\n" % len(DATA)),
        post(LENGTH, version=b"1.0", host=b""),
        post(LENGTH, version=b"1.7"),
        post(LENGTH, host=b"Host:\r\n"),
        post(LENGTH, host=b"Host: [::1]:8000\r\n"),
        post(LENGTH, host=b"hOsT: seg_serve.example:\r\n"),
        post(LENGTH, path="http://elsewhere:1234" + PATH),
        post(LENGTH, path="HTTPS://[::1]" + PATH),
        post(LENGTH, path=PATH + "#fragment"),
        b"\r\n\r\n" + post(LENGTH),
        post(b"X-Latin: \xe9\xff\r\nX-Empty:\r\n", LENGTH),
    ],
    ids=[
        "zero-padded", "blanks", "1.0", "1.7", "empty host", "IPv6", "underscore", "absolute",
        "absolute IPv6", "fragment", "blank lines", "latin",
    ],
)  # fmt: skip
def test_what_is_odd_and_right_is_answered(served: Served, head: bytes) -> None:
    with Wire(served) as wire:
        wire.send(head + DATA)
        answer, body = wire.read()
        assert (answer.status, body) == (200, LABELS)
        if b"HTTP/1.0" not in head:
            check_goes_on(wire)


def test_a_target_that_is_only_a_host_is_the_page(served: Served) -> None:
    with Wire(served) as wire:
        wire.send(b"GET http://here?x=1 HTTP/1.1\r\nHost: here\r\n\r\n")
        answer, body = wire.read("GET")
    assert answer.status == 200
    assert b"<html" in body


def test_the_targets_own_host_counts() -> None:
    """RFC 9112, 3.2.2: the Host header beside an absolute target is not looked at."""
    reader = RequestReader(32_768, 256)
    reader.feed(b"GET http://real:1/v2/ HTTP/1.1\r\nHost: other\r\n\r\n")
    head = reader.read_head()
    assert head is not None
    assert (head.raw_path, head.headers) == (b"/v2/", [(b"host", b"real:1")])


def test_a_redirect_names_no_host(served: Served) -> None:
    with Wire(served) as wire:
        wire.send(b"GET /v2/ HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        answer, _ = wire.read("GET")
    assert (answer.status, answer.getheader("location")) == (307, "/v2")


@pytest.mark.parametrize("digits", [b"9" * 19, b"9" * 400, b"1" + b"0" * 3900])
def test_a_huge_length_is_too_large(served: Served, digits: bytes) -> None:
    with Wire(served) as wire:
        wire.send(post(b"Content-Length: " + digits + b"\r\n"))
        answer, body = wire.read()
    assert (answer.status, b"max_request_bytes" in body) == (413, True)


BROKEN_CHUNKS = {
    "no size": b"\r\n",
    "no digits": b"xyz\r\n",
    "a sign": b"+5\r\n",
    "a prefix": b"0x5\r\n",
    "too many digits": b"0" * 30 + b"5\r\n",
    "longer than its size": b"3\r\nabcd\r\n",
    "ended by LF": b"3\r\nabc\n0\r\n\r\n",
    "size ended by LF": b"3\nabc\r\n0\r\n\r\n",
    "CR in an extension": b"3;a\rb\r\nabc\r\n",
    "a trailer without colon": b"0\r\nnothing\r\n\r\n",
    "a trailer that is folded": b"0\r\nX-A: b\r\n c: d\r\n\r\n",
    "a NUL in a trailer": b"0\r\nX-A: b\0\r\n\r\n",
}


@pytest.mark.parametrize("tail", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS.keys())
def test_broken_chunks_are_refused(served: Served, reached: list[str], tail: bytes) -> None:
    with Wire(served) as wire:
        wire.send(post(CHUNKED) + chunk(DATA[:20]))
        wait_for(lambda: reached)
        wire.send(tail + SMUGGLED)
        answer, _ = wire.read()
        assert (answer.status, answer.getheader("connection")) == (400, "close")
        assert wire.rest() == b""
    assert reached == ["POST " + PATH.partition("?")[0]]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_chunks_are_put_together(served: Served, step: int) -> None:
    pieces = [DATA[at : at + step] for at in range(0, len(DATA), step)]
    body = b"".join(chunk(piece, b";n=v" if step == 1000 else b"") for piece in pieces)
    with Wire(served) as wire:
        wire.send(post(CHUNKED) + body + b"0;last\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n")
        answer, content = wire.read()
        assert (answer.status, content) == (200, LABELS)
        check_goes_on(wire)


def test_trailers_do_not_become_headers(served: Served, reached: list[str]) -> None:
    body = chunk(DATA) + b"0\r\nContent-Length: 5\r\nHost: x\r\nX-Timeout-Ms: 0.0001\r\n\r\n"
    with Wire(served) as wire:
        wire.send(post(CHUNKED) + body)
        assert wire.read()[0].status == 200
        check_goes_on(wire)
    assert len(reached) == 2


@pytest.mark.parametrize(
    "tail",
    [
        b"0\r\nX-A: " + b"a" * 8000,
        b"0\r\n" + b"X: y\r\n" * 2000,
        b"0\r\n" + b"a" * 8000,
        b"5;x=" + b"a" * 8000,
        chunk(b"a", b";" + b"b" * 100) * 100,
        chunk(b"a") * 5000,
        chunk(bytes(20_000)) + b"5;x=" + b"a" * 8000,
        chunk(bytes(20_000)) + b"0\r\n" + b"X: y\r\n" * 2000,
    ],
    ids=[
        "one",
        "many",
        "no colon",
        "extension",
        "extensions",
        "small chunks",
        "extension behind a body",
        "trailers behind a body",
    ],
)
def test_what_frames_a_body_is_bounded(served: Served, reached: list[str], tail: bytes) -> None:
    with Wire(served) as wire:
        wire.send(post(CHUNKED) + tail)
        answer, body = wire.read()
        assert answer.status == 431
        assert b"max_header_bytes" in body
        assert wire.rest() == b""


@pytest.mark.parametrize("path", ["/v2/models/nope/segment", PATH])
def test_a_body_of_many_small_chunks_is_taken_or_dropped(served: Served, path: str) -> None:
    """Each costs a step of the reader, in many turns of the event loop; none is lost."""
    body = chunk(bytes(10)) * 50_000 + b"0\r\n\r\n"
    with Wire(served) as wire:
        wire.send(post(CHUNKED, path=path) + body)
        answer, content = wire.read()
        assert answer.status == (400 if path == PATH else 404), content
        check_goes_on(wire)


def test_trailers_that_never_end_are_ended(served: Served) -> None:
    with Wire(served) as wire:
        wire.send(post(CHUNKED) + chunk(DATA) + b"0\r\n")
        wire.socket.settimeout(0.1)
        sent = 0
        # Neither bytes nor patience run out first.
        while sent < 2000:
            wire.send(b"X-A: b\r\n")
            sent += 1
            try:
                found = wire.socket.recv(1 << 16)
                break
            except TimeoutError:
                continue
    assert b" 408 " in found
    assert b"header_timeout_s" in found


@pytest.mark.parametrize("split", [1, 3, 50])
def test_requests_may_come_in_any_pieces(served: Served, split: int) -> None:
    data = post(CHUNKED) + chunk(DATA[:50]) + chunk(DATA[50:]) + b"0\r\nX: y\r\n\r\n"
    with Wire(served) as wire:
        for at in range(0, len(data), split):
            wire.send(data[at : at + split])
            if at < 200:
                time.sleep(0.001)
        answer, content = wire.read()
        assert (answer.status, content) == (200, LABELS)
        check_goes_on(wire)


def test_pipelined_requests_are_answered_in_their_order(served: Served) -> None:
    images = [encode(bands(32, 48)), encode(bands(16, 24)), encode(bands(40, 40))]
    answers = [band_labels(*size).tobytes() for size in ((32, 48), (16, 24), (40, 40))]
    with Wire(served) as wire:
        wire.send(
            b"".join(post(b"Content-Length: %d\r\n" % len(i)) + i for i in images) + post(LENGTH)
        )
        assert [wire.read()[1] for _ in images] == answers
        wire.send(DATA)
        assert wire.read()[1] == LABELS


def test_a_flood_of_pipelined_requests_is_looked_at_one_by_one(
    served: Served, reached: list[str]
) -> None:
    """While the first is answered, the others are bytes, and not more of them than one reading."""
    flood = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    served.engine.hold.clear()
    try:
        with Wire(served) as wire:
            wire.send(post(LENGTH) + DATA)
            wait_for(lambda: reached)
            wire.socket.settimeout(0.5)
            # The kernel's buffers are full: the server does not read on.
            with pytest.raises(TimeoutError):
                wire.send(flood * 50)
            assert len(reached) == 1
    finally:
        served.engine.hold.set()
    count = served.server.metrics.registry.get_sample_value
    wait_for(lambda: count("segserve_http_connections") == 0)


def test_what_follows_a_close_is_not_read(served: Served, reached: list[str]) -> None:
    with Wire(served) as wire:
        wire.send(post(LENGTH, b"Connection: close\r\n") + DATA + SMUGGLED)
        answer, body = wire.read()
        assert (answer.status, body) == (200, LABELS)
        assert wire.rest() == b""
    assert len(reached) == 1


@pytest.mark.parametrize("keeps", [True, False])
def test_http_1_0_is_kept_where_it_asks_for_it(served: Served, keeps: bool) -> None:
    """ApacheBench, and proxies that speak 1.0 to their servers."""
    field = b"Connection: keep-alive\r\n" if keeps else b""
    with Wire(served) as wire:
        wire.send(post(LENGTH, field, version=b"1.0") + DATA)
        answer, body = wire.read()
        assert body == LABELS
        assert answer.getheader("connection") == ("keep-alive" if keeps else "close")
        if keeps:
            check_goes_on(wire)
        else:
            assert wire.rest() == b""


@pytest.mark.parametrize("fields", [65, 400])
def test_many_fields_are_refused_by_name(served: Served, fields: int) -> None:
    status, body = refused(served, post(b"A:\r\n" * fields))
    assert (status, b"max_header_fields" in body) == (431, True)


def test_a_refusal_arrives_though_the_client_goes_on_sending(served: Served) -> None:
    """A connection that is closed on unread bytes is reset, and the answer is lost with it."""
    with Wire(served) as wire:
        wire.send(post(b"Host: there\r\n", b"Content-Length: 3000000\r\n"))
        for _ in range(30):
            wire.send(bytes(100_000))
        assert wire.read()[0].status == 400


def test_a_client_that_awaits_100_gets_it_or_a_refusal(served: Served) -> None:
    expect = b"Expect: 100-continue\r\n"
    with Wire(served) as wire:
        wire.send(post(LENGTH, expect))
        assert wire.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(DATA)
        assert wire.read()[1] == LABELS
        check_goes_on(wire)
        # Nobody knows whether the body of one that was not asked for it comes.
        wire.send(post(b"Content-Length: 999999999\r\n", expect))
        answer, _ = wire.read()
        assert (answer.status, answer.getheader("connection")) == (413, "close")


def test_no_answer_names_the_server_below(served: Served) -> None:
    for path in ("/v2", "/nope", "/metrics"):
        assert "uvicorn" not in str(httpx.get(f"http://{served.http}{path}").headers).lower()


def test_every_way_of_cutting_a_stream_reads_the_same() -> None:
    data = (
        b"\r\n" + post(CHUNKED) + chunk(b"abc", b";x") + chunk(b"d" * 300) + b"0\r\nX: y\r\n\r\n"
        + post(b"Content-Length: 5\r\n") + b"12345" + b"GET /a%20b?c HTTP/1.1\r\nHost: x\r\n\r\n"
    )  # fmt: skip

    def read(step: int) -> list[object]:
        reader, found = RequestReader(4096, 64), []
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            while True:
                if not reader.in_body:
                    head = reader.read_head()
                    if head is None:
                        break
                    found += [(head.method, head.path, head.query, tuple(head.headers)), b""]
                else:
                    before = reader.buffered
                    found[-1] += reader.read_body()
                    if reader.in_body and reader.buffered in (0, before):
                        break
        return found

    whole = read(len(data))
    assert [whole[1], whole[3], whole[4][1]] == [b"abc" + b"d" * 300, b"12345", "/a b"]
    for step in range(1, 40):
        assert read(step) == whole


@pytest.mark.parametrize("path", ["/v2/health/live", "/metrics", "/v2", "/v2/models/bands", "/"])
def test_head_is_answered_like_get_without_a_body(served: Served, path: str) -> None:
    got = httpx.get(f"http://{served.http}{path}")
    with Wire(served) as wire:
        wire.send(f"HEAD {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        answer, body = wire.read("HEAD")
        assert (answer.status, body) == (200, b"")
        if path != "/metrics":
            assert answer.getheader("content-length") == str(len(got.content))
        check_goes_on(wire)


def test_methods_that_are_not_there_are_answered_with_those_that_are(served: Served) -> None:
    url = f"http://{served.http}"
    for path, allowed in (
        ("/v2", "GET, HEAD, OPTIONS"),
        ("/v2/models/bands/segment", "OPTIONS, POST, PUT"),
        ("/v2/trace/setting", "GET, HEAD, OPTIONS, POST"),
    ):
        answer = httpx.delete(url + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json()["code"] == "method_not_allowed"
        answer = httpx.options(url + path)
        assert (answer.status_code, answer.headers["allow"]) == (204, allowed)
    assert httpx.options(url + "/nowhere").status_code == 404
    with Wire(served) as wire:
        wire.send(b"OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n")
        assert wire.read("OPTIONS")[0].status == 204
        # As haproxy's option httpchk does.
        wire.send(b"OPTIONS / HTTP/1.0\r\n\r\n")
        assert wire.read("OPTIONS")[0].status == 204


def test_put_is_an_upload(served: Served) -> None:
    connection = HTTPConnection(served.http, timeout=60)
    connection.request("PUT", PATH, DATA)
    assert connection.getresponse().read() == LABELS
    connection.close()


def test_protocol_errors_say_what_was_expected() -> None:
    reader = RequestReader(4096, 64)
    reader.feed(b"GET /v2\r\n")
    with pytest.raises(ProtocolError, match=r"expected METHOD TARGET HTTP/1\.1"):
        reader.read_head()


def test_an_idle_connection_makes_room(tmp_path: Path) -> None:
    write_bands(tmp_path)
    settings = free_ports(tmp_path).model_copy(update={"max_http_connections": 4})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        served = Served(server, FakeEngine(MODEL_SIZE))
        wires = [Wire(served) for _ in range(4)]
        for wire in wires:
            check_goes_on(wire)
        # The longest idle one goes.
        check_goes_on(wires[0])
        with Wire(served) as more:
            check_goes_on(more)
            assert wires[1].rest() == b""
            for wire in (wires[0], *wires[2:]):
                check_goes_on(wire)
        for wire in wires:
            wire.socket.close()
