"""Runs of several processes: cut off and resumed, and with a NaN in the rows of one of them.

``replica_runs.py FOLDER ROOT FLAG...`` makes the runs ``broken``, ``told`` (resumed twice),
``skipped`` and ``stopped``; writes ``FOLDER/said-RANK.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
import numpy as np
import numpy.typing as npt

import training.run
from tests.support.poisoned import PoisonedLoader
from training.guard.guard import TrainingStopped
from training.options import parse_options
from training.runs.interruption import Interrupted
from training.trainers.torch_trainer import TorchLearner

CLASSES = 11


class BrokenLearner(TorchLearner):
    """Ends where a killed process does: within the second epoch."""

    def begin_step(self, epoch: int, iteration: int) -> None:
        if (epoch, iteration) == (1, 1):
            raise KeyboardInterrupt
        super().begin_step(epoch, iteration)


class ToldLearner(TorchLearner):
    """Its second process is told to end within the second epoch."""

    def begin_step(self, epoch: int, iteration: int) -> None:
        if (epoch, iteration, self.shard.rank) == (1, 0, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        super().begin_step(epoch, iteration)


class ToldInValidation(TorchLearner):
    """Its first process is told within the validation; the other one hears of it."""

    def logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.shard.leads:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().logits(image)


def end_by_signal(run: training.run.Run) -> tuple[int, int]:
    """Where it ended."""
    try:
        run.fit()
    except Interrupted:
        run.learner.wait()
    return run.folder.read_state().place


def run_of(name: str, kind: type[TorchLearner], *flags: str) -> training.run.Run:
    options = parse_options([*flags, "--checkname", name])
    return training.run.Run(options, kind(options, CLASSES))


def main(folder: Path, flags: list[str]) -> None:
    said: dict[str, object] = {}
    broken = run_of("broken", BrokenLearner, *flags, "--checkpoint-minutes", "1e-9")
    try:
        broken.fit()
    except KeyboardInterrupt:
        said["broken"] = True
    broken.learner.wait()
    resumed = run_of("broken", TorchLearner, *flags, "--resume", str(broken.folder.path))
    said["epochs"] = resumed.fit().epochs_done

    told = run_of("told", ToldLearner, *flags)
    resume = [*flags, "--resume", str(told.folder.path)]
    said["told"] = end_by_signal(told), end_by_signal(run_of("told", ToldInValidation, *resume))
    run_of("told", TorchLearner, *resume).fit()

    training.run.Loader = PoisonedLoader  # type: ignore[misc]
    once = [*flags, "--epochs", "1", "--no-val"]
    skipped = run_of("skipped", TorchLearner, *once, "--on-nan", "skip")
    skipped.fit()
    said["finite"] = all(
        bool(v.isfinite().all()) for v in skipped.learner.module.state_dict().values()
    )
    try:
        run_of("stopped", TorchLearner, *once).fit()
    except TrainingStopped as error:
        said["stopped"] = str(error)
    rank = skipped.learner.shard.rank
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    skipped.learner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:])
