"""Times synchronous calls again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_RUNS = 3
MIN_TURNS = 5


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of ``count`` measurements, in their own unit."""

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
    """Median and quartiles of one value at least."""
    low, median, high = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return Spread(median, low, high, len(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Each value by the one of ``base`` of the same turn: what disturbed both cancels out."""
    return spread_of([value / one for value, one in zip(values, base, strict=True)])


@dataclass(frozen=True)
class Timing:
    """Wall time of each run in seconds, and the process's CPU time of all of them."""

    walls: tuple[float, ...]
    cpu: float

    @property
    def total(self) -> float:
        """Wall time of all runs in seconds."""
        return sum(self.walls)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the runs' wall time in milliseconds."""
        return float(np.percentile(self.walls, percent)) * 1000


def time_runs(run: Callable[[], object], seconds: float, warm_runs: int = 2) -> Timing:
    """Calls ``run`` for about ``seconds`` after ``warm_runs`` untimed calls, three times at least.

    ``run`` must return only when its result is complete, so that no work is left on a device.
    """
    for _ in range(warm_runs):
        run()
    walls: list[float] = []
    cpu = time.process_time()
    end = time.perf_counter() + seconds
    while len(walls) < MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        walls.append(time.perf_counter() - start)
    return Timing(tuple(walls), time.process_time() - cpu)


@dataclass(frozen=True)
class Turns:
    """Wall time of each run in seconds, and the process's CPU time of each."""

    walls: tuple[float, ...]
    cpus: tuple[float, ...]

    def cpu_ms(self, percent: float = 50) -> float:
        """A percentile of the runs' CPU time in milliseconds; the median unless given."""
        return float(np.percentile(self.cpus, percent)) * 1000

    def wall_ms(self, percent: float = 50) -> float:
        """A percentile of the runs' wall time in milliseconds; the median unless given."""
        return float(np.percentile(self.walls, percent)) * 1000


def pool(turns: Sequence[Turns]) -> Turns:
    """The runs of all of them."""
    return Turns(
        tuple(wall for one in turns for wall in one.walls),
        tuple(cpu for one in turns for cpu in one.cpus),
    )


def time_in_turn(
    runs: Sequence[Callable[[], object]],
    seconds: float,
    turns: int = MIN_TURNS,
    pause_s: float = 0.0,
) -> tuple[Turns, ...]:
    """Calls each of ``runs`` in turn, for about ``seconds`` in all, ``turns`` times each at least.

    In turn, so that whatever else the machine does disturbs all of them alike. Each is called once
    before, untimed. ``pause_s`` before each lets threads that spin after their work fall asleep.
    """
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
    return tuple(Turns(tuple(w), tuple(c)) for w, c in zip(walls, cpus, strict=True))
