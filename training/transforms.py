"""Augmentation and batching of (image, label) pairs, NumPy and OpenCV, shared by every trainer.

Images are resized linearly, by the server's code, labels by nearest neighbour; what padding adds is
ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from export.datasets import IGNORE_LABEL, Sample
from export.symbols.networks import Pixels
from training.datasets.files import resize_pair


@dataclass(frozen=True)
class Augmentation:
    """A random augmentation of a training pair; sizes in pixels.

    ``base_size`` is the long edge before the random scale of ``scale_range``, unless ``short_size``
    gives the short edge; ``aspect`` is how far the scales of the two axes, drawn apart, may differ
    (0: they are one); ``rotation`` is the largest angle in degrees; ``class_crops`` the share of
    crops that lie around a pixel of a class drawn evenly from those in the image, so that small
    classes are seen more often.
    """

    height: int
    width: int
    base_size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    blur_probability: float = 0.5
    color_jitter: float = 0.0
    rotation: float = 0.0
    class_crops: float = 0.0
    short_size: int = 0
    aspect: float = 0.0

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        image, label = sample
        if random.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        image, label = self._scale(image, label, random)
        if self.rotation:
            image, label = rotate(image, label, random.uniform(-self.rotation, self.rotation))
        image, label = self._crop(image, label, random)
        if random.random() < self.blur_probability:
            image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.05, 1.0))
        if self.color_jitter:
            image = jitter_color(image, self.color_jitter, random)
        return np.ascontiguousarray(image), np.ascontiguousarray(label)

    def _scale(
        self,
        image: npt.NDArray[np.uint8],
        label: npt.NDArray[np.uint8],
        random: np.random.Generator,
    ) -> Sample:
        edges = image.shape[:2]
        whole = self.short_size / min(edges) if self.short_size else self.base_size / max(edges)
        rows, columns = self._draw_scales(random)
        height, width = (
            max(1, round(edge * whole * scale))
            for edge, scale in zip(edges, (rows, columns), strict=True)
        )
        return resize_pair(image, label, height, width)

    def _draw_scales(self, random: np.random.Generator) -> tuple[float, float]:
        """Returns the scales of rows and columns, even in the logarithm: as many halvings as
        doublings.
        """
        low, high = np.log(self.scale_range)
        scale = float(np.exp(random.uniform(low, high)))
        if not self.aspect:
            return scale, scale
        # The other axis, of the scales that are near enough.
        room = np.log1p(self.aspect)
        near = max(low, np.log(scale) - room), min(high, np.log(scale) + room)
        return scale, float(np.exp(random.uniform(*near)))

    def _crop(
        self,
        image: npt.NDArray[np.uint8],
        label: npt.NDArray[np.uint8],
        random: np.random.Generator,
    ) -> Sample:
        bottom = max(0, self.height - image.shape[0])
        right = max(0, self.width - image.shape[1])
        if bottom or right:
            border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
            image = cv2.copyMakeBorder(image, *border, value=(0, 0, 0))
            label = cv2.copyMakeBorder(label, *border, value=(IGNORE_LABEL,))
        rows, columns = image.shape[0] - self.height + 1, image.shape[1] - self.width + 1
        if self.class_crops and random.random() < self.class_crops:
            row, column = draw_class_pixel(label, random)
            top = int(np.clip(row - random.integers(0, self.height), 0, rows - 1))
            left = int(np.clip(column - random.integers(0, self.width), 0, columns - 1))
        else:
            top, left = int(random.integers(0, rows)), int(random.integers(0, columns))
        window = slice(top, top + self.height), slice(left, left + self.width)
        return image[window], label[window]


def draw_class_pixel(label: npt.NDArray[np.uint8], random: np.random.Generator) -> tuple[int, int]:
    """Returns (row, column) of a random pixel of a class that is drawn evenly from those in the
    map.
    """
    present = np.flatnonzero(np.bincount(label.reshape(-1), minlength=256)[:IGNORE_LABEL])
    if not present.size:
        return int(random.integers(0, label.shape[0])), int(random.integers(0, label.shape[1]))
    pixels = np.flatnonzero(label.reshape(-1) == random.choice(present))
    row, column = divmod(int(random.choice(pixels)), label.shape[1])
    return row, column


def rotate(image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], degrees: float) -> Sample:
    """Rotates both around the centre; corners from outside the image are black and ignored."""
    height, width = label.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(
        np.ascontiguousarray(image), turn, (width, height), flags=cv2.INTER_LINEAR
    )
    classes = cv2.warpAffine(
        np.ascontiguousarray(label), turn, (width, height),
        flags=cv2.INTER_NEAREST, borderValue=(IGNORE_LABEL,),
    )  # fmt: skip
    return np.asarray(turned, np.uint8), np.asarray(classes, np.uint8)


def jitter_color(
    image: npt.NDArray[np.uint8], strength: float, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Applies random gain to each channel, contrast and brightness, each within +-``strength``."""
    gain = 1.0 + random.uniform(-strength, strength) + random.uniform(-0.3, 0.3, 3) * strength
    offset = 128.0 * random.uniform(-strength, strength)
    ramp = np.arange(256, dtype=np.float64)[:, None]
    table = np.clip((ramp - 128.0) * gain + 128.0 + offset, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table[None]), np.uint8)


def normalize(image: npt.NDArray[np.uint8], pixels: Pixels) -> npt.NDArray[np.float32]:
    """Returns uint8 ``[H,W,3]`` RGB as the network sees it, float32 ``[3,H,W]``; export folds this
    in.
    """
    mean, std = (np.array(values, np.float32) for values in (pixels.mean, pixels.std))
    scaled = (image.astype(np.float32) / 255.0 - mean) / std
    ordered = scaled[..., ::-1] if pixels.bgr else scaled
    return np.ascontiguousarray(ordered.transpose(2, 0, 1), np.float32)


def subsample_labels(
    labels: npt.NDArray[np.uint8], height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Returns ``[N,height,width]`` of ``[N,H,W]``: the label under each point of an aligned-corners
    grid.

    A map of logits at lower resolution is later enlarged with aligned corners, so its point i
    stands for pixel ``i*(H-1)/(height-1)``; interpolating ids would mix classes.
    """
    rows = np.rint(np.linspace(0, labels.shape[1] - 1, height)).astype(np.intp)
    columns = np.rint(np.linspace(0, labels.shape[2] - 1, width)).astype(np.intp)
    return labels[:, rows[:, None], columns[None, :]]
