"""What a batch costs, learnt from the last ones; and when an image that comes now would be done."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

# The weight of the newest batch: about the last ten count.
WEIGHT = 0.2


class CostModel:
    """Seconds that an instance is taken by a batch of each size: an exponential average."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, size: int, seconds: float) -> None:
        """Notes one batch that was done."""
        known = self._seconds.get(size)
        self._seconds[size] = seconds if known is None else known + WEIGHT * (seconds - known)

    def predict(self, size: int) -> float | None:
        """Seconds of a batch; None before the first. Sizes not seen yet cost as the nearest one
        that was, image by image."""
        if not self._seconds:
            return None
        nearest = min(self._seconds, key=lambda known: (abs(known - size), known))
        return self._seconds[nearest] * size / nearest

    def predict_done(
        self, ahead: int, running: Sequence[tuple[int, float]], instances: int, max_batch_size: int
    ) -> float | None:
        """Seconds from now until the answer of an image that has ``ahead`` others before it.

        Args:
            running: size, and seconds since its start, of every batch at work.
        """
        full = self.predict(max_batch_size)
        if full is None:
            return None
        free = [max(0.0, (self.predict(size) or 0.0) - since) for size, since in running]
        free = free[:instances] + [0.0] * (instances - len(free))
        heapq.heapify(free)
        for _ in range(ahead // max_batch_size):
            heapq.heapreplace(free, free[0] + full)
        return free[0] + (self.predict(ahead % max_batch_size + 1) or 0.0)
