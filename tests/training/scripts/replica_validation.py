"""Validations of several processes together: ``replica_validation.py FOLDER FLAG...``.

Every process but the first spoils its running statistics before it scores. Writes
``FOLDER/scored-RANK.json``: by case, the confusion matrices and the images that this process saw;
of the cases that end early what was raised. With the environment's ``ENDS`` the second process ends
within the validation, as a killed one does, and the first writes what became of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import training.validation
from export.datasets import Sample
from training.options import parse_options
from training.runs.interruption import Interrupted
from training.trainers.torch_trainer import TorchLearner
from training.validation import Watch, validate

CLASSES = 11
CASES = {"odd": (), "averaged": ("--ema", "0.5"), "mixed": ("--synthetic-share", "0.5")}


def make_learner(flags: list[str]) -> TorchLearner:
    learner = TorchLearner(parse_options(flags), CLASSES)
    learner.start(np.ones(CLASSES, np.float32))
    rank = learner.shard.rank
    for state in learner.module.buffers():
        state += 3.0 * rank
    if learner.average is not None:
        for name in dict(learner.module.named_buffers()):
            learner.average.values[name] += 3.0 * rank
    return learner


def end_early(flags: list[str], watch: Watch) -> dict[str, str | float]:
    learner = make_learner(flags)
    start = time.monotonic()
    try:
        validate(learner.options, learner, CLASSES, watch)
    except (ValueError, Interrupted) as error:
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "", "message": "", "seconds": time.monotonic() - start}


class Short:
    """The first images only, as the run's flags have no say in it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.open = training.validation.open_dataset

    def __call__(self, name: str, split: str, root: Path | None = None) -> Short:
        self.samples = self.open(name, split, root)
        return self

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def name(self, index: int) -> str:
        return self.samples.name(index)


def main(folder: Path, flags: list[str]) -> None:
    learner = make_learner(flags)
    rank = learner.shard.rank

    def end(index: int, images: int) -> None:
        if rank == 1 and index == 3:
            os._exit(9)

    if "ENDS" in os.environ:
        # The launcher ends whoever is left at once, often before they have seen the other go.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            validate(learner.options, learner, CLASSES, end)
        except RuntimeError as error:
            (folder / "left.txt").write_text(str(error))
        return
    said: dict[str, object] = {}
    for case, more in CASES.items():
        seen: list[tuple[int, int]] = []
        learner = make_learner([*flags, *more])
        watch = lambda index, images: seen.append((index, images))  # noqa: B023, E731
        found = validate(learner.options, learner, CLASSES, watch)
        both = [found.main, *([found.synthetic] if found.synthetic else [])]
        said[case] = {"matrices": [one.matrix.tolist() for one in both], "seen": seen}

    def refuse(index: int, images: int) -> None:
        if rank == 1 and index == 3:
            raise ValueError("no image 3")

    def tell(index: int, images: int) -> None:
        if rank == 1 and index == 1:
            raise Interrupted(2)

    said["refused"] = end_early(flags, refuse)
    said["told"] = end_early(flags, tell)
    # Fewer images than processes.
    opened, training.validation.open_dataset = training.validation.open_dataset, Short(1)
    said["one"] = end_early(flags, lambda index, images: None)
    training.validation.open_dataset = opened
    (folder / f"scored-{rank}.json").write_text(json.dumps(said))
    learner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
