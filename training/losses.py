"""Losses as arithmetic on MXNet arrays; weights act on the gradient.

GluonCV's loss rests on ``SoftmaxOutput``, whose backward pass ignores the gradient that comes in:
its auxiliary weights have no effect. Here the loss is log-softmax and pick, so they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.mxnet_import import mx


class WeightedCrossEntropy(mx.gluon.HybridBlock):
    """Mean of ``-log softmax(logits)[label]`` over the pixels that count.

    Inputs: logits float32 ``[N,C,h,w]``, labels float32 ``[N,h,w]`` (ids, 255 ignored). A pixel
    weighs ``class_weights[label]``; the mean divides by the weights' sum, and is 0 where every
    pixel is ignored.
    """

    def __init__(self, class_weights: npt.NDArray[np.float32], **scope: str) -> None:
        super().__init__(**scope)
        # One entry more: ignored pixels look it up and get 0.
        table = np.concatenate([class_weights, np.zeros(1, np.float32)])
        with self.name_scope():
            self.table = self.params.get_constant("table", mx.nd.array(table))
        self.num_classes = len(class_weights)

    def hybrid_forward(self, F, logits, labels, table):  # type: ignore[no-untyped-def]
        index = F.minimum(labels, self.num_classes)
        weights = F.take(table, index)
        log_probability = F.log_softmax(logits, axis=1)
        picked = F.pick(log_probability, F.minimum(index, self.num_classes - 1), axis=1)
        return -F.sum(picked * weights) / F.maximum(F.sum(weights), 1e-6)


class CascadeLoss(mx.gluon.HybridBlock):
    """The weighted sum of one cross-entropy an output, each at that output's own resolution."""

    def __init__(
        self, weights: Sequence[float], class_weights: npt.NDArray[np.float32], **scope: str
    ) -> None:
        super().__init__(**scope)
        self.weights = tuple(weights)
        with self.name_scope():
            self.cross_entropy = WeightedCrossEntropy(class_weights)

    def hybrid_forward(self, F, *maps):  # type: ignore[no-untyped-def]
        logits, labels = maps[: len(self.weights)], maps[len(self.weights) :]
        terms = [
            weight * self.cross_entropy(output, target)
            for weight, output, target in zip(self.weights, logits, labels, strict=True)
        ]
        return F.add_n(*terms)
