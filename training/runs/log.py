"""What a run tells while it trains: ``log.csv``, TensorBoard's events, ``curves.png``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.runs.checkpoint import RunFolder, RunState
from training.runs.epoch_log import EpochRecord, append_record, keep_records

if TYPE_CHECKING:
    from training.runs.tensorboard_log import TensorBoardLog

DrawCurves = Callable[[Mapping[str, Sequence[EpochRecord]], Path], None]


class RunLog:
    """The logs of a run that goes on at ``state``, with epochs of ``batches`` iterations.

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
        """Iteration ``index`` of ``epoch``, both from 0."""
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
        from training.runs.tensorboard_log import TensorBoardLog
    except ImportError:
        _warn_missing("tensorboardX", "no events for TensorBoard")
        return None
    return TensorBoardLog(folder, iteration)


def _find_curves() -> DrawCurves | None:
    try:
        from training.runs.curves import draw_curves
    except ImportError:
        _warn_missing("matplotlib", "no curves.png")
        return None
    return draw_curves


def _warn_missing(package: str, lost: str) -> None:
    warnings.warn(f"{package} is not installed: {lost}; pip install {package}", stacklevel=4)
