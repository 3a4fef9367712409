"""Steps whose loss, gradients or statistics are not finite: reported, reproduced, skipped or fatal.

A reproduction is one zip file: the step's batch, weights, optimizer, network and options.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.loader import Batch
from training.options import TrainOptions
from training.runs.checkpoint import RunFolder, format_json, replacing
from training.trainers import Learner

# In the order in which a step computes them.
QUANTITIES = ("input", "parameter", "activation", "loss", "gradient", "running statistic")


@dataclass(frozen=True)
class Finding:
    """The first array that is not finite.

    Attributes:
        quantity: ``input``, ``parameter``, ``activation`` (forward), ``loss``, ``gradient``
            (backward) or ``running statistic``.
        name: the symbol's: of the layer, or of the array.
    """

    quantity: str
    name: str

    def __str__(self) -> str:
        return f"{self.quantity} {self.name}"


class NonFiniteStep(ArithmeticError):
    """A step that was not taken: its loss, a gradient or a running statistic is not finite.

    Weights, momenta, averages and running statistics are those from before. ``batch`` is the whole
    one, of all processes.
    """

    def __init__(self, loss: float, finding: Finding, batch: Batch) -> None:
        super().__init__(f"loss {loss}, first not finite: {finding}")
        self.loss = loss
        self.finding = finding
        self.batch = batch


@dataclass(frozen=True)
class Symptoms:
    """The names, in the symbol's order, of arrays that were not finite after the step."""

    gradients: Sequence[str]
    statistics: Sequence[str]


def choose_finding(forward: Finding | None, loss_is_finite: bool, symptoms: Symptoms) -> Finding:
    """Returns the first finding in the order in which a step computes.

    Args:
        forward: what a second forward pass found, layer by layer; None: all is finite there.
    """
    if forward is not None:
        return forward
    if not loss_is_finite:
        return Finding("loss", "of finite logits")
    if symptoms.gradients:
        # The backward pass comes from the end.
        return Finding("gradient", symptoms.gradients[-1])
    if symptoms.statistics:
        return Finding("running statistic", symptoms.statistics[0])
    return Finding("gradient", "norm (every gradient by itself is finite)")


def first_finding(findings: Sequence[Finding], layers: Sequence[str]) -> Finding:
    """Returns the first of several processes' findings; ``layers`` are names in the order of
    computation.
    """
    places = {name: index for index, name in enumerate(layers)}
    return min(findings, key=lambda f: (QUANTITIES.index(f.quantity), places.get(f.name, -1)))


PARAMETERS, OPTIMIZER = "network.params", "trainer.states"
BATCH, INCIDENT = "batch.npz", "incident.json"


def write_reproduction(
    path: Path,
    learner: Learner,
    batch: Batch,
    class_weights: npt.NDArray[np.float32],
    options: Mapping[str, object],
    incident: Mapping[str, object],
) -> None:
    """Writes the zip file under another name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        run = RunFolder(folder)
        learner.write_parameters(folder / PARAMETERS)
        learner.write_optimizer(folder / OPTIMIZER)
        learner.write_symbol(run.symbol)
        run.options.write_text(format_json(options))
        (folder / INCIDENT).write_text(format_json(incident))
        np.savez(
            folder / BATCH, images=batch.images, labels=batch.labels,
            names=np.array(batch.names), class_weights=class_weights,
        )  # fmt: skip
        with (
            replacing(path) as aside,
            zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)


def read_batch(folder: Path) -> tuple[Batch, npt.NDArray[np.float32]]:
    """Returns the batch and the class weights of an unpacked reproduction."""
    with np.load(folder / BATCH) as file:
        names = tuple(str(name) for name in file["names"])
        return Batch(file["images"], file["labels"], names), file["class_weights"]


def read_incident(folder: Path) -> dict[str, object]:
    """Returns what was reported of the step."""
    incident: dict[str, object] = json.loads((folder / INCIDENT).read_text())
    return incident


# A reproduction has all weights: a few show as much as all of them.
MOST_REPRODUCTIONS = 3


class TrainingStopped(ValueError):
    """The run ends because of steps that cannot be taken; resuming it meets them again."""


@dataclass(frozen=True)
class Incident:
    """A step that was not taken; ``epoch`` and ``iteration`` count from 1, as the log does."""

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
    """A guard takes a learner's steps, and handles those that are refused.

    With ``options.on_nan`` ``stop`` the first such step ends the run; with ``skip`` it is left out,
    but more than ``options.max_skips`` in a row end the run too. Several processes refuse the same
    steps; the first one reports and writes.
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
        """Returns the loss of iteration ``index`` of ``epoch`` (from 0); None if it was skipped.

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
        kept = self._reproduce(incident, batch) if leads else "reported by the first process"
        # A process that ends takes the others with it, also one that still writes.
        self.learner.wait()
        report = f"{incident}; {kept}"
        if self.options.on_nan == "stop":
            raise TrainingStopped(f"{report}; --on-nan skip leaves such steps out")
        self.skipped_in_a_row += 1
        most = self.options.max_skips
        if self.skipped_in_a_row > most:
            raise TrainingStopped(f"{report}; more than --max-skips {most} in a row")
        if leads:
            print(f"step skipped: {report}", file=sys.stderr, flush=True)

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
