"""Scalars for TensorBoard; needs ``tensorboardX``, which needs no framework."""

from __future__ import annotations

import math
import os
from pathlib import Path

from tensorboardX import SummaryWriter

from training.runs.epoch_log import EpochRecord


class TensorBoardLog:
    """Event files in ``folder``; every scalar's step is the number of iterations done.

    A resumed run gives the ``iteration`` that it goes on from: what an earlier process wrote beyond
    it is hidden.
    """

    def __init__(self, folder: Path, iteration: int = 0) -> None:
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
        """The epoch that ended at ``iteration``; scores that there are not are left out."""
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
