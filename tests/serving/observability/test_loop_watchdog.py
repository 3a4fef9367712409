"""How late the event loop comes: seen from outside while it is stuck, and for a while after."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from serving.observability import loop_watchdog
from serving.observability.loop_watchdog import INTERVAL_S, LoopWatchdog
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, serve_fake
from tests.support.running import running
from tests.support.waiting import wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def scrape(port: int) -> float:
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    (line,) = (x for x in page.splitlines() if x.startswith("segserve_event_loop_lag_seconds "))
    return float(line.split()[1])


async def test_a_loop_that_is_stuck_is_seen_while_it_is(repository: Path) -> None:
    """The metrics port has a thread of its own; nothing of the loop is needed."""
    async with running(repository, serve_fake(FakeEngine(MODEL_SIZE))) as (server, _):
        seen: list[float] = []
        release = threading.Event()

        def watch() -> None:
            # It grows as long as the loop is held.
            wait_for(lambda: scrape(server.ports.metrics) > 0.7)
            first = scrape(server.ports.metrics)
            wait_for(lambda: scrape(server.ports.metrics) > first)
            seen.append(scrape(server.ports.metrics))
            release.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        # What is forbidden: it holds the event loop.
        held = release.wait(60)
        watcher.join()
        assert held
        await asyncio.sleep(2 * INTERVAL_S)
        # The largest of the last minute stays, for the scrape that comes after.
        assert (
            server.metrics.registry.get_sample_value("segserve_event_loop_lag_seconds") >= seen[0]
        )


async def test_the_largest_of_the_window_is_kept_and_then_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    watchdog = LoopWatchdog(clock)
    assert watchdog.lag_s == 0.0
    watchdog.start()
    loop = asyncio.get_running_loop()
    clock.now += INTERVAL_S
    watchdog._tick(loop)
    assert watchdog.lag_s == pytest.approx(0.0, abs=1e-9)
    clock.now += INTERVAL_S + 2.0
    assert watchdog.lag_s == pytest.approx(2.0)
    watchdog._tick(loop)
    clock.now += INTERVAL_S + 0.5
    watchdog._tick(loop)
    assert watchdog.lag_s == pytest.approx(2.0)
    for _ in range(loop_watchdog.WINDOW_S + 1):
        for _ in range(4):
            clock.now += 0.25
            watchdog._due = clock.now
            watchdog._tick(loop)
    assert watchdog.lag_s == pytest.approx(0.0, abs=1e-9)
    watchdog.stop()
    clock.now += 1000.0
    assert watchdog.lag_s == 0.0


async def test_an_idle_loop_is_not_late() -> None:
    """With a clock that only the loop's own waiting moves, whatever else the machine does."""
    watchdog = LoopWatchdog(lambda: 5.0)
    watchdog.start()
    await asyncio.sleep(3 * INTERVAL_S)
    watchdog.stop()
    assert watchdog.lag_s == 0.0
