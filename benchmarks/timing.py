"""Times a synchronous call again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MIN_RUNS = 3


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
