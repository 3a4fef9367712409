"""Times synchronous calls repeatedly, several of them in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_RUNS = 3
MIN_TURNS = 5


@dataclass(frozen=True)
class Spread:
    """The median and quartiles of ``count`` measurements, in their own unit."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        median, low, high = (
            f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
            for value in (self.median, self.low, self.high)
        )
        return f"{median} ({low}-{high})"


def spread_of(values: Sequence[float]) -> Spread:
    """Returns median and quartiles of at least one value."""
    low, median, high = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return Spread(median, low, high, len(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Returns each value over the one of ``base`` in the same turn: what disturbed both cancels."""
    return spread_of([value / one for value, one in zip(values, base, strict=True)])


@dataclass(frozen=True)
class Timing:
    """The wall time and the process's CPU time of each run, in seconds."""

    walls: tuple[float, ...]
    cpus: tuple[float, ...]

    @property
    def total(self) -> float:
        """Returns the wall time of all runs in seconds."""
        return sum(self.walls)

    @property
    def cpu(self) -> float:
        """Returns the CPU time of all runs in seconds."""
        return sum(self.cpus)

    def wall_ms(self, percent: float = 50) -> float:
        """Returns a percentile of the runs' wall time in milliseconds; by default the median."""
        return float(np.percentile(self.walls, percent)) * 1000

    def cpu_ms(self, percent: float = 50) -> float:
        """Returns a percentile of the runs' CPU time in milliseconds; by default the median."""
        return float(np.percentile(self.cpus, percent)) * 1000

    @property
    def wall_spread(self) -> Spread:
        """Returns median and quartiles of the wall time in milliseconds."""
        return spread_of([1000 * wall for wall in self.walls])

    @property
    def cpu_spread(self) -> Spread:
        """Returns median and quartiles of the CPU time in milliseconds."""
        return spread_of([1000 * cpu for cpu in self.cpus])


def pool(timings: Sequence[Timing]) -> Timing:
    """Returns the runs of all timings as one."""
    return Timing(
        tuple(wall for timing in timings for wall in timing.walls),
        tuple(cpu for timing in timings for cpu in timing.cpus),
    )


def time_runs(run: Callable[[], object], seconds: float, warm_runs: int = 2) -> Timing:
    """Calls ``run`` for about ``seconds`` after ``warm_runs`` untimed calls, at least three times.

    ``run`` must return only when its result is complete, so that no work is left on a device.
    """
    (timing,) = time_in_turn([run], seconds, MIN_RUNS, warm_runs=warm_runs)
    return timing


def time_in_turn(
    runs: Sequence[Callable[[], object]],
    seconds: float,
    turns: int = MIN_TURNS,
    pause_s: float = 0.0,
    warm_runs: int = 1,
) -> tuple[Timing, ...]:
    """Calls each of ``runs`` in turn, for about ``seconds`` in all, each at least ``turns`` times.

    In turn, so that whatever else the machine does disturbs all of them alike. Each is called
    ``warm_runs`` times before, untimed. ``pause_s`` before each run lets threads that spin after
    their work fall asleep.
    """
    for _ in range(warm_runs):
        for run in runs:
            run()
    walls: list[list[float]] = [[] for _ in runs]
    cpus: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while len(walls[0]) < turns or time.perf_counter() < end:
        for number, run in enumerate(runs):
            time.sleep(pause_s)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            cpus[number].append(time.process_time() - cpu)
            walls[number].append(time.perf_counter() - wall)
    return tuple(Timing(tuple(w), tuple(c)) for w, c in zip(walls, cpus, strict=True))
