"""Learning rate as a function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class PolySchedule:
    """A schedule ``base * (1 - i/total) ** power``, after a linear warm-up; iterations count from
    0.

    Source: Chen et al., "DeepLab", arXiv 1606.00915 (power 0.9).
    """

    base: float
    total: int
    power: float = 0.9
    warmup: int = 0

    def __call__(self, iteration: int) -> float:
        if iteration < self.warmup:
            return self.base * (iteration + 1) / self.warmup
        left = max(0.0, 1.0 - _progress(iteration, self.total, self.warmup))
        return self.base * math.pow(left, self.power)


@dataclass(frozen=True)
class CosineSchedule:
    """A schedule ``base * (1 + cos(pi i/total)) / 2``, after a linear warm-up; iterations count
    from 0.

    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983 (one period).
    """

    base: float
    total: int
    warmup: int = 0

    def __call__(self, iteration: int) -> float:
        if iteration < self.warmup:
            return self.base * (iteration + 1) / self.warmup
        progress = min(1.0, _progress(iteration, self.total, self.warmup))
        return self.base * (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class StepSchedule:
    """A schedule of ``base`` times the factor of every step reached, after a linear warm-up.

    ``steps`` are (iteration, factor): the factor holds from that iteration on.
    """

    base: float
    steps: tuple[tuple[int, float], ...]
    warmup: int = 0

    def __call__(self, iteration: int) -> float:
        rate = self.base * math.prod(factor for start, factor in self.steps if iteration >= start)
        return rate * min(1.0, (iteration + 1) / self.warmup) if self.warmup else rate


def _progress(iteration: int, total: int, warmup: int) -> float:
    return (iteration - warmup) / max(1, total - warmup)


SCHEDULES: Mapping[str, Callable[[float, int, int], Schedule]] = {
    "poly": lambda base, total, warmup: PolySchedule(base, total, warmup=warmup),
    "cosine": lambda base, total, warmup: CosineSchedule(base, total, warmup),
}
SCHEDULE_NAMES = (*SCHEDULES, "step")


def make_schedule(
    name: str,
    base: float,
    batches: int,
    epochs: int,
    warmup_epochs: float,
    lr_steps: tuple[float, ...],
    lr_factor: tuple[float, ...],
) -> Schedule:
    """Returns the schedule of a run of ``epochs`` of ``batches`` iterations each.

    Args:
        lr_steps: epochs (not only whole ones) at which ``step`` multiplies the rate.
        lr_factor: by how much: one number for each step, or one for all.
    """
    warmup = round(warmup_epochs * batches)
    if name != "step":
        return SCHEDULES[name](base, epochs * batches, warmup)
    factors = lr_factor * len(lr_steps) if len(lr_factor) == 1 else lr_factor
    steps = zip((round(epoch * batches) for epoch in lr_steps), factors, strict=True)
    return StepSchedule(base, tuple(steps), warmup)
