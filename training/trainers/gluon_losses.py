"""The losses in MXNet: weighted cross-entropy whose weights act on the gradient.

GluonCV's loss rests on ``SoftmaxOutput``, whose backward pass ignores the gradient that comes in:
its auxiliary weights have no effect. Here the loss is log-softmax and pick, so they have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.mxnet_import import mx
from training.networks.layers import Map, Operators


class WeightedCrossEntropy(mx.gluon.HybridBlock):
    """The mean of ``-log softmax(logits)[label]`` over the pixels that count.

    Inputs: logits float32 ``[N,C,h,w]``, labels float32 ``[N,h,w]`` (ids, 255 ignored). A pixel
    weighs ``class_weights[label]``; the mean divides by the weights' sum, and is 0 where every
    pixel is ignored. With ``hard_below`` P > 0 only pixels whose own class has a probability below
    P count, but at least the hardest ``least_share`` of those that are not ignored (Shrivastava et
    al., arXiv 1604.03540; by pixels as in Wu et al., arXiv 1611.10080).
    """

    def __init__(
        self,
        class_weights: npt.NDArray[np.float32],
        hard_below: float = 0.0,
        least_share: float = 1.0,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.limit = -math.log(hard_below) if hard_below else 0.0
        self.least_share = least_share
        # One entry more: ignored pixels look it up and get 0.
        table = np.concatenate([class_weights, np.zeros(1, np.float32)])
        with self.name_scope():
            self.table = self.params.get_constant("table", mx.nd.array(table))
        self.num_classes = len(class_weights)

    def hybrid_forward(self, F: Operators, logits: Map, labels: Map, table: Map) -> Map:
        index = F.minimum(labels, self.num_classes)
        weights = F.take(table, index)
        log_probability = F.log_softmax(logits, axis=1)
        picked = F.pick(log_probability, F.minimum(index, self.num_classes - 1), axis=1)
        if self.limit:
            weights = weights * self._hard(F, F.BlockGrad(-picked), index < self.num_classes)
        return -F.sum(picked * weights) / F.maximum(F.sum(weights), 1e-6)

    def _hard(self, F: Operators, losses: Map, counted: Map) -> Map:
        """Returns 1 where a pixel is hard; the k-th largest loss is read from a sorted row."""
        # Ignored pixels sort behind all others.
        row = F.sort(F.where(counted, losses, -F.ones_like(losses)).reshape((-1,)), is_ascend=False)
        kept = F.ceil(F.sum(counted) * self.least_share)
        kth = F.take(row, F.maximum(kept - 1, 0))
        return counted * F.broadcast_greater_equal(losses, F.minimum(kth, self.limit))


class CascadeLoss(mx.gluon.HybridBlock):
    """The weighted sum of one cross-entropy per output, each at that output's own resolution."""

    def __init__(
        self,
        weights: Sequence[float],
        class_weights: npt.NDArray[np.float32],
        hard_below: float = 0.0,
        least_share: float = 1.0,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.weights = tuple(weights)
        with self.name_scope():
            self.cross_entropy = WeightedCrossEntropy(class_weights, hard_below, least_share)

    def hybrid_forward(self, F: Operators, *maps: Map) -> Map:
        logits, labels = maps[: len(self.weights)], maps[len(self.weights) :]
        terms = [
            weight * self.cross_entropy(output, target)
            for weight, output, target in zip(self.weights, logits, labels, strict=True)
        ]
        return F.add_n(*terms)
