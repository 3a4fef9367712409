"""HTTP as others speak it, with their own programs: proxies in front, and clients that offer
HTTP/2 with every request."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.observability.access_log import AccessLog
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
from tests.support.own_environment import unavailable
from tests.support.real_proxies import find_program, run_haproxy, run_nginx
from tests.support.waiting import wait_for

DATA = encode(bands(32, 48))
LABELS = band_labels(32, 48).tobytes()
SEGMENT = "/v2/models/bands/segment?format=raw"
WEBSOCKET_LINES = """
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
"""
KEEPALIVE_LINES = """
            proxy_http_version 1.1;
            proxy_set_header Connection "";
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("repository")
    write_bands(folder)
    engine = FakeEngine(MODEL_SIZE)
    settings = free_ports(folder).model_copy(
        update={"access_log": "json", "trusted_proxies": frozenset({"127.0.0.1"})}
    )
    with ServerThread(settings, serve_fake(engine)) as server:
        yield Served(server, engine)


def ask_all(port: int, headers: dict[str, str] | None = None) -> None:
    """Uploads of all kinds, one after the other on one connection."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:

        def chunks() -> Iterator[bytes]:
            for at in range(0, len(DATA), 100):
                yield DATA[at : at + 100]

        for _ in range(5):
            assert client.post(SEGMENT, content=DATA).content == LABELS
            assert client.post(SEGMENT, content=chunks()).content == LABELS
            assert client.put(SEGMENT, content=DATA).content == LABELS
            assert client.get("/v2/health/live").status_code == 200
            assert client.head("/v2/models/bands").status_code == 200
            assert client.options("/v2").headers["allow"] == "GET, HEAD, OPTIONS"
            # Refused by its head: what is left of it must not be read as the next request.
            assert client.post("/v2/models/nope/segment", content=bytes(300_000)).status_code == 404


@pytest.mark.parametrize(
    "lines", ["", KEEPALIVE_LINES, WEBSOCKET_LINES], ids=["plain", "keepalive", "websocket"]
)
@pytest.mark.parametrize("upgrade", ["", "websocket", "h2c"])
def test_nginx_in_front(served: Served, tmp_path: Path, lines: str, upgrade: str) -> None:
    headers = {"Upgrade": upgrade, "Connection": "Upgrade"} if upgrade else None
    with run_nginx(tmp_path, served.server.ports.http, lines) as port:
        ask_all(port, headers)


@pytest.mark.parametrize(
    "check",
    [
        "option httpchk",
        "option httpchk HEAD /v2/health/live",
        "option httpchk OPTIONS /v2/health/ready",
        "option httpchk\n    http-check send meth GET uri /v2 ver HTTP/1.1 hdr Host here",
    ],
)
def test_haproxy_in_front_keeps_the_server_up(served: Served, tmp_path: Path, check: str) -> None:
    with run_haproxy(tmp_path, served.server.ports.http, check) as (port, admin):

        def checks() -> list[str]:
            page = httpx.get(f"http://127.0.0.1:{admin}/stats;csv").text.splitlines()
            names = page[0].lstrip("# ").split(",")
            (row,) = (dict(zip(names, line.split(","), strict=False)) for line in page
                      if line.startswith("out,one,"))  # fmt: skip
            # "* " stands before it while the next check is going on.
            return [row["status"], row["check_status"].removeprefix("* "), row["check_code"]]

        wait_for(lambda: checks()[1].startswith("L7"))
        status, result, code = checks()
        assert (status, result) == ("UP", "L7OK"), code
        ask_all(port)
        # haproxy itself refuses an offer of WebSocket without its key.
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
        ask_all(port, {"Upgrade": "websocket", "Connection": "Upgrade", **key})


def test_the_log_names_the_client_behind_the_proxy(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(served.server.contexts, "log", AccessLog("json", written))
    with run_nginx(tmp_path, served.server.ports.http) as port:
        httpx.get(f"http://127.0.0.1:{port}/v2", headers={"X-Forwarded-For": "192.0.2.9"})
    # nginx added whom it was asked by, who is trusted too.
    assert json.loads(written.getvalue())["client"] == "192.0.2.9"


@pytest.mark.parametrize("method", [(), ("-T",), ("--data-binary",)], ids=["get", "put", "post"])
def test_curl_offers_http2(served: Served, tmp_path: Path, method: tuple[str, ...]) -> None:
    program = find_program("curl", "curl")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    if "HTTP2" not in version.stdout:
        unavailable("this curl has no HTTP/2")
    image = tmp_path / "image.png"
    image.write_bytes(DATA)
    if method:
        given = str(image) if method == ("-T",) else f"@{image}"
        arguments = [*method, given, f"http://{served.http}{SEGMENT}"]
    else:
        arguments = [f"http://{served.http}/v2/health/live"]
    # The second request goes over the first's connection.
    command = [program, "-sS", "--http2", "-w", "%{http_code} %{num_connects};", "-o", "{out}"]
    outs = [tmp_path / "one", tmp_path / "two"]
    words: list[str] = []
    for out in outs:
        one = [w.replace("{out}", str(out)) for w in command] + arguments
        words += one if not words else ["--next", *one[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "200 1;200 0;"
    if method:
        assert [out.read_bytes() for out in outs] == [LABELS, LABELS]


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.*;

public class Ask {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 3; i++) {
            for (var body : new HttpRequest.BodyPublisher[] {
                    BodyPublishers.ofFile(Path.of(given[1])),
                    BodyPublishers.ofInputStream(() -> {
                        try { return Files.newInputStream(Path.of(given[1])); }
                        catch (java.io.IOException e) { throw new RuntimeException(e); }
                    })}) {
                var request = HttpRequest.newBuilder(URI.create(given[0])).POST(body).build();
                var answer = client.send(request, BodyHandlers.ofByteArray());
                System.out.println(answer.version() + " " + answer.statusCode() + " "
                    + java.util.HexFormat.of().formatHex(
                        java.security.MessageDigest.getInstance("SHA-256").digest(answer.body())));
            }
        }
    }
}
"""


def test_javas_client_as_it_comes(served: Served, tmp_path: Path) -> None:
    """It offers h2c with every request until one was answered."""
    # Too large for CI to install: it runs where a JDK is.
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("no JDK: apt-get install default-jdk-headless")
    source, image = tmp_path / "Ask.java", tmp_path / "image.png"
    source.write_text(JAVA)
    image.write_bytes(DATA)
    command = ["java", str(source), f"http://{served.http}{SEGMENT}", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(LABELS).hexdigest()
    assert done.stdout.splitlines() == [f"HTTP_1_1 200 {digest}"] * 6
