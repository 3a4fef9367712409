"""Progress of a run: two bars on a terminal, lines elsewhere; both with the remaining time."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from training.runs.checkpoint import RunState


class RemainingTime:
    """An estimate of the seconds left; None as long as nothing was measured.

    A validation counts in the run's time as soon as one was measured.
    """

    def __init__(self, steps: int, batches: int, validations: int) -> None:
        """Starts with the remaining steps, ``batches`` of them per epoch, and the remaining
        validations.
        """
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
        """Returns the seconds up to the next validation."""
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
    """Returns ``h:mm:ss``, or dashes if unknown."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("ETA {task.fields[left]}"),
    TextColumn("{task.fields[status]}"),
)


class RunProgress:
    """A context manager that shows progress; ``advance`` after each step, ``add_validation`` after
    each validation.

    Goes on at ``state``.
    """

    def __init__(
        self, epochs: int, state: RunState, batches: int, *, validations: int, log_interval: int
    ) -> None:
        self.epochs = epochs
        self.batches = batches
        self.log_interval = log_interval
        done = state.epochs_done * batches + state.part.iterations
        self.remaining = RemainingTime(epochs * batches - done, batches, validations)
        self.bars = Progress(*COLUMNS)
        self.bars.disable = not self.bars.console.is_terminal
        unknown = format_seconds(None)
        self.run_bar = self.bars.add_task(
            "run", total=epochs * batches, completed=done, left=unknown, status=""
        )
        self.epoch_bar = self.bars.add_task("epoch", total=batches, left=unknown, status="")
        self.clock = time.perf_counter()

    def __enter__(self) -> RunProgress:
        self.bars.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.__exit__(kind, error, trace)

    def begin_epoch(self, epoch: int, first: int = 0) -> None:
        """Starts at iteration ``first`` of ``epoch``, both from 0."""
        self.bars.reset(
            self.epoch_bar, total=self.batches, completed=first,
            description=f"epoch {epoch + 1}/{self.epochs}", left=format_seconds(None), status="",
        )  # fmt: skip
        self.clock = time.perf_counter()

    def advance(self, epoch: int, index: int, loss: float, rate: float) -> None:
        """Shows iteration ``index`` of ``epoch`` as done, both from 0; ``loss`` is the epoch's
        mean.
        """
        now = time.perf_counter()
        self.remaining.add_step(now - self.clock)
        self.clock = now
        of_epoch = format_seconds(self.remaining.of_epoch())
        of_run = format_seconds(self.remaining.of_run())
        self.bars.update(self.run_bar, advance=1, left=of_run)
        self.bars.update(
            self.epoch_bar, advance=1, left=of_epoch, status=f"loss {loss:.3f} lr {rate:.5f}"
        )
        if not self.bars.console.is_terminal and (index + 1) % self.log_interval == 0:
            print(
                f"epoch {epoch + 1} iteration {index + 1}/{self.batches} loss {loss:.4f} "
                f"lr {rate:.5f} ETA: epoch {of_epoch}, run {of_run}",
                flush=True,
            )

    def watch_validation(self, done: int, images: int) -> None:
        """Shows that ``done`` of so many images are scored, on the epoch's bar."""
        now = time.perf_counter()
        if not done:
            self.clock = now
            self.bars.reset(
                self.epoch_bar, total=images, description="validation",
                left=format_seconds(None), status="",
            )  # fmt: skip
        left = (now - self.clock) / done * (images - done) if done else None
        self.bars.update(self.epoch_bar, completed=done, left=format_seconds(left))

    def add_validation(self, seconds: float) -> None:
        self.remaining.add_validation(seconds)
        self.bars.update(self.run_bar, left=format_seconds(self.remaining.of_run()))
