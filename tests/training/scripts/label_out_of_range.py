"""What a label beyond the outputs does to GluonCV's loss, and to ours, in MXNet.

``label_out_of_range.py FOLDER``: reads ``case.npz`` (logits ``[N,C,h,w]``, labels ``[N,h,w]``),
writes ``answer.npz``: the losses that are reported, and the gradients of the logits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from export.mxnet_import import mx
from training.trainers.gluon_trainer import WeightedCrossEntropy


def report_softmax_output(logits: mx.nd.NDArray, labels: mx.nd.NDArray) -> mx.nd.NDArray:
    """Softmax with a gradient of its own, its logarithm picked for the report."""
    probability = mx.nd.SoftmaxOutput(
        logits, labels, ignore_label=-1, use_ignore=True, multi_output=True, normalization="valid"
    )
    return -mx.nd.pick(mx.nd.log(probability), labels, axis=1)


def main(folder: Path) -> None:
    with np.load(folder / "case.npz") as given:
        logits, labels = mx.nd.array(given["logits"]), mx.nd.array(given["labels"])
    ours = WeightedCrossEntropy(np.ones(logits.shape[1], np.float32))
    ours.initialize()
    answers = {}
    for name, loss in (("softmax_output", report_softmax_output), ("ours", ours)):
        logits.attach_grad()
        with mx.autograd.record():
            reported = loss(logits, labels)
        reported.backward()
        answers[f"{name}_loss"] = reported.asnumpy()
        answers[f"{name}_gradient"] = logits.grad.asnumpy()
    np.savez(folder / "answer.npz", **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
