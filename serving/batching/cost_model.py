"""What a batch costs, learnt from the last ones; and when an image that comes now would be done."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

# The weight of the newest observation: about the last ten count.
WEIGHT = 0.2


class Average:
    """An exponential average of seconds, and of how far they lie from it.

    Source: the estimators of TCP's retransmission timer (V. Jacobson, SIGCOMM 1988).
    """

    def __init__(self) -> None:
        self.mean: float | None = None
        self._spread = 0.0

    def learn(self, seconds: float) -> None:
        """Notes one observation."""
        if self.mean is None:
            self.mean = seconds
            return
        self._spread += WEIGHT * (abs(seconds - self.mean) - self._spread)
        self.mean += WEIGHT * (seconds - self.mean)

    def predict(self, spreads: float = 0.0) -> float | None:
        """The mean and ``spreads`` of its spreads, from 0 to its double; None before the first.

        One hiccup may not let everything look impossible: hence the bound.
        """
        if self.mean is None:
            return None
        return self.mean + max(-self.mean, min(spreads * self._spread, self.mean))


class CostModel:
    """Seconds that an instance is taken by a batch of each size."""

    def __init__(self) -> None:
        self._batches: dict[int, Average] = {}

    def learn(self, size: int, seconds: float) -> None:
        """Notes one batch that was done."""
        self._batches.setdefault(size, Average()).learn(seconds)

    def predict(self, size: int, spreads: float = 0.0) -> float | None:
        """Seconds of a batch; None before the first. Sizes not seen yet cost as the nearest one
        that was, image by image."""
        if not self._batches:
            return None
        nearest = min(self._batches, key=lambda known: (abs(known - size), known))
        seconds = self._batches[nearest].predict(spreads)
        return None if seconds is None else seconds * size / nearest

    def predict_done(
        self,
        ahead: int,
        running: Sequence[tuple[int, float]],
        instances: int,
        max_batch_size: int,
        spreads: float = 0.0,
    ) -> float | None:
        """Seconds from now until an image that has ``ahead`` others before it has been inferred.

        Args:
            running: size, and seconds since its start, of every batch at work.
            spreads: how cautious: see :meth:`Average.predict`.
        """
        full = self.predict(max_batch_size, spreads)
        if full is None:
            return None
        free = [max(0.0, (self.predict(size, spreads) or 0.0) - since) for size, since in running]
        free += [0.0] * (instances - len(free))
        heapq.heapify(free)
        for _ in range(ahead // max_batch_size):
            heapq.heapreplace(free, free[0] + full)
        return free[0] + (self.predict(ahead % max_batch_size + 1, spreads) or 0.0)
