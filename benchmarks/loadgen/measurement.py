"""Measures loads on one server: what its callers saw, and what its own metrics report."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.loadgen.driver import Run, draw_poisson, drive_closed, drive_open
from benchmarks.loadgen.server_metrics import ServerMetrics, read_metrics
from benchmarks.loadgen.summary import Summary, summarise
from benchmarks.loadgen.targets import Target


@dataclass(frozen=True)
class Load:
    """A load: requests a second (open loop), or a number of callers (closed loop)."""

    per_second: float | None = None
    callers: int | None = None

    async def drive(
        self, target: Target, images: Sequence[bytes], seconds: float, seed: int
    ) -> Run:
        """Sends the load for ``seconds``."""
        if self.callers is not None:
            return await drive_closed(target, images, self.callers, seconds)
        if self.per_second is None:
            raise ValueError("Load() is not a valid load: expected per_second or callers")
        offsets = draw_poisson(self.per_second, seconds, seed)
        return await drive_open(target, images, offsets, seconds)


@dataclass(frozen=True)
class Timing:
    """The length of loads, and which part of it counts.

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
    """The figures of one load.

    Attributes:
        server: the difference of its metrics over the whole run; None where it was not asked.
        wall_seconds: from the first request due until the last had ended.
    """

    summary: Summary
    server: ServerMetrics | None
    wall_seconds: float

    @property
    def server_cpu(self) -> float:
        """Returns the cores that the server used; nan where it does not report them."""
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
    before = await _read(metrics_url)
    start = time.perf_counter()
    run = await load.drive(target, images, timing.seconds, seed)
    wall = time.perf_counter() - start
    after = await _read(metrics_url)
    server = None if before is None or after is None else after.since(before)
    summary = summarise(run, deadline_s=timing.deadline_s, skip_s=timing.skip_s)
    return Measurement(summary, server, wall)


async def _read(url: str | None) -> ServerMetrics | None:
    return None if url is None else await asyncio.to_thread(read_metrics, url)


@dataclass(frozen=True)
class Point:
    """One open loop of a sweep, at ``percent`` of the capacity; ``round`` counts from 0."""

    percent: float
    round: int
    measurement: Measurement


@dataclass(frozen=True)
class Sweep:
    """Open loops at shares of the capacity, which is the most that callers in a closed loop got.

    Attributes:
        capacities: a closed loop before the sweep, and after each round.
        per_second: the capacity that the percentages are of: the first.
    """

    capacities: tuple[Measurement, ...]
    per_second: float
    points: tuple[Point, ...]

    def medians(self, value: Callable[[Measurement], float]) -> dict[float, float]:
        """Returns medians over the rounds, by percent."""
        by_percent: dict[float, list[float]] = {}
        for point in self.points:
            by_percent.setdefault(point.percent, []).append(value(point.measurement))
        return {percent: median(values) for percent, values in sorted(by_percent.items())}


async def sweep(
    target: Target,
    images: Sequence[bytes],
    percents: Sequence[float],
    timing: Timing,
    *,
    callers: int,
    patient: Target,
    rounds: int = 1,
    metrics_url: str | None = None,
    report: Callable[[str, Measurement], None] = lambda name, measurement: None,
) -> Sweep:
    """Measures the capacity with ``callers`` in a closed loop, then every share of it.

    Args:
        patient: the same server without a deadline, to measure the capacity.
        report: called with a name after each load.
    """
    capacities, points = [], []

    async def measure_capacity() -> None:
        capacities.append(
            await measure_load(patient, images, Load(callers=callers), timing, metrics_url)
        )
        report("capacity", capacities[-1])

    await measure_capacity()
    capacity = capacities[0].summary.throughput
    if not capacity:
        refused = {**capacities[0].summary.rejected, **capacities[0].summary.errors}
        raise RuntimeError(f"the server answered none of {callers} callers: {refused}")
    for number in range(rounds):
        for percent in percents:
            load = Load(per_second=capacity * percent / 100)
            measured = await measure_load(target, images, load, timing, metrics_url, seed=number)
            points.append(Point(percent, number, measured))
            report(f"{percent:g} %", measured)
        await measure_capacity()
    return Sweep(tuple(capacities), capacity, tuple(points))
