"""Keys over HTTP: every route of the application asks for one, but those that are documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, free_ports, serve_fake, write_model

ALICE = "alice-0123456789"
# Of Triton's Docker and Kubernetes probes, of Prometheus, and the page that a key is typed into.
PROBES = {"/v2/health/live", "/v2/health/ready", "/metrics"}
OPEN = {*PROBES, "/"}
# Names of things that are there, for the routes' parameters.
NAMES = {"model": "bands", "version": "1", "region": "frames"}
WRONG = (
    {},
    {"X-API-Key": ALICE + "x"},
    {"Authorization": ALICE},
    {"Authorization": f"Basic {ALICE}"},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "models")
    (folder / "keys.txt").write_text(f"alice {ALICE}\n")
    chosen = free_ports(folder / "models").model_copy(
        update={"api_keys_file": folder / "keys.txt", "enable_model_control": True}
    )
    with ServerThread(chosen, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}") as client:
        yield client


def list_routes(server: Server) -> set[tuple[str, str]]:
    """Method and path of every route, and of those that answer for another (PUT, HEAD)."""
    assert server._http is not None
    app = server._http.config.app
    found = set()
    for route in app.routes:
        # Anything else, a mount or a WebSocket, would pass by what is asked below.
        assert isinstance(route, Route), route
        path = re.sub(r"{(\w+)(:\w+)?}", lambda match: NAMES[match[1]], route.path)
        found |= {(method, path) for method in route.methods or ()}
    found |= {("PUT", path) for method, path in found if method == "POST"}
    found |= {("HEAD", path) for method, path in found if method == "GET"}
    return found | {("OPTIONS", path) for _, path in found}


def test_every_route_asks_for_a_key_but_those_that_are_documented(
    server: Server, http: httpx.Client
) -> None:
    routes = list_routes(server)
    assert len(routes) > 60
    assert {path for _, path in routes} >= OPEN
    documented = (Path(__file__).parents[3] / "docs" / "security.md").read_text("utf-8")
    for path in PROBES:
        assert f"`{path}`" in documented
    for method, path in sorted(routes):
        for headers in WRONG:
            answer = http.request(method, path, headers=headers)
            assert (method, path, answer.status_code == 401) == (method, path, path not in OPEN)
            if path not in OPEN:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["x-request-id"]
    # With one, each is another's business; what takes the model away comes last.
    for method, path in sorted(routes, key=lambda route: "load" in route[1]):
        answer = http.request(method, path, headers={"X-API-Key": ALICE})
        assert answer.status_code not in (401, 500), (method, path, answer.text)


@pytest.mark.parametrize(
    "path",
    [
        "/V2/health/live",
        "/v2/health/live/",
        "//v2/health/live",
        "/v2/health/live/../../models/bands",
        "/v2/health/live%2F..%2F..%2Fmodels%2Fbands",
        "/metrics/",
        "/v2;/health/live",
        "/?x",
        "/%2e",
        "/docs",
        "/openapi.json",
        "/nowhere",
    ],
)
def test_what_looks_like_an_open_path_is_none(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == (200 if path == "/?x" else 401), answer.text


def test_ids_come_back_from_every_route(server: Server, http: httpx.Client) -> None:
    """Also where it fails; probes, which are in no log, have none."""
    for method, path in sorted(list_routes(server), key=lambda route: "load" in route[1]):
        if path in PROBES:
            continue
        headers = {"X-API-Key": ALICE, "X-Request-Id": "mine-1"}
        assert http.request(method, path, headers=headers).headers["x-request-id"] == "mine-1"
