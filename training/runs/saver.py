"""Decides when a run's checkpoints are written, and from what."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from training.runs.checkpoint import CheckpointNotWritten, RunFolder, RunState
from training.trainers import Learner


class Saver:
    """A saver writes the checkpoints of one learner's run.

    Args:
        minutes: between checkpoints within an epoch; 0: none there.
        clock: seconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        minutes: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder = folder
        self.learner = learner
        self.minutes = minutes
        self.clock = clock
        self.saved = clock()

    def is_due(self) -> bool:
        """Returns whether the last checkpoint is old enough for another one."""
        return bool(self.minutes) and self.clock() - self.saved >= 60 * self.minutes

    def save(self, state: RunState) -> None:
        """Writes a checkpoint. Raises CheckpointNotWritten if there is no room."""
        with self.folder.checkpoint(state) as aside:
            self.learner.write_parameters(aside.last)
            self.learner.write_optimizer(aside.optimizer)
        self.saved = self.clock()

    @contextmanager
    def keeping(self, read_state: Callable[[], RunState]) -> Iterator[None]:
        """Saves the place in the epoch if an error ends the run, such as a damaged file or a step
        that is not finite. The run can be resumed there once that is mended or skipped.
        """
        try:
            yield
        except CheckpointNotWritten:
            raise
        except (ValueError, OSError):
            state = read_state()
            if state.part.iterations:
                self.save(state)
                print(
                    f"{self.folder.path} is saved up to epoch {state.epochs_done + 1}, iteration "
                    f"{state.part.iterations}; --resume continues from there",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            raise
