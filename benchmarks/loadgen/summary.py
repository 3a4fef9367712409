"""Sums up a run: rates, latencies, refusals."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.loadgen.driver import Record, Run, draw_poisson, drive_closed, drive_open
from benchmarks.loadgen.server_metrics import ServerMetrics, read_metrics
from benchmarks.loadgen.targets import Target


@dataclass(frozen=True)
class Latencies:
    """Latencies in milliseconds from when requests were due; all nan where there are none."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """Returns the figures of latencies in seconds."""
        if not seconds:
            return cls(*[float("nan")] * 5)
        ms = np.asarray(seconds) * 1000
        return cls(float(ms.mean()), *(float(np.percentile(ms, q)) for q in (50, 95, 99, 100)))


@dataclass(frozen=True)
class Summary:
    """The figures of a run without its start; rates a second, latencies in milliseconds.

    Attributes:
        offered: requests that were due.
        throughput: answers, in time or not.
        goodput: answers in time; equal to ``throughput`` where there is no deadline.
        in_time_share: of all requests (0-1).
        late: answers after the deadline.
        rejected: refusals by the server's code; ``errors`` likewise.
        lateness: of the generator.
        client_cpu: cores that the generator used, of the whole run.
    """

    title: str
    load: str
    requests: int
    offered: float
    throughput: float
    goodput: float
    in_time_share: float
    late: int
    rejected: Mapping[str, int]
    errors: Mapping[str, int]
    latency: Latencies
    refusal: Latencies
    lateness: Latencies
    client_cpu: float
    max_in_flight: int


def summarise(run: Run, *, deadline_s: float | None = None, skip_s: float = 0.0) -> Summary:
    """Sums up the requests that were due after ``skip_s``, in which queues fill and caches warm.

    Args:
        deadline_s: an answer counts as good if it came within it, from when it was due.
    """
    measured = run.seconds - skip_s
    records = [record for record in run.records if skip_s <= record.due < run.seconds]
    answered = [record for record in records if record.outcome.status == "ok"]
    good = [r for r in answered if deadline_s is None or r.latency <= deadline_s]
    # All that ended within the stretch, whenever they were due.
    ended = [r for r in run.records if skip_s <= r.ended < run.seconds]
    throughput = sum(record.outcome.status == "ok" for record in ended) / measured
    refused = [record for record in records if record.outcome.status == "rejected"]
    return Summary(
        title=run.title,
        load=run.load,
        requests=len(records),
        offered=len(records) / measured,
        throughput=throughput,
        goodput=len(good) / measured,
        in_time_share=len(good) / len(records) if records else 0.0,
        late=len(answered) - len(good),
        rejected=_count(refused),
        errors=_count([r for r in records if r.outcome.status == "error"]),
        latency=Latencies.of([record.latency for record in answered]),
        refusal=Latencies.of([record.latency for record in refused]),
        lateness=Latencies.of([record.lateness for record in records]),
        client_cpu=run.cpu_seconds / max((r.ended for r in run.records), default=run.seconds),
        max_in_flight=run.max_in_flight,
    )


def _count(records: Sequence[Record]) -> dict[str, int]:
    return dict(Counter(record.outcome.reason for record in records).most_common())


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
