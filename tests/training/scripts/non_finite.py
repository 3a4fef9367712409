"""Steps of the MXNet trainer that must not be taken, alone and in a run.

``non_finite.py FOLDER SCENES ROOT`` writes ``network-symbol.json`` and ``start.params`` (of a
trainer with momenta), ``findings.json`` (what each bad batch is refused for, and whether anything
moved), and the run ``FOLDER/camvid/icnet/skipped``; prints what ``--on-nan stop`` says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, sys.argv[3])
import training.run
from tests.support.poisoned import PoisonedLoader, poison
from training.guard.guard import NonFiniteStep, TrainingStopped
from training.loader import Batch
from training.options import parse_options
from training.trainers.gluon_trainer import GluonLearner

CLASSES = 11
FIRST = "icnet_conv1_conv0_weight"


def states_of(learner: GluonLearner, folder: Path) -> tuple[bytes, bytes]:
    learner.write_parameters(folder / "now.params")
    learner.write_optimizer(folder / "now.states")
    return (folder / "now.params").read_bytes(), (folder / "now.states").read_bytes()


def refuse(learner: GluonLearner, batch: Batch, folder: Path) -> dict[str, object]:
    before = states_of(learner, folder)
    try:
        learner.step(batch, 0.01)
    except NonFiniteStep as error:
        moved = states_of(learner, folder) != before
        return {"quantity": error.finding.quantity, "name": error.finding.name, "moved": moved}
    return {"quantity": "none", "name": "", "moved": True}


def main(folder: Path, scenes: Path) -> None:
    flags = ["--backbone", "resnet18", "--width", "0.25", "--crop-size", "64x96", "--base-size",
             "96", "--epochs", "1", "--batch-size", "2", "--lr", "0.01", "--dataset", "camvid",
             "--root", str(scenes), "--save-dir", str(folder), "--scale-range", "1,1"]  # fmt: skip
    random = np.random.default_rng(2)
    images = random.standard_normal((2, 3, 64, 96)).astype(np.float32)
    labels = random.integers(0, CLASSES, (2, 64, 96)).astype(np.uint8)
    good = Batch(images, labels, ("a.png", "b.png"))
    learner = GluonLearner(parse_options(flags), CLASSES)
    learner.start(np.ones(CLASSES, np.float32))
    learner.step(good, 0.01)
    learner.write_symbol(folder / "network-symbol.json")
    learner.write_parameters(folder / "start.params")
    np.savez(folder / "batch.npz", images=images, labels=labels)
    findings = {
        "nan": refuse(learner, poison(good, "b.png"), folder),
        # The variance overflows, and what is divided by it is zero: loss and gradients are finite.
        "large": refuse(learner, Batch(images * np.float32(1e25), labels, good.names), folder),
    }
    findings["after"] = {"loss": learner.step(good, 0.01)}
    weight = learner.network.collect_params()[FIRST]
    weight.set_data(weight.data() * 1e30)
    findings["huge"] = refuse(learner, Batch(images * np.float32(1e30), labels, good.names), folder)
    weight.set_data(weight.data() * np.inf)
    findings["weight"] = refuse(learner, good, folder)
    (folder / "findings.json").write_text(json.dumps(findings))

    training.run.Loader = PoisonedLoader  # type: ignore[misc]
    skipping = parse_options([*flags, "--checkname", "skipped", "--on-nan", "skip"])
    training.run.Run(skipping, GluonLearner(skipping, CLASSES)).fit()
    stopping = parse_options([*flags, "--checkname", "stopped"])
    try:
        training.run.Run(stopping, GluonLearner(stopping, CLASSES)).fit()
    except TrainingStopped as error:
        print(f"stopped: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
