"""Capacity, and what happens below and above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.loadgen.measurement import Load, Measurement, Timing, measure_load
from benchmarks.loadgen.target import Target


@dataclass(frozen=True)
class Point:
    """One open loop of a sweep; ``percent`` of the capacity, ``round`` from 0."""

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
        """By percent, over the rounds."""
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
    tell: Callable[[str, Measurement], None] = lambda name, measurement: None,
) -> Sweep:
    """Measures the capacity with ``callers`` in a closed loop, then every share of it.

    Args:
        patient: the same server, asked without a deadline: so the capacity is measured.
        tell: called with a name after each load.
    """
    capacities, points = [], []

    async def measure_capacity() -> None:
        capacities.append(
            await measure_load(patient, images, Load(callers=callers), timing, metrics_url)
        )
        tell("capacity", capacities[-1])

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
            tell(f"{percent:g} %", measured)
        await measure_capacity()
    return Sweep(tuple(capacities), capacity, tuple(points))
