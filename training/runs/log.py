"""The logs of a run: ``log.csv``, a line per epoch; events for TensorBoard; ``curves.png``."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from training.runs.checkpoint import RunFolder, RunState


@dataclass(frozen=True)
class EpochRecord:
    """A finished epoch; scores are 0-1, NaN if nothing was scored.

    Attributes:
        epoch: from 1.
        learning_rate: at the epoch's first iteration.
        loss: mean over the steps that were taken.
        seconds: training, without the validation.
        skipped_steps: those whose loss or gradient was not finite.
    """

    epoch: int
    learning_rate: float
    loss: float
    seconds: float
    pixel_accuracy: float = math.nan
    miou: float = math.nan
    synthetic_miou: float = math.nan
    validation_seconds: float = 0.0
    skipped_steps: int = 0


COLUMNS = tuple(field.name for field in fields(EpochRecord))
WHOLE_NUMBERS = ("epoch", "skipped_steps")


def append_record(path: Path, record: EpochRecord) -> None:
    """Appends a line; the first one makes the header."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(asdict(record))


def read_records(path: Path) -> tuple[EpochRecord, ...]:
    """Returns all lines of a log; none if there is no log. Missing columns have their defaults.

    A last line without its end (a killed process) is left out.

    Raises:
        ValueError: the file is not a log; the line is named.
    """
    if not path.exists():
        return ()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    records = []
    for number, row in enumerate(csv.DictReader(whole.splitlines()), 2):
        try:
            values: dict[str, Any] = {
                name: _parse(name, row[name]) for name in COLUMNS if row.get(name)
            }
            records.append(EpochRecord(**values))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return tuple(records)


def keep_records(path: Path, epochs: int) -> tuple[EpochRecord, ...]:
    """Drops lines after epoch ``epochs``: those epochs are trained again. Returns the others."""
    kept = tuple(record for record in read_records(path) if record.epoch <= epochs)
    aside = path.with_name(path.name + ".part")
    aside.unlink(missing_ok=True)
    for record in kept:
        append_record(aside, record)
    if kept:
        os.replace(aside, path)
    else:
        path.unlink(missing_ok=True)
    return kept


def _parse(name: str, text: str) -> float:
    return int(text) if name in WHOLE_NUMBERS else float(text)


DrawCurves = Callable[[Mapping[str, Sequence[EpochRecord]], Path], None]


class RunLog:
    """The logs of a run that continues at ``state``, with epochs of ``batches`` iterations.

    Lines of later epochs, of a process that was killed before its checkpoint, are dropped. Without
    tensorboardX or matplotlib there is a warning in place of their files.
    """

    def __init__(self, folder: RunFolder, state: RunState, batches: int) -> None:
        self.folder = folder
        self.batches = batches
        self.records = list(keep_records(folder.log, state.epochs_done))
        done = state.epochs_done * batches + state.part.iterations
        self.tensorboard = _open_tensorboard(folder.tensorboard, done)
        self.draw = _find_curves()

    def add_step(self, epoch: int, index: int, loss: float, learning_rate: float) -> None:
        """Logs iteration ``index`` of ``epoch``, both from 0."""
        if self.tensorboard is not None:
            self.tensorboard.add_step(epoch * self.batches + index + 1, loss, learning_rate)

    def add_epoch(self, record: EpochRecord) -> None:
        self.records.append(record)
        append_record(self.folder.log, record)
        if self.tensorboard is not None:
            self.tensorboard.add_epoch(record.epoch * self.batches, record)
        if self.draw is not None:
            self.draw({self.folder.path.name: self.records}, self.folder.curves)

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()


def _open_tensorboard(folder: Path, iteration: int) -> TensorBoardLog | None:
    try:
        return TensorBoardLog(folder, iteration)
    except ImportError:
        _warn_missing("tensorboardX", "no events for TensorBoard")
        return None


def _find_curves() -> DrawCurves | None:
    try:
        from training.runs.curves import draw_curves
    except ImportError:
        _warn_missing("matplotlib", "no curves.png")
        return None
    return draw_curves


def _warn_missing(package: str, lost: str) -> None:
    warnings.warn(f"{package} is not installed: {lost}; pip install {package}", stacklevel=4)


class TensorBoardLog:
    """A writer of event files in ``folder``; every scalar's step is the number of iterations done.

    A resumed run gives the ``iteration`` that it continues from: what an earlier process wrote
    beyond it is hidden. Raises ImportError without ``tensorboardX``, which needs no framework.
    """

    def __init__(self, folder: Path, iteration: int = 0) -> None:
        from tensorboardX import SummaryWriter

        # The writer names files by the second: a run resumed within it would replace its own.
        self.writer = SummaryWriter(
            str(folder),
            purge_step=iteration + 1 if iteration else None,
            filename_suffix=f".{os.getpid()}.{iteration}",
        )

    def add_step(self, iteration: int, loss: float, learning_rate: float) -> None:
        self.writer.add_scalar("step/loss", loss, iteration)
        self.writer.add_scalar("step/learning_rate", learning_rate, iteration)

    def add_epoch(self, iteration: int, record: EpochRecord) -> None:
        """Logs the epoch that ended at ``iteration``; missing scores are left out."""
        scalars = {
            "epoch/loss": record.loss,
            "epoch/skipped_steps": float(record.skipped_steps),
            "validation/pixel_accuracy": record.pixel_accuracy,
            "validation/miou": record.miou,
            "validation/synthetic_miou": record.synthetic_miou,
        }
        for name, value in scalars.items():
            if not math.isnan(value):
                self.writer.add_scalar(name, value, iteration)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
