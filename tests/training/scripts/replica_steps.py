"""Steps in float64 on a process's rows of given batches, once for each list of flags.

``replica_steps.py FOLDER CASES`` reads ``FOLDER/batches.npz``; ``CASES`` is JSON, a list of flags
by name. Writes ``FOLDER/NAME-WORLD-RANK.npz``: losses, weights, running statistics.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.loader import Batch
from training.options import parse_options
from training.trainers.torch_trainer import TorchLearner


def main(folder: Path, cases: dict[str, list[str]]) -> None:
    with np.load(folder / "batches.npz") as file:
        images, labels, weights = file["images"], file["labels"], file["weights"]
    for name, flags in cases.items():
        learner = TorchLearner(parse_options(flags), len(weights))
        learner.module.double()
        learner.start(weights)
        learner.loss = replace(learner.loss, class_weights=learner.loss.class_weights.double())
        learner.begin_step(0, 0)
        rows = learner.shard.rows(len(images[0]))
        losses = []
        for image, label in zip(images, labels, strict=True):
            batch = Batch(image[rows], label[rows], tuple(map(str, rows)))
            losses.append(learner.step(batch, 0.01))
        found = {key: value.numpy() for key, value in learner.module.state_dict().items()}
        file_name = f"{name}-{learner.shard.world}-{learner.shard.rank}.npz"
        np.savez(folder / file_name, losses=losses, **found)
    learner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
