"""Pages of other addresses: what a browser lets them send and read."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model

PAGE, OTHER, KEY = "https://page.example", "https://other.example", "alice-0123456789"
SEGMENT = "/v2/models/bands/segment?format=raw"
READABLE = {
    "x-model-name", "x-model-version", "x-image-size", "x-mask-size", "server-timing",
    "x-cache", "retry-after", "x-request-id", "inference-header-content-length",
}  # fmt: skip
SENDABLE = {
    "authorization", "x-api-key", "content-type", "x-request-id", "x-timeout-ms",
    "inference-header-content-length",
}  # fmt: skip


def words(header: str) -> set[str]:
    return {word.strip().lower() for word in header.split(",")}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "models")
    keys = folder / "keys.txt"
    keys.write_text(f"alice {KEY} requests_per_second=0.001\n")
    given = {"api_keys_file": keys, "allowed_origins": frozenset([PAGE])}
    chosen = free_ports(folder / "models").model_copy(update=given)
    with (
        ServerThread(chosen, serve_fake(FakeEngine(MODEL_SIZE))) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=60) as http,
    ):
        yield http


def preflight(http: httpx.Client, origin: str, header: str = "x-api-key") -> httpx.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": header}
    return http.options(SEGMENT, headers={"Origin": origin, **asked})


def test_a_page_may_read_every_header_of_ours_also_of_refusals(http: httpx.Client) -> None:
    headers = {"Origin": PAGE, "X-API-Key": KEY}
    answers = [http.post(SEGMENT, content=encode(bands(32, 48)), headers=headers) for _ in range(2)]
    answers.append(http.post(SEGMENT, content=b"", headers={"Origin": PAGE}))
    assert [answer.status_code for answer in answers] == [200, 429, 401]
    assert "retry-after" in answers[1].headers
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert words(answer.headers["access-control-expose-headers"]) == READABLE
        ours = {name for name in answer.headers if name.startswith(("x-", "retry", "server-t"))}
        assert ours <= READABLE


def test_a_preflight_needs_no_key(http: httpx.Client) -> None:
    for name in SENDABLE:
        answer = preflight(http, PAGE, name)
        assert answer.status_code == 200, name
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert words(answer.headers["access-control-allow-headers"]) >= SENDABLE
        assert words(answer.headers["access-control-allow-methods"]) == {
            "get", "head", "post", "put",
        }  # fmt: skip
    assert preflight(http, PAGE, "x-other").status_code == 400


def test_pages_of_others_read_nothing(http: httpx.Client) -> None:
    for origin in (OTHER, PAGE + ".evil.example", PAGE.upper(), "http://page.example", "null"):
        assert preflight(http, origin).status_code == 400
        answer = http.get("/v2/health/live", headers={"Origin": origin})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
