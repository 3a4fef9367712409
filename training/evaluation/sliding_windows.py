"""Sliding windows at several scales, their probabilities averaged: GluonCV's protocol.

At each scale the image's long edge has ``base_size`` times the scale pixels. What fits into the
crop is padded to it and seen once; else windows of the crop's size follow each other at two thirds
of its length, the last one padded. Where windows overlap their mean counts; every scale counts the
same, read at the image's own pixels.

Two things differ from GluonCV's ``MultiEvalModel``. It adds ``exp(logits + mirrored logits)``,
which is not a probability and overflows for confident networks: here each view's softmax is
averaged, as
PSPNet's own evaluation does it. And scales are read back with half-pixel centres, as the images
were made, where GluonCV aligns corners.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from export.symbols.networks import Pixels
from serving.imaging.blending import add_view
from serving.imaging.geometry import Size, scale
from serving.imaging.jit import read_only
from training.transforms import normalize

STRIDE = 2.0 / 3.0
GLUONCV_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

Maps: TypeAlias = npt.NDArray[np.float32]
Network: TypeAlias = Callable[[Maps], Maps]


@dataclass(frozen=True)
class SlidingWindows:
    """A way to show an image: crop size in pixels, scales of ``base_size``, mirrored or not.

    ``pixels`` is what the network sees of them.
    """

    crop: Size
    base_size: int
    pixels: Pixels
    scales: tuple[float, ...] = GLUONCV_SCALES
    flip: bool = True

    def probabilities(self, image: npt.NDArray[np.uint8], network: Network) -> Maps:
        """Returns the mean over all views, float32 ``[C,H0,W0]``, of an image uint8 ``[H0,W0,3]``
        RGB.

        Args:
            network: float32 ``[3,H,W]`` of the crop's size, normalised, to logits ``[C,h,w]``.
        """
        original = Size(*image.shape[:2])
        total: Maps | None = None
        for factor in self.scales:
            canvas = scale(image, scaled_size(original, self.base_size * factor))
            mean = resize_maps(self._cover(canvas, network), original)
            total = mean if total is None else total + mean
        assert total is not None
        return np.asarray(total / np.float32(len(self.scales)), np.float32)

    def _cover(self, canvas: npt.NDArray[np.uint8], network: Network) -> Maps:
        """Returns the mean over the windows of one scale, ``[C,height,width]`` of the canvas."""
        height, width = canvas.shape[:2]
        tops = window_starts(height, self.crop.height)
        lefts = window_starts(width, self.crop.width)
        # Black, as GluonCV pads; up to the end of the last window.
        bottom = tops[-1] + self.crop.height - height
        right = lefts[-1] + self.crop.width - width
        data = normalize(np.pad(canvas, ((0, bottom), (0, right), (0, 0))), self.pixels)
        total: Maps | None = None
        counts = np.zeros((height, width), np.float32)
        for top in tops:
            for left in lefts:
                window = data[:, top : top + self.crop.height, left : left + self.crop.width]
                seen = self._see(np.ascontiguousarray(window), network)
                if total is None:
                    total = np.zeros((len(seen), height, width), np.float32)
                place = slice(top, top + self.crop.height), slice(left, left + self.crop.width)
                counts[place] += 1.0
                part = total[:, place[0], place[1]]
                part += seen[:, : part.shape[1], : part.shape[2]]
        assert total is not None
        return np.asarray(total / counts, np.float32)

    def _see(self, window: Maps, network: Network) -> Maps:
        """Returns probabilities ``[C,H,W]`` of a window of the crop's size."""
        seen = softmax(enlarge(network(window), self.crop))
        if self.flip:
            mirrored = network(np.ascontiguousarray(window[:, :, ::-1]))
            seen += softmax(enlarge(mirrored, self.crop))[:, :, ::-1]
            seen /= 2.0
        return seen


def scaled_size(original: Size, long_edge: float) -> Size:
    """Returns the size with the long edge rounded up and the short one in proportion."""
    long = math.ceil(long_edge)
    ratio = long / max(original.height, original.width)
    if original.height > original.width:
        return Size(long, max(1, int(original.width * ratio + 0.5)))
    return Size(max(1, int(original.height * ratio + 0.5)), long)


def window_starts(length: int, window: int) -> tuple[int, ...]:
    """Returns where windows start that cover ``length`` pixels; the last may reach beyond them."""
    stride = max(1, int(window * STRIDE))
    beyond = max(0, length - window)
    return tuple(k * stride for k in range(math.ceil(beyond / stride) + 1))


def softmax(logits: Maps) -> Maps:
    """Returns the softmax over the classes of ``[C,h,w]``; logits may have any magnitude."""
    exponents = np.exp(logits - logits.max(0, keepdims=True))
    return np.asarray(exponents / exponents.sum(0, keepdims=True), np.float32)


def enlarge(maps: Maps, size: Size) -> Maps:
    """Resizes ``[C,h,w]`` bilinearly, with aligned corners, to ``size``, as the networks do at
    their end.
    """
    if maps.shape[1:] == (size.height, size.width):
        return maps
    (y_cell, y_fraction), (x_cell, x_fraction) = (
        _aligned(length, have)
        for length, have in zip((size.height, size.width), maps.shape[1:], strict=True)
    )
    one = np.ones(max(size.height, size.width), np.float32)
    out = np.zeros((len(maps), size.height, size.width), np.float32)
    add_view(
        read_only(maps), y_cell, y_fraction, one[: size.height],
        x_cell, x_fraction, one[: size.width], out, 0, 0,
    )  # fmt: skip
    return out


def resize_maps(maps: Maps, size: Size) -> Maps:
    """Resizes ``[C,h,w]`` bilinearly, with half-pixel centres, to ``size``."""
    if maps.shape[1:] == (size.height, size.width):
        return maps
    # One by one: OpenCV takes few channels, and wants them last.
    target = size.width, size.height
    return np.stack([cv2.resize(one, target, interpolation=cv2.INTER_LINEAR) for one in maps])


def _aligned(length: int, have: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Returns cells and fractions of ``length`` positions, evenly over ``have``."""
    positions = np.linspace(0.0, have - 1.0, length)
    cells = np.minimum(positions.astype(np.int32), max(have - 2, 0))
    return cells, (positions - cells).astype(np.float32)
