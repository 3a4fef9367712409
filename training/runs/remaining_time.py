"""How long an epoch and the whole run still take, from what they took so far."""

from __future__ import annotations


class RemainingTime:
    """Seconds left; None as long as nothing was measured.

    A validation counts in the run's time as soon as one was measured.
    """

    def __init__(self, steps: int, batches: int, validations: int) -> None:
        """Args: steps that are left, ``batches`` of them an epoch; validations that are left."""
        self.batches = batches
        self.steps_left = steps
        self.validations_left = validations
        self.steps = 0
        self.step_seconds = 0.0
        self.validations = 0
        self.validation_seconds = 0.0

    def add_step(self, seconds: float) -> None:
        self.steps += 1
        self.steps_left -= 1
        self.step_seconds += seconds

    def add_validation(self, seconds: float) -> None:
        self.validations += 1
        self.validations_left -= 1
        self.validation_seconds += seconds

    def of_epoch(self) -> float | None:
        """Of the steps up to the next validation."""
        if not self.steps:
            return None
        return self.steps_left % self.batches * self.step_seconds / self.steps

    def of_run(self) -> float | None:
        if not self.steps:
            return None
        steps = self.steps_left * self.step_seconds / self.steps
        if not self.validations:
            return steps
        return steps + self.validations_left * self.validation_seconds / self.validations


def format_seconds(seconds: float | None) -> str:
    """``h:mm:ss``; dashes where unknown."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
