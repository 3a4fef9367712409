"""The page of metrics: whoever asks for it, and however often, the server goes on."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.observability import metrics_server
from serving.observability.metrics_server import MAX_CONNECTIONS, MetricsPage
from tests.support.band_model import Served
from tests.support.waiting import wait_for


class Held(Collector):
    """Takes as long as it is held, and counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self.count += 1
        family = GaugeMetricFamily("held", "How often it was asked", self.count)
        self.begun.release()
        assert self.release.wait(60)
        yield family


@pytest.fixture
def address(served: Served) -> str:
    return f"http://127.0.0.1:{served.server.ports.metrics}/metrics"


def test_the_port_answers_as_probes_ask(address: str) -> None:
    page = httpx.get(address)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert "segserve_ready 1.0" in page.text
    assert page.headers["server"] == "segserve"
    with httpx.stream("GET", address, headers={"Accept-Encoding": "gzip"}) as packed:
        assert b"segserve_ready 1.0" in gzip.decompress(b"".join(packed.iter_raw()))
    head = httpx.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 1000
    options = httpx.options(address)
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    for method in ("POST", "PUT", "DELETE"):
        refused = httpx.request(method, address, content=b"x")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_connections_that_send_nothing_take_few_threads_and_keep_nobody_out(
    served: Served, address: str
) -> None:
    httpx.get(address)
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(4 * MAX_CONNECTIONS):
            idle = socket.create_connection(("127.0.0.1", served.server.ports.metrics), 60)
            stack.enter_context(idle).sendall(b"GET /me")
        wait_for(lambda: threading.active_count() <= before + MAX_CONNECTIONS)
        assert httpx.get(address).status_code == 200
    wait_for(lambda: threading.active_count() <= before)


def test_a_connection_that_goes_on_and_on_is_ended(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_S", 0.5)
    with socket.create_connection(("127.0.0.1", served.server.ports.metrics), 60) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")

        def is_ended() -> bool:
            try:
                slow.sendall(b"X: y\r\n")
                slow.settimeout(0.05)
                return slow.recv(100) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_for(is_ended)


@pytest.fixture
def held(served: Served) -> Iterator[Held]:
    held, registry = Held(), served.server.metrics.registry
    registry.register(held)
    try:
        yield held
    finally:
        held.release.set()
        registry.unregister(held)


def test_a_page_that_takes_long_does_not_hold_the_event_loop(served: Served, held: Held) -> None:
    """With hundreds of models it is megabytes of text."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.get, f"http://{served.http}/metrics", timeout=60)
        assert held.begun.acquire(timeout=60)
        assert httpx.get(f"http://{served.http}/v2/health/live", timeout=60).status_code == 200
        held.release.set()
        # A page that an earlier test asked for may have been the first.
        assert "\nheld " in asked.result().text


def test_one_that_hangs_up_takes_the_page_from_nobody(served: Served, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        with socket.create_connection(("127.0.0.1", served.server.ports.http), 60) as gone:
            gone.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
            assert held.begun.acquire(timeout=60)
        asked = pool.submit(httpx.get, f"http://{served.http}/metrics", timeout=60)
        held.release.set()
        assert asked.result().status_code == 200


def test_all_that_ask_at_once_share_a_page_that_was_begun_later() -> None:
    registry, held = CollectorRegistry(), Held()
    registry.register(held)
    page = MetricsPage(registry)
    first = page.ask()
    assert held.begun.acquire(timeout=60)
    later = [page.ask() for _ in range(50)]
    held.release.set()
    assert b"held 1.0" in first.result(60)
    # They asked after the first page was begun: it may lack what they look for.
    assert all(b"held 2.0" in found.result(60) for found in later)
    assert held.count == 2
    page.close()
