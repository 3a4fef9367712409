"""Where the server listens, and whom it takes a request for: IPv6, and proxies that are trusted."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from pydantic import ValidationError
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.commands.serve import greeting
from serving.http.exchange import TrustedProxies, parse_address
from serving.observability.access_log import AccessLog, Style
from serving.observability.request_context import RequestContext
from serving.server import Server
from serving.settings import Settings, join_address
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, band_labels, bands, encode, free_ports, serve_fake

DATA = encode(bands(32, 48))
LABELS = band_labels(32, 48).tobytes()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::1", ["[::1]"]),
        ("[::1]", ["[::1]"]),
        ("::", ["[::1]", "127.0.0.1"]),
        ("[::]", ["[::1]", "127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
    ],
)
def test_all_three_ports_listen_where_they_are_told(
    repository: Path, host: str, reached: list[str]
) -> None:
    settings = Settings.model_validate(free_ports(repository).model_dump() | {"host": host})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        ports = server.ports
        for address in reached:
            url = f"http://{address}:{ports.http}/v2/models/bands/segment?format=raw"
            assert httpx.post(url, content=DATA).content == LABELS
            assert "segserve_ready" in httpx.get(f"http://{address}:{ports.metrics}/metrics").text
            with grpc.insecure_channel(f"{address}:{ports.grpc}") as channel:
                stub = segserve_pb2_grpc.SegmenterStub(channel)
                assert stub.Describe(pb.DescribeRequest(model="bands"), timeout=60).model == "bands"
        shown = host if host[0] == "[" or ":" not in host else f"[{host}]"
        assert f"http://{shown}:{ports.http}" in greeting(server)


def test_a_busy_ipv6_port_is_named(repository: Path) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = free_ports(repository).model_copy(update={"host": "::1", "http_port": port})
        with (
            pytest.raises(OSError, match=rf"\[::1\]:{port} .*--http-port"),
            ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))),
        ):
            pass


def test_a_host_that_is_nowhere_is_named(repository: Path) -> None:
    settings = free_ports(repository).model_copy(update={"host": "nowhere.invalid"})
    with (
        pytest.raises(OSError, match=r"nowhere\.invalid:0 .*--host"),
        ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))),
    ):
        pass


def test_addresses_are_joined_as_urls_write_them() -> None:
    assert join_address("::1", 80) == join_address("[::1]", 80) == "[::1]:80"
    assert join_address("here", 80) == "here:80"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:443 ", "192.0.2.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", None),
        ("", None),
        ("_hidden", None),
        ("192.0.2.1 forged", None),
        ("192.0.2.1\n", "192.0.2.1"),
    ],
)
def test_addresses_are_read_as_proxies_write_them(text: str, address: str | None) -> None:
    found = parse_address(text)
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "127.0.0.1", ["192.0.2.1"], "127.0.0.1"),
        (["10.0.0.0/8"], "127.0.0.1", ["192.0.2.1"], "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        (["127.0.0.0/8"], "127.0.0.1", [], "127.0.0.1"),
        # The caller's own entry is at the left, and is not looked at.
        (["127.0.0.1"], "127.0.0.1", ["1.1.1.1, 192.0.2.1"], "192.0.2.1"),
        (["127.0.0.1", "10.0.0.0/8"], "127.0.0.1", ["192.0.2.1, 10.0.0.7"], "192.0.2.1"),
        (["127.0.0.1", "10.0.0.0/8"], "127.0.0.1", ["192.0.2.1", "10.0.0.7"], "192.0.2.1"),
        (["127.0.0.1", "10.0.0.0/8"], "127.0.0.1", ["10.0.0.8, 10.0.0.7"], "10.0.0.8"),
        (["127.0.0.1"], "127.0.0.1", ['x" 200 ok'], "127.0.0.1"),
        (["127.0.0.1", "10.0.0.7"], "127.0.0.1", ["forged, 10.0.0.7"], "10.0.0.7"),
        (["::1"], "::1", ["[2001:db8::1]:5"], "2001:db8::1"),
        (["127.0.0.1"], "::ffff:127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        (["127.0.0.1"], "127.0.0.1", ["1.1.1.1," * 5000 + "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_client_is_the_last_hop_that_is_not_trusted(
    trusted: list[str], peer: str, forwarded: list[str], client: str
) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert TrustedProxies(trusted).find_client(peer, headers) == client


def test_a_network_that_is_none_is_refused() -> None:
    assert Settings().trusted_proxies == frozenset()
    for wrong in ("10.0.0.0/99", "proxy.example", "10.0.0.1/8", ""):
        with pytest.raises(ValidationError, match="not a valid address or network"):
            Settings(trusted_proxies=[wrong])


@contextmanager
def run_logged(
    repository: Path, style: Style, *trusted: str
) -> Iterator[tuple[Server, io.StringIO]]:
    settings = free_ports(repository).model_copy(
        update={"access_log": style, "trusted_proxies": frozenset(trusted)}
    )
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        written = io.StringIO()
        server.contexts.log = AccessLog(style, written)
        yield server, written


FORGED = (
    '1.1.1.1" 200 ok\n2026 10.0.0.1 GET',
    "1.1.1.1 POST /v2/x 200 ok",
    "\x1b[2J1.1.1.1",
    "x\u2028y",
    "1.1.1.1\x7f",
)


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1",)])
@pytest.mark.parametrize("style", ["text", "json"])
def test_no_header_forges_a_line(repository: Path, style: Style, trusted: tuple[str, ...]) -> None:
    with run_logged(repository, style, *trusted) as (server, written):
        raw = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: "
        for forged in FORGED:
            before = len(written.getvalue().splitlines())
            for value in (forged.encode(), forged.replace("\n", " ").replace("\x1b", "").encode()):
                with socket.create_connection(("127.0.0.1", server.ports.http), 30) as connection:
                    connection.sendall(raw + value + b"\r\nX-Request-Id: " + value + b"\r\n\r\n")
                    while connection.recv(1 << 16):
                        pass
            assert len(written.getvalue().splitlines()) <= before + 2
    lines = written.getvalue().splitlines()
    assert lines
    for line in lines:
        client = json.loads(line)["client"] if style == "json" else line.split()[1]
        assert client == "127.0.0.1"
        assert line.isascii()
        assert line.isprintable()


@pytest.mark.parametrize(
    ("peer", "forwarded", "scheme"),
    [
        ("10.1.2.3", b"https", "https"),
        ("10.1.2.3", b"http, HTTPS", "https"),
        ("10.1.2.3", b"javascript", "http"),
        ("10.1.2.3", b"", "http"),
        ("192.0.2.1", b"https", "http"),
    ],
)
def test_a_trusted_proxy_says_the_scheme(peer: str, forwarded: bytes, scheme: str) -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    assert proxies.find_scheme(peer, "http", [(b"x-forwarded-proto", forwarded)]) == scheme


def test_forwarded_addresses_are_logged_and_redirects_stay_on_their_host(repository: Path) -> None:
    with run_logged(repository, "json", "127.0.0.0/8") as (server, written):
        url = f"http://127.0.0.1:{server.ports.http}"
        headers = {"X-Forwarded-For": "6.6.6.6, 192.0.2.1", "X-Forwarded-Proto": "https"}
        assert httpx.get(f"{url}/v2", headers=headers).status_code == 200
        moved = httpx.get(f"{url}/v2/", headers=headers)
        assert moved.headers["location"] == "/v2"
        odd = httpx.get(f"{url}/v2/?a=b", headers={"X-Forwarded-Proto": "javascript"})
        assert odd.headers["location"] == "/v2?a=b"
    clients = [json.loads(line)["client"] for line in written.getvalue().splitlines()]
    assert clients == ["192.0.2.1", "192.0.2.1", "127.0.0.1"]


def test_nobody_is_trusted_by_default(repository: Path) -> None:
    with run_logged(repository, "json") as (server, written):
        url = f"http://127.0.0.1:{server.ports.http}"
        headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
        moved = httpx.get(f"{url}/v2/", headers=headers)
        assert moved.headers["location"] == "/v2"
    assert json.loads(written.getvalue())["client"] == "127.0.0.1"


def test_words_of_the_text_log_are_quoted() -> None:
    written = io.StringIO()
    log = AccessLog("text", written)
    odd = 'a b"\n\x1b[31m\x7f\u2028é'
    call = RequestContext("http", "GE\nT", "/" + odd, odd, odd, model=odd, version=1)
    log.write(call)
    (line,) = written.getvalue().splitlines()
    assert line.isascii()
    assert line.isprintable()
    quoted = json.dumps(odd).replace("\x7f", "\\u007f")
    assert f" {quoted} " in line
    assert f"id={quoted} model={quoted}/1" in line
