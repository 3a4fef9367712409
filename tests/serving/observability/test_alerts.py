"""A real Prometheus loads the rules of deploy/, scrapes a real server, and sees each alert."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import yaml

from serving.errors import EngineFailed
from serving.imaging.restore import Prediction
from serving.models.repository import ModelFolder
from serving.observability import loop_watchdog
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, write_model
from tests.support.prometheus_server import (
    RULES,
    Prometheus,
    find_program,
    run_prometheus,
    speed_up,
)
from tests.support.waiting import wait_for

SEGMENT = "/v2/models/bands/segment?format=raw"
PHOTO = encode(bands(32, 48))
KEY = "a-key-that-is-long-enough"
MAX_FAILURES = 2


@dataclass
class Trouble:
    """What the engines do, the ones that are opened later too."""

    nan: bool = False
    fails: bool = False
    delay_s: float = 0.0
    may_open: threading.Event = field(default_factory=threading.Event)
    opened: int = 0


class Troubled(FakeEngine):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__(MODEL_SIZE, max_batch_size=1)
        self.trouble = trouble

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        time.sleep(self.trouble.delay_s)
        if self.trouble.fails:
            raise EngineFailed("as told")
        prediction = super().run(batch)
        if self.trouble.nan:
            assert prediction.logits is not None
            prediction.logits[0, 0, 0, 0] = np.nan
        return prediction


@dataclass
class Watched:
    """A server, its engines' trouble, a client of it, and the Prometheus that scrapes it."""

    server: Server
    trouble: Trouble
    http: httpx.Client
    repository: Path
    prometheus: Prometheus
    stop: Callable[[], None]
    start: Callable[[], None]

    def segment(self) -> int:
        return self.http.post(SEGMENT, content=PHOTO).status_code

    def is_ready(self) -> bool:
        return self.http.get("/v2/models/bands/ready").status_code == 200

    def wait_until_ready(self) -> None:
        wait_for(self.is_ready)


@pytest.fixture
def watched(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    # Else the alert would be there for a minute more.
    monkeypatch.setattr(loop_watchdog, "WINDOW_S", 3)
    repository = tmp_path / "models"
    write_model(repository)
    keys = tmp_path / "keys"
    keys.write_text(f"first {KEY}\n")
    trouble = Trouble()
    trouble.may_open.set()

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> Troubled:
        trouble.may_open.wait()
        trouble.opened += 1
        return Troubled(trouble)

    settings = free_ports(repository).model_copy(
        update={
            "api_keys_file": keys,
            "enable_model_control": True,
            "max_engine_failures": MAX_FAILURES,
        }
    )
    running = ExitStack()
    server = running.enter_context(ServerThread(settings, open_engine))
    ports = {"http_port": server.ports.http, "metrics_port": server.ports.metrics}
    headers = {"X-API-Key": KEY}
    address = f"http://127.0.0.1:{server.ports.http}"
    with (
        httpx.Client(base_url=address, headers=headers, timeout=60) as http,
        run_prometheus(tmp_path_factory.mktemp("prometheus"), server.ports.metrics) as prometheus,
        running,
    ):

        def start() -> None:
            again = settings.model_copy(update=ports)
            running.enter_context(ServerThread(again, open_engine))

        found = Watched(server, trouble, http, repository, prometheus, running.close, start)
        prometheus.wait_for_scrape()
        yield found


def fail_once(watched: Watched) -> None:
    """SegserveErrors, by the very first failure."""
    watched.trouble.fails = True
    assert watched.segment() == 500
    watched.trouble.fails = False
    assert watched.segment() == 200


def overflow_once(watched: Watched) -> None:
    """SegserveWrongAnswers, by the very first one."""
    watched.trouble.nan = True
    assert watched.segment() == 500
    watched.trouble.nan = False
    assert watched.segment() == 200


def reload_once(watched: Watched) -> None:
    """SegserveReloadFails, by the very first one."""
    labels = watched.repository / "bands" / "labels.txt"
    before = labels.read_text()
    labels.write_text("other")
    assert watched.http.post("/v2/repository/models/bands/load").status_code == 400
    labels.write_text(before)


def break_engines(watched: Watched) -> None:
    """SegserveEngineBreaks: opened anew more often than twice in the range."""
    for opened in range(watched.trouble.opened + 1, watched.trouble.opened + 6):
        watched.trouble.fails = True
        for _ in range(MAX_FAILURES):
            assert watched.segment() == 500
        watched.trouble.fails = False
        wait_for(lambda expected=opened: watched.trouble.opened == expected)
        watched.wait_until_ready()


def send_long_headers(watched: Watched) -> None:
    """SegserveRejecting."""
    for _ in range(40):
        watched.http.get("/v2", headers={"X-Long": "a" * 40_000})


def call_without_key(watched: Watched) -> None:
    """SegserveUnauthenticated."""
    for _ in range(40):
        assert httpx.get(watched.http.base_url.join("/v2")).status_code == 401


def answer_slowly(watched: Watched) -> None:
    """SegserveSlow."""
    watched.trouble.delay_s = 5.2
    assert watched.segment() == 200
    watched.trouble.delay_s = 0.0


def queue_up(watched: Watched) -> None:
    """SegserveQueueing."""
    watched.trouble.delay_s = 0.2
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: watched.segment(), range(8))) == {200}
    watched.trouble.delay_s = 0.0


def hold_the_loop(watched: Watched) -> None:
    """SegserveEventLoopLate: as a request that computes where it must not."""
    model = watched.server.registry.get("bands")
    loop = model.batcher._workers._tasks[0].get_loop()
    assert isinstance(loop, asyncio.AbstractEventLoop)
    loop.call_soon_threadsafe(time.sleep, 1.0)


def kill_decoders(watched: Watched) -> None:
    """SegserveDecodersBreak: killed from outside more often than five times in the range."""
    decoders = watched.server.decoders
    assert decoders is not None
    killed: set[int] = set()
    while len(killed) < 8:
        for process in set(decoders.processes()) - killed:
            os.kill(process, signal.SIGKILL)
            killed.add(process)
        assert watched.segment() in (200, 413)


@contextmanager
def many_connections(watched: Watched) -> Iterator[None]:
    """SegserveConnections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip(f"{hard} open files are allowed, the alert needs more than 1,500 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    address = ("127.0.0.1", watched.server.ports.http)
    with ExitStack() as stack:
        for _ in range(1600):
            stack.enter_context(socket.create_connection(address, timeout=60))
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


AT_ONCE: dict[str, Callable[[Watched], None]] = {
    "SegserveErrors": fail_once,
    "SegserveWrongAnswers": overflow_once,
    "SegserveReloadFails": reload_once,
    "SegserveRejecting": send_long_headers,
    "SegserveUnauthenticated": call_without_key,
    "SegserveQueueing": queue_up,
    "SegserveSlow": answer_slowly,
    "SegserveEventLoopLate": hold_the_loop,
    "SegserveDecodersBreak": kill_decoders,
    "SegserveEngineBreaks": break_engines,
}
OF_THE_SERVER = {
    "SegserveRejecting",
    "SegserveUnauthenticated",
    "SegserveEventLoopLate",
    "SegserveDecodersBreak",
}
WHILE_IT_LASTS = {"SegserveConnections", "SegserveNotReady", "SegserveDown"}


def test_every_alert_fires_and_clears(watched: Watched) -> None:
    names = {rule["alert"] for group in read_rules() for rule in group["rules"]}
    assert names == set(AT_ONCE) | WHILE_IT_LASTS
    prometheus = watched.prometheus
    assert prometheus.alerts() == {}
    for name, cause in AT_ONCE.items():
        cause(watched)
        labels = prometheus.wait_for_alert(name)
        assert labels["severity"] in ("critical", "warning")
        if name not in OF_THE_SERVER:
            assert labels["model"] == "bands"
    with many_connections(watched):
        prometheus.wait_for_alert("SegserveConnections")
    # An engine that cannot be opened anew.
    watched.trouble.may_open.clear()
    watched.trouble.fails = True
    for _ in range(MAX_FAILURES):
        assert watched.segment() == 500
    watched.trouble.fails = False
    prometheus.wait_for_alert("SegserveNotReady")
    watched.trouble.may_open.set()
    for name in (*AT_ONCE, "SegserveConnections", "SegserveNotReady"):
        prometheus.wait_for_clear(name)
    assert watched.segment() == 200
    assert [r for r in prometheus.rules() if r["health"] != "ok"] == []
    watched.stop()
    prometheus.wait_for_alert("SegserveDown")
    watched.start()
    # It may have been scraped while it was not ready yet.
    wait_for(lambda: prometheus.alerts() == {})


def read_rules() -> list[dict[str, list[dict[str, str]]]]:
    rules: dict[str, list[dict[str, list[dict[str, str]]]]] = yaml.safe_load(RULES.read_text())
    return rules["groups"]


@pytest.mark.parametrize("rules", ["deploy's", "sped up"])
def test_promtool_finds_no_fault_in_the_rules(tmp_path: Path, rules: str) -> None:
    text = RULES.read_text()
    (tmp_path / "alerts.yml").write_text(text if rules == "deploy's" else speed_up(text))
    done = subprocess.run(
        [find_program("promtool"), "check", "rules", str(tmp_path / "alerts.yml")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(AT_ONCE) + len(WHILE_IT_LASTS)} rules found" in done.stdout
