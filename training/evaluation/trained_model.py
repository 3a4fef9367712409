"""A file of weights as a model: image in, classes out, at whatever sizes are needed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Protocol

import numpy as np
import numpy.typing as npt

from export.symbols.networks import Pixels
from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import labels_from_logits
from training.evaluation.options import EvaluationOptions, at_size
from training.evaluation.sliding_windows import SlidingWindows, softmax
from training.trainers import Learner, make_learner
from training.transforms import normalize

# Every network can have a multiple of it.
STEP = 32

Logits = npt.NDArray[np.float32]


class NetworkOfSize(Protocol):
    """What a model needs of :class:`SizedNetworks`."""

    def at(self, size: Size) -> Learner: ...


class TrainedModel:
    """A model whose ``label(image)`` returns class ids, uint8 ``[H,W]`` of the image's own size.

    With ``windows`` the network sees those, of the crop's size. Else it sees the whole image at
    once, resized as the server does it: to ``size``, or without one to the multiple of 32 next to
    the image's own; with ``flip`` its mirror image too, and the softmax is averaged.

    Threads may share it: the network answers one at a time.

    Attributes:
        seconds: spent in the network, for each image so far.
    """

    def __init__(
        self,
        networks: NetworkOfSize,
        pixels: Pixels,
        size: Size | None = None,
        flip: bool = False,
        windows: SlidingWindows | None = None,
    ) -> None:
        self.networks = networks
        self.pixels = pixels
        self.size = size
        self.flip = flip
        self.windows = windows
        self.seconds: list[float] = []
        self._turn = threading.Lock()

    def label(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns the class ids of an image uint8 ``[H,W,3]`` RGB."""
        if self.windows is not None:
            return self._label_windows(image, self.windows)
        original = Size(*image.shape[:2])
        size = self.size or own_size(original)
        data = normalize(prepare(image, plan(original, size)), self.pixels)
        views = [data, np.ascontiguousarray(data[:, :, ::-1])] if self.flip else [data]
        logits = self._infer(size, views)
        if self.flip:
            logits = [(softmax(logits[0]) + softmax(logits[1])[:, :, ::-1]) / 2]
        return labels_from_logits(np.ascontiguousarray(logits[0]), size, original)

    def _label_windows(
        self, image: npt.NDArray[np.uint8], windows: SlidingWindows
    ) -> npt.NDArray[np.uint8]:
        spent = 0.0

        def see(window: Logits) -> Logits:
            nonlocal spent
            with self._turn:
                learner = self.networks.at(windows.crop)
                start = time.perf_counter()
                logits = learner.logits(window)
                spent += time.perf_counter() - start
            return logits

        probabilities = windows.probabilities(image, see)
        self.seconds.append(spent)
        return np.asarray(probabilities.argmax(0), np.uint8)

    def _infer(self, size: Size, views: list[Logits]) -> list[Logits]:
        with self._turn:
            learner = self.networks.at(size)
            # The logits are NumPy's, so the device has finished when they are there.
            start = time.perf_counter()
            logits = [learner.logits(view) for view in views]
            self.seconds.append(time.perf_counter() - start)
        return logits


def own_size(image: Size) -> Size:
    """Returns the size of ``image``, each edge rounded to a multiple of 32."""
    return Size(*(max(STEP, round(edge / STEP) * STEP) for edge in (image.height, image.width)))


WARM_RUNS = 2
# Of a dataset whose images have many sizes; each holds all weights.
MAX_KEPT = 8


class SizedNetworks:
    """A cache of one network for each size, warmed up; it keeps the last few. Not thread-safe."""

    def __init__(self, options: EvaluationOptions, num_classes: int) -> None:
        self.options = options
        self.num_classes = num_classes
        self._built: OrderedDict[Size, Learner] = OrderedDict()

    def at(self, size: Size) -> Learner:
        """Returns the network for images of ``size``.

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
        """Closes all networks."""
        while self._built:
            self._built.popitem()[1].close()
