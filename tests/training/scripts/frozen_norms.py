"""Two steps in MXNet with ``--freeze-bn``; which arrays moved.

``frozen_norms.py FOLDER``: reads ``batch.npz``, writes ``network-symbol.json`` and prints the names
of the arrays that changed, one a line.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from training.loader import Batch
from training.options import parse_options
from training.trainers.gluon_trainer import GluonLearner


def main(folder: Path) -> None:
    with np.load(folder / "batch.npz") as given:
        batch = Batch(given["images"], given["labels"], ("a", "b"))
    size = "{}x{}".format(*batch.labels.shape[1:])
    flags = f"--backbone resnet18 --width 0.25 --crop-size {size} --batch-size 2 --freeze-bn"
    learner = GluonLearner(parse_options(flags.split()), 11)
    learner.write_symbol(folder / "network-symbol.json")
    learner.start(np.ones(11, np.float32))
    parameters = learner.network.collect_params()
    before = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
    for _ in range(2):
        learner.step(batch, 0.01)
    for name, parameter in parameters.items():
        if not np.array_equal(before[name], parameter.data().asnumpy()):
            print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
