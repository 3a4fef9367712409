"""Losses and gradients for given arrays: ``losses.py INPUT.npz OUTPUT.npz``.

Every case is three maps of logits and three of labels with loss weights and class weights:
``<case>_logits0`` ... ``<case>_labels2``, ``<case>_weights``, ``<case>_classes``, and
``<case>_hard`` (probability below which a pixel counts, least share). Out come
``<case>_loss`` and ``<case>_gradient0`` ... ``2``; ``pixels`` and ``power`` give ``balance``.
"""

from __future__ import annotations

import sys

import numpy as np

from export.mxnet_import import mx
from training.class_weights import balance_classes
from training.trainers.gluon_trainer import CascadeLoss


def main() -> None:
    given = np.load(sys.argv[1])
    answers = {"balance": balance_classes(given["pixels"], float(given["power"]))}
    for case in sorted(name.removesuffix("_weights") for name in given if "_weights" in name):
        hard_below, least_share = given[f"{case}_hard"].tolist()
        weights, classes = given[f"{case}_weights"].tolist(), given[f"{case}_classes"]
        loss = CascadeLoss(weights, classes, hard_below, least_share)
        loss.initialize()
        loss.hybridize()
        logits = [mx.nd.array(given[f"{case}_logits{i}"]) for i in range(3)]
        labels = [mx.nd.array(given[f"{case}_labels{i}"]) for i in range(3)]
        for array in logits:
            array.attach_grad()
        with mx.autograd.record():
            value = loss(*logits, *labels)
        value.backward()
        answers[f"{case}_loss"] = value.asnumpy()
        for index, array in enumerate(logits):
            answers[f"{case}_gradient{index}"] = array.grad.asnumpy()
    np.savez(sys.argv[2], **answers)


if __name__ == "__main__":
    main()
