"""The steps of a run, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from training.guard.guard import Guard
from training.loader import Loader
from training.schedules import Schedule


@dataclass(frozen=True)
class Steps:
    """Batches, the rate of each, and who takes the steps."""

    loader: Loader
    schedule: Schedule
    guard: Guard

    def rate(self, epoch: int, iteration: int) -> float:
        """Both count from 0."""
        return self.schedule(epoch * self.loader.batches + iteration)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[int, float, float | None]]:
        """Takes them from iteration ``first`` on: (iteration, rate, loss) after each; the loss is
        None where the step was skipped.

        Raises:
            TrainingStopped: see ``guard/guard.py``.
        """
        for iteration, batch in enumerate(self.loader.epoch(epoch, first), first):
            rate = self.rate(epoch, iteration)
            yield iteration, rate, self.guard.step(batch, rate, epoch, iteration)
