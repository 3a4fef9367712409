"""Runs of several processes: cut off and resumed, and with a NaN in the rows of one of them.

``replica_runs.py FOLDER SUPPORT FLAG...`` makes the runs ``broken``, ``skipped`` and ``stopped``;
writes ``FOLDER/said-RANK.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from poisoned import PoisonedLoader

import training.run
from training.guard.guard import TrainingStopped
from training.options import parse_options
from training.trainers.torch_trainer import TorchLearner

CLASSES = 11


class BrokenLearner(TorchLearner):
    """Ends where a killed process does: within the second epoch."""

    def begin_step(self, epoch: int, iteration: int) -> None:
        if (epoch, iteration) == (1, 1):
            raise KeyboardInterrupt
        super().begin_step(epoch, iteration)


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
