"""Learning rate as a function of the iteration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PolySchedule:
    """``base * (1 - i/total) ** power``, after a linear warm-up; iterations count from 0.

    Source: Chen et al., "DeepLab", arXiv 1606.00915 (power 0.9).
    """

    base: float
    total: int
    power: float = 0.9
    warmup: int = 0

    def __call__(self, iteration: int) -> float:
        if iteration < self.warmup:
            return self.base * (iteration + 1) / self.warmup
        progress = (iteration - self.warmup) / max(1, self.total - self.warmup)
        return self.base * max(0.0, 1.0 - progress) ** self.power
