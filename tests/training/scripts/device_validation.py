"""MXNet's trainer on two devices of one process: ``device_validation.py FOLDER FLAG...``.

Two CPU contexts stand for GPUs. Writes ``FOLDER/devices.json``: how far a step of both devices is
from that of one with the whole batch, relative to its length (frozen batch norms: synchronised ones
do not train on a CPU); what devices with synchronised ones answer and learn with one's weights;
then, after steps in which each device has other statistics, the confusion matrices of both together
and of one that reads the weights from their file, and the images of each device.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from one_step import switch_dropout_off

from export.mxnet_import import mx
from training.loader import Batch
from training.options import parse_options
from training.trainers import gluon_trainer
from training.trainers.gluon_trainer import batch_norms
from training.validation import validate

CLASSES = 11


class CountingNetwork:
    """Counts what each device is given."""

    def __init__(self, network: mx.gluon.HybridBlock) -> None:
        self.network = network
        self.images: Counter[str] = Counter()

    def __call__(self, data: mx.nd.NDArray) -> list[mx.nd.NDArray]:
        self.images[str(data.context)] += len(data)
        outputs: list[mx.nd.NDArray] = self.network(data)
        return outputs

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)


def make_learner(flags: list[str], devices: int) -> gluon_trainer.GluonLearner:
    contexts = [mx.cpu(index) for index in range(devices)]
    gluon_trainer.choose_contexts = lambda options: contexts
    learner = gluon_trainer.GluonLearner(parse_options(flags), CLASSES)
    switch_dropout_off(learner.network)
    # Again: the graph was traced with dropout.
    learner.network.hybridize(static_alloc=True, static_shape=True)
    learner.start(np.ones(CLASSES, np.float32))
    return learner


def read(learner: gluon_trainer.GluonLearner) -> np.ndarray:
    parameters = learner.network.collect_params().items()
    return np.concatenate(
        [p.data(mx.cpu(0)).asnumpy().ravel() for n, p in parameters if "running" not in n]
    )


def compare_synchronised(folder: Path, flags: list[str], batch: Batch) -> dict[str, object]:
    """Whether one's weights fit several devices with synchronised batch norms, and learn alike."""
    alone, together = (make_learner([*flags, "--syncbn"], devices) for devices in (1, 2))
    alone.write_parameters(folder / "start.params")
    together.read_parameters(folder / "start.params")
    expected = alone.logits(batch.images[0])
    apart = [
        float(np.abs(logits - expected).max())
        for logits in together.logits_together([batch.images[0], batch.images[0]])
    ]
    rates = [
        {name: (p.lr_mult, p.wd_mult) for name, p in learner.network.collect_params().items()}
        for learner in (alone, together)
    ]
    return {
        "apart": max(apart) / float(np.abs(expected).max()),
        "same_rates": rates[0] == rates[1],
        "kinds": sorted({type(norm).__name__ for norm in batch_norms(together.network)}),
    }


def compare_steps(folder: Path, flags: list[str], batch: Batch) -> tuple[float, float]:
    """The distance of the steps, of their length; and that of the losses, of the loss."""
    alone, together = make_learner(flags, 1), make_learner(flags, 2)
    alone.write_parameters(folder / "start.params")
    together.read_parameters(folder / "start.params")
    before = read(alone)
    losses = [learner.step(batch, 0.01) for learner in (alone, together)]
    after, other = read(alone), read(together)
    step = float(np.linalg.norm(after - before))
    assert step > 1e-3
    return float(np.linalg.norm(other - after)) / step, abs(losses[1] / losses[0] - 1)


def make_batch(height: int, width: int) -> Batch:
    random = np.random.default_rng(3)
    images = random.standard_normal((4, 3, height, width)).astype(np.float32)
    images[2:] *= 5
    labels = random.integers(0, CLASSES, images[:, 0].shape).astype(np.uint8)
    return Batch(images, labels, tuple("abcd"))


def main(folder: Path, flags: list[str]) -> None:
    # Synchronised batch norms that wait for a device that does not come.
    faulthandler.dump_traceback_later(90, exit=True)
    told: dict[str, object] = {}
    options = parse_options(flags)
    batch = make_batch(options.height, options.crop_width)
    told["steps"] = compare_steps(folder, [*flags, "--freeze-bn"], batch)
    told["synchronised"] = compare_synchronised(folder, flags, batch)

    alone, learner = make_learner(flags, 1), make_learner(flags, 2)
    for _ in range(2):  # the first one ends with the first device's statistics on all
        learner.step(batch, 0.01)
    parameters = learner.network.collect_params(".*running_var").values()
    states = [[state.asnumpy() for state in parameter.list_data()] for parameter in parameters]
    told["apart"] = max(float(np.abs(first - second).max()) for first, second in states)
    learner.write_parameters(folder / "trained.params")
    alone.read_parameters(folder / "trained.params")
    counting = CountingNetwork(learner.network)
    learner.network = counting
    told["together"] = validate(options, learner, CLASSES).main.matrix.tolist()
    told["alone"] = validate(options, alone, CLASSES).main.matrix.tolist()
    told["images"] = dict(counting.images)
    (folder / "devices.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
