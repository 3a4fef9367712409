"""Two steps of MXNet's trainer with parameters that are not trained; which arrays moved.

``frozen_norms.py FOLDER CASES``: reads ``batch.npz``; ``CASES`` is JSON, flags by name. Writes
``NAME/network-symbol.json``, ``NAME/before.params``, and ``NAME/told.json``: the loss of the first
step, the names of the arrays that changed, of those with a gradient, and how many have a momentum.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
from one_step import switch_dropout_off

from training.class_weights import weigh_classes
from training.loader import Batch
from training.options import parse_options
from training.trainers.gluon_trainer import GluonLearner

# Batch norms without statistics of the data hold nothing back: larger steps diverge.
RATE = 0.0005


def main(folder: Path, cases: str) -> None:
    with np.load(folder / "batch.npz") as given:
        batch = Batch(given["images"], given["labels"], ("a", "b"))
    for name, flags in json.loads(cases).items():
        options = parse_options(flags)
        learner = GluonLearner(options, 11)
        switch_dropout_off(learner.network)
        # Again: the graph was traced with dropout.
        learner.network.hybridize(static_alloc=True, static_shape=True)
        out = folder / name
        learner.write_symbol(out / "network-symbol.json")
        learner.write_parameters(out / "before.params")
        learner.start(weigh_classes([], 11, 0.0, options.class_weights))
        parameters = learner.network.collect_params()
        before = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
        losses = [learner.step(batch, RATE) for _ in range(2)]
        learner.write_optimizer(out / "optimizer")
        states, _ = pickle.loads((out / "optimizer").read_bytes())
        told = {
            "loss": losses[0],
            "moved": [n for n, p in parameters.items()
                      if not np.array_equal(before[n], p.data().asnumpy())],
            "learnt": [n for n, p in parameters.items() if p.grad_req != "null"],
            "momenta": len(states),
        }  # fmt: skip
        (out / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
