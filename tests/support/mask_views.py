"""Label maps to write forms of."""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.formats.label_map import MaskView
from serving.palette import load_labels

CITYS = load_labels("citys")


def blob_labels(
    height: int, width: int, classes: int, seed: int, smoothness: float
) -> npt.NDArray[np.uint8]:
    """Regions of all shapes, uint8 ``[H,W]``; 0 gives noise, more gives broader ones."""
    noise = np.random.default_rng(seed).standard_normal((classes, height, width), np.float32)
    if smoothness > 0:
        noise = np.stack([cv2.GaussianBlur(layer, (0, 0), smoothness) for layer in noise])
    return np.asarray(noise.argmax(axis=0), np.uint8)


def citys_view(labels: npt.NDArray[np.uint8], seed: int = 0) -> MaskView:
    """``labels`` with Cityscapes' names, a photo of noise and a confidence of noise."""
    rng = np.random.default_rng(seed)
    return MaskView(
        labels,
        CITYS.names,
        CITYS.colors,
        image=rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8),
        confidence=rng.integers(0, 256, labels.shape, dtype=np.uint8),
    )


def opened(body: bytes) -> Image.Image:
    """A picture, decoded by Pillow."""
    image = Image.open(io.BytesIO(body))
    image.load()
    return image
