"""The network of one file of weights, at whatever sizes are asked for."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from serving.imaging.geometry import Size
from training.evaluation.weights_options import EvaluationOptions, at_size
from training.learner import Learner
from training.train import make_learner

WARM_RUNS = 2
# Of a dataset whose images have many sizes; each holds all weights.
MAX_KEPT = 8


class SizedNetworks:
    """Builds a network for each size, warms it up, and keeps the last few. Not for threads."""

    def __init__(self, options: EvaluationOptions, num_classes: int) -> None:
        self.options = options
        self.num_classes = num_classes
        self._built: OrderedDict[Size, Learner] = OrderedDict()

    def at(self, size: Size) -> Learner:
        """The network for images of ``size``.

        Raises:
            FileNotFoundError: no such weights.
            ValueError: the network cannot have this size, or the weights are another's.
        """
        if size not in self._built:
            learner = make_learner(at_size(self.options, size), self.num_classes)
            learner.read_parameters(self.options.weights)
            for _ in range(WARM_RUNS):
                learner.logits(np.zeros((3, size.height, size.width), np.float32))
            self._built[size] = learner
            if len(self._built) > MAX_KEPT:
                self._built.popitem(last=False)[1].close()
        self._built.move_to_end(size)
        return self._built[size]

    def close(self) -> None:
        """Ends all of them."""
        while self._built:
            self._built.popitem()[1].close()
