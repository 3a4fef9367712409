"""Two steps of MXNet's trainer with every family of networks: ``two_steps.py FOLDER CASES``.

``CASES`` is JSON, by name: the command line of ``train.py``. Reads ``FOLDER/batch.npz`` (images,
labels, classes, rates); writes ``NAME/network-symbol.json`` with dropout off, ``before.params``,
``after.params`` and ``steps.json``: the losses, and the factors on the rates of the parameters that
learn. In float64, but for MSRA's networks: MXNet crops in float32 only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from one_step import switch_dropout_off

from export.mxnet_import import mx
from training.loader import Batch
from training.options import parse_options
from training.trainers.gluon_guard import GuardedArrays
from training.trainers.gluon_trainer import GluonLearner


class ExactLearner(GluonLearner):
    """In float64."""

    def start(self, class_weights: npt.NDArray[np.float32]) -> None:
        super().start(class_weights)
        self.network.cast("float64")
        self.loss.cast("float64")
        # The cast has replaced the arrays.
        self.guarded = GuardedArrays(self.network)

    def _shards(
        self, batch: Batch, devices: int
    ) -> Iterator[tuple[mx.nd.NDArray, npt.NDArray[np.uint8]]]:
        for images, labels in super()._shards(batch, devices):
            yield images.astype("float64"), labels


def main(folder: Path, cases: str) -> None:
    with np.load(folder / "batch.npz") as given:
        batch = Batch(given["images"], given["labels"], ("a", "b"))
        classes, rates = int(given["classes"]), given["rates"].tolist()
    for name, flags in json.loads(cases).items():
        options = parse_options(flags)
        kind = GluonLearner if "msra" in options.model else ExactLearner
        learner = kind(options, classes)
        switch_dropout_off(learner.network)
        # Again: the graph was traced with dropout.
        learner.network.hybridize(static_alloc=True, static_shape=True)
        out = folder / name
        learner.write_symbol(out / "network-symbol.json")
        learner.write_parameters(out / "before.params")
        learner.start(np.ones(classes, np.float32))
        losses = [learner.step(batch, rate) for rate in rates]
        learner.write_parameters(out / "after.params")
        found = learner.network.collect_params().items()
        told = {
            "losses": losses,
            "rates": {name: p.lr_mult for name, p in found if p.grad_req != "null"},
        }
        (out / "steps.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
