"""Weighted cross-entropy in PyTorch, as in ``gluon_losses``; optionally over hard pixels only.

Shrivastava, Gupta, Girshick: "Training Region-based Object Detectors with Online Hard Example
Mining", arXiv 1604.03540; by pixels as in Wu et al., arXiv 1611.10080.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from export.datasets import IGNORE_LABEL

# Divides in place of a weight of zero, where every pixel is ignored: the loss is then 0.
LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class PixelLoss:
    """The sum of ``-log softmax(logits)[label] * class_weights[label]`` over the pixels that count.

    Ignored pixels (255) do not. With ``hard_below`` P > 0 only those do whose own class has a
    probability below P, but at least the hardest ``least_share`` of them.
    """

    class_weights: Tensor
    hard_below: float = 0.0
    least_share: float = 1.0

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sum and the weight behind it, of logits ``[N,C,h,w]`` and labels int64
        ``[N,h,w]``.
        """
        if not self.hard_below:
            summed = functional.cross_entropy(
                logits, labels, self.class_weights, ignore_index=IGNORE_LABEL, reduction="sum"
            )
            return summed, self.weight_of(labels)
        losses = functional.cross_entropy(
            logits, labels, ignore_index=IGNORE_LABEL, reduction="none"
        )
        counted = labels != IGNORE_LABEL
        hard = counted & (losses.detach() >= self._least_loss(losses.detach()[counted]))
        weights = self.class_weights[labels.clamp_max(len(self.class_weights) - 1)] * hard
        return (losses * weights).sum(), weights.sum()

    def weight_of(self, labels: Tensor) -> Tensor:
        """Returns the summed weight of all pixels that are not ignored."""
        return self.class_weights[labels[labels != IGNORE_LABEL]].sum()

    def _least_loss(self, losses: Tensor) -> Tensor:
        limit = losses.new_tensor(-math.log(self.hard_below))
        if not losses.numel():
            return limit
        kept = math.ceil(losses.numel() * self.least_share)
        return torch.minimum(limit, losses.topk(kept).values[-1])
