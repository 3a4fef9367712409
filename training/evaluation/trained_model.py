"""A learner's network as ``training/evaluation/scoring.py`` asks for label maps."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from export.pixels import IMAGENET, Pixels
from serving.errors import SegserveError
from serving.geometry import Size, plan, prepare
from serving.image import decode
from serving.restore import labels_from_logits
from training.datasets.folder import MAX_MEGAPIXELS
from training.learner import Learner
from training.transforms import normalize

WARM_RUNS = 2


class TrainedModel:
    """``model(encoded image)`` -> class ids, uint8 ``[H,W]`` of the image's own size.

    The whole image goes through the network at once, resized to the network's ``size`` as the
    server does it. With ``flip`` its mirror image does too, and the softmax is averaged.
    """

    def __init__(
        self, learner: Learner, size: Size, flip: bool = False, pixels: Pixels = IMAGENET
    ) -> None:
        self.learner = learner
        self.pixels = pixels
        self.size = size
        self.flip = flip
        self.seconds: list[float] = []

    def __call__(self, encoded: bytes) -> npt.NDArray[np.uint8]:
        try:
            return self.label(decode(encoded, max_megapixels=MAX_MEGAPIXELS))
        except SegserveError as error:
            raise ValueError(str(error)) from error

    def label(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Class ids of an image uint8 ``[H,W,3]`` RGB."""
        original = Size(*image.shape[:2])
        data = normalize(prepare(image, plan(original, self.size)), self.pixels)
        # The logits are NumPy's, so the device has finished when they are there.
        start = time.perf_counter()
        logits = self.learner.logits(data)
        if self.flip:
            mirrored = self.learner.logits(np.ascontiguousarray(data[:, :, ::-1]))[:, :, ::-1]
            logits = (softmax(logits) + softmax(mirrored)) / 2
        self.seconds.append(time.perf_counter() - start)
        return labels_from_logits(np.ascontiguousarray(logits), self.size, original)

    def percentile_ms(self, percent: float) -> float:
        """Of the network's time an image, copies included, after two warm runs; NaN before."""
        timed = self.seconds[WARM_RUNS:]
        return float(np.percentile(timed, percent)) * 1000 if timed else float("nan")


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over the classes of ``[C,h,w]``; logits of any magnitude."""
    exponents = np.exp(logits - logits.max(0, keepdims=True))
    return np.asarray(exponents / exponents.sum(0, keepdims=True), np.float32)
