"""Steps whose loss or gradients are not finite: told, kept for a second look, skipped or fatal."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.guard.finite import NonFiniteStep
from training.guard.reproduction import write_reproduction
from training.learner import Learner
from training.loader import Batch
from training.options import TrainOptions

# A reproduction holds all weights: some of them tell as much as all of them.
MOST_REPRODUCTIONS = 3


class TrainingStopped(ValueError):
    """The run ends because of steps that cannot be taken; resuming it meets them again."""


@dataclass(frozen=True)
class Incident:
    """One step that was not taken; ``epoch`` and ``iteration`` count from 1, as the log does."""

    epoch: int
    iteration: int
    learning_rate: float
    loss: float
    quantity: str
    name: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch} iteration {self.iteration}: loss {self.loss}, first not finite: "
            f"{self.quantity} {self.name}; files {', '.join(self.files)}"
        )


class Guard:
    """Takes a learner's steps; knows what to do where one is refused.

    With ``options.on_nan`` ``stop`` the first such step ends the run; with ``skip`` it is left out,
    but more than ``options.max_skips`` in a row end the run too. Several processes refuse the same
    steps; the first one tells and writes.
    """

    def __init__(
        self, options: TrainOptions, learner: Learner, class_weights: npt.NDArray[np.float32]
    ) -> None:
        self.options = options
        self.learner = learner
        self.class_weights = class_weights
        self.folder = options.run / "non-finite"
        self.skipped_in_a_row = 0

    def step(self, batch: Batch, rate: float, epoch: int, index: int) -> float | None:
        """The loss of iteration ``index`` of ``epoch`` (from 0); None where it was skipped.

        Raises:
            TrainingStopped: naming epoch, iteration, layer, images and the reproduction.
        """
        self.learner.begin_step(epoch, index)
        try:
            loss = self.learner.step(batch, rate)
        except NonFiniteStep as error:
            found = error.finding
            incident = Incident(
                epoch + 1, index + 1, rate, error.loss, found.quantity, found.name,
                error.batch.names,
            )  # fmt: skip
            self._refuse(incident, error.batch)
            return None
        self.skipped_in_a_row = 0
        return loss

    def _refuse(self, incident: Incident, batch: Batch) -> None:
        leads = self.learner.shard.leads
        kept = self._reproduce(incident, batch) if leads else "told by the first process"
        # A process that ends takes the others with it, also one that still writes.
        self.learner.wait()
        told = f"{incident}; {kept}"
        if self.options.on_nan == "stop":
            raise TrainingStopped(f"{told}; --on-nan skip leaves such steps out")
        self.skipped_in_a_row += 1
        most = self.options.max_skips
        if self.skipped_in_a_row > most:
            raise TrainingStopped(f"{told}; more than --max-skips {most} in a row")
        if leads:
            print(f"step skipped: {told}", file=sys.stderr, flush=True)

    def _reproduce(self, incident: Incident, batch: Batch) -> str:
        path = self.folder / f"epoch-{incident.epoch}-iteration-{incident.iteration}.zip"
        if not path.exists() and len(_reproductions(self.folder)) >= MOST_REPRODUCTIONS:
            return f"no reproduction: {self.folder} has {MOST_REPRODUCTIONS} already"
        write_reproduction(
            path, self.learner, batch, self.class_weights, asdict(self.options), asdict(incident)
        )
        return f"python -m training.guard.replay {path}"


def _reproductions(folder: Path) -> list[Path]:
    return list(folder.glob("*.zip"))
