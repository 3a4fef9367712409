"""One load on one server: what its callers saw, and what the server itself says of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.loadgen.arrivals import draw_poisson
from benchmarks.loadgen.driver import Run, drive_closed, drive_open
from benchmarks.loadgen.server_metrics import ServerMetrics, read_metrics
from benchmarks.loadgen.summary import Summary, summarise
from benchmarks.loadgen.target import Target


@dataclass(frozen=True)
class Load:
    """Either requests a second (open loop) or a number of callers (closed loop)."""

    per_second: float | None = None
    callers: int | None = None

    async def drive(
        self, target: Target, images: Sequence[bytes], seconds: float, seed: int
    ) -> Run:
        """Sends it for ``seconds``."""
        if self.callers is not None:
            return await drive_closed(target, images, self.callers, seconds)
        if self.per_second is None:
            raise ValueError("a load has requests a second, or callers")
        offsets = draw_poisson(self.per_second, seconds, seed)
        return await drive_open(target, images, offsets, seconds)


@dataclass(frozen=True)
class Timing:
    """How long loads last, and what counts.

    Attributes:
        skip_s: of ``seconds``, at the start, not counted.
        deadline_s: answers after it are late; None: there is none.
        rest_s: before each load, so that the one before is over.
    """

    seconds: float = 12.0
    skip_s: float = 2.0
    deadline_s: float | None = 1.0
    rest_s: float = 0.5


@dataclass(frozen=True)
class Measurement:
    """One load.

    Attributes:
        server: the difference of its metrics over the whole run; None where it was not asked.
        wall_seconds: from the first request due until the last had ended.
    """

    summary: Summary
    server: ServerMetrics | None
    wall_seconds: float

    @property
    def server_cpu(self) -> float:
        """Cores that the server used; nan where it does not tell."""
        return math.nan if self.server is None else self.server.cpu_seconds / self.wall_seconds


async def measure_load(
    target: Target,
    images: Sequence[bytes],
    load: Load,
    timing: Timing,
    metrics_url: str | None = None,
    seed: int = 0,
) -> Measurement:
    """Sends one load, and reads the server's metrics before and after."""
    await asyncio.sleep(timing.rest_s)
    before = await _look(metrics_url)
    start = time.perf_counter()
    run = await load.drive(target, images, timing.seconds, seed)
    wall = time.perf_counter() - start
    after = await _look(metrics_url)
    server = None if before is None or after is None else after.since(before)
    summary = summarise(run, deadline_s=timing.deadline_s, skip_s=timing.skip_s)
    return Measurement(summary, server, wall)


async def _look(url: str | None) -> ServerMetrics | None:
    return None if url is None else await asyncio.to_thread(read_metrics, url)
