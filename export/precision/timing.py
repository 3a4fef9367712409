"""How long graphs take, relative to one another, on a machine that may be doing other things.

All are open at once and take turns, in another order each round; a graph's time is divided by that
of the reference in the same round, so slow drifts cancel. The median of the ratios is reported with
an interval that holds the true median with 95 % confidence, whatever the noise is distributed like
(order statistics: David and Nagaraja, "Order Statistics", section 7.1).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from export.precision.served_graph import ServedGraph, serve_graph
from export.progress import OnPart

# With fewer rounds than 6 not even the extremes are a 95 % interval.
MIN_ROUNDS, MAX_ROUNDS = 7, 31
SECONDS = 20.0
_MISS = 0.05


@dataclass(frozen=True)
class TimeRatio:
    """A graph's time over the reference's: the median over all rounds and its 95 % interval."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def compare_times(
    models: Sequence[ModelProto],
    reference: ModelProto,
    image: NDArray[np.uint8],
    begin: Callable[[int], OnPart] = lambda rounds: lambda: None,
) -> list[TimeRatio]:
    """Returns the time of each model over that of ``reference`` for one image uint8 [H, W, 3].

    7 to 31 rounds, about 20 seconds where there is the choice. ``begin`` gets their number and
    returns what is called after each. Raises PrecisionFailed where a graph does not run.
    """
    with ExitStack() as stack:
        served = [stack.enter_context(serve_graph(model)) for model in (reference, *models)]
        order = random.Random(0)
        _run_round(served, image, order)  # warms up
        first = _run_round(served, image, order)
        rounds = round(min(max(SECONDS / sum(first), MIN_ROUNDS), MAX_ROUNDS))
        on_round = begin(rounds)
        seconds = [first]
        on_round()
        while len(seconds) < rounds:
            seconds.append(_run_round(served, image, order))
            on_round()
    return [
        median_ratio([times[index] / times[0] for times in seconds])
        for index in range(1, len(models) + 1)
    ]


def median_ratio(ratios: Sequence[float]) -> TimeRatio:
    """Returns the median and its interval; of fewer than 6 ratios the interval is all that was
    seen."""
    count = len(ratios)
    skipped, miss = 0, 2 * 0.5**count
    while skipped + 1 < count / 2:
        miss += 2 * math.comb(count, skipped + 1) * 0.5**count
        if miss > _MISS:
            break
        skipped += 1
    ordered = sorted(ratios)
    return TimeRatio(
        statistics.median(ordered), ordered[skipped], ordered[count - 1 - skipped], count
    )


def _run_round(
    served: Sequence[ServedGraph], image: NDArray[np.uint8], order: random.Random
) -> list[float]:
    """Returns the seconds of one run of each, in an order by chance: none always follows the same
    one."""
    seconds = [0.0] * len(served)
    for index in order.sample(range(len(served)), len(served)):
        seconds[index] = served[index].seconds(image)
    return seconds
