"""One axis of an image, covered by windows of the network's length: pure arithmetic.

An image is resized to a *canvas* (half-pixel centres) and the network sees *windows* of it. A
canvas that is longer than the window is covered by several, spread evenly, that overlap; a shorter
one is centred in its window, with padding on both sides. Along one axis a pixel x0 of an image of
length N lies at ``u = (x0 + 0.5) * canvas / N - 0.5`` on the canvas, at ``x = u - start + offset``
in the window's input of length ``model`` (at ``model - 1 - x`` if that is mirrored), and at
``x * (logits - 1) / (model - 1)`` among the network's logits, whose corners are aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Canvas pixels ``start`` to ``start + length``, at ``offset`` of an input of ``model`` pixels.

    ``rise`` and ``fall`` are how many of them the window before and the one after show too.
    """

    canvas: int
    model: int
    start: int
    length: int
    offset: int = 0
    rise: int = 0
    fall: int = 0

    @property
    def whole(self) -> bool:
        """The canvas is the network's input, with nothing beside it."""
        return self.canvas == self.model

    @property
    def begin(self) -> float:
        """Where the window begins, as a part of the canvas, 0 to 1."""
        return self.start / self.canvas

    def positions(self, pixels: int, logits: int, mirrored: bool = False) -> Floats:
        """Where each of ``pixels`` along the image's axis lies among ``logits`` positions.

        Returns float64 ``[pixels]`` within ``[0, logits - 1]``; a pixel outside of the window
        reads the window's nearest.
        """
        if logits == 1 or self.model == 1:
            return np.zeros(pixels, np.float64)
        inside = np.clip(self._canvas_positions(pixels) - self.start, 0.0, self.length - 1.0)
        inside += self.offset
        if mirrored:
            inside = self.model - 1 - inside
        return np.clip(inside * (logits - 1) / (self.model - 1), 0.0, logits - 1.0)

    def reach(self, pixels: int) -> tuple[int, int]:
        """The first of ``pixels`` along the image's axis that this window shows, and the end.

        A window shows what is nearer to its pixels than to others: from half a pixel before its
        first to half a pixel behind its last. The range may be empty where windows are shorter
        than a pixel of the image.
        """
        where = self._canvas_positions(pixels)
        edges = (self.start - 0.5, self.start + self.length - 0.5)
        first, end = np.searchsorted(where, edges)
        return int(first), int(end)

    def taper(self, pixels: int) -> Floats:
        """The window's weight at its :meth:`reach`: 1, falling to 0 over what it shares.

        Squared sines, so that two windows' weights add up to 1.
        """
        first, end = self.reach(pixels)
        where = self._canvas_positions(pixels)[first:end] - (self.start - 0.5)
        weight = np.ones(end - first, np.float64)
        for shared, distance in ((self.rise, where), (self.fall, self.length - where)):
            if shared:
                weight *= np.sin(np.pi / 2 * np.clip(distance / shared, 0.0, 1.0)) ** 2
        return weight

    def _canvas_positions(self, pixels: int) -> Floats:
        centres = (np.arange(pixels, dtype=np.float64) + 0.5) * self.canvas / pixels - 0.5
        return np.clip(centres, 0.0, self.canvas - 1.0)


@dataclass(frozen=True)
class Axis:
    """A canvas of ``canvas`` pixels under windows of ``model``, at least ``overlap`` shared."""

    canvas: int
    model: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.canvas < 1 or self.model < 1 or not 0 <= self.overlap < self.model:
            raise ValueError(f"windows overlap by less than their length, not {self}")

    @property
    def count(self) -> int:
        """How many windows it takes."""
        beyond = max(0, self.canvas - self.model)
        return 1 + -(-beyond // (self.model - self.overlap))

    def windows(self) -> tuple[Window, ...]:
        """The windows, in ascending order: together they show every pixel of the canvas."""
        count, beyond = self.count, self.canvas - self.model
        if count == 1:
            length = min(self.canvas, self.model)
            return (Window(self.canvas, self.model, 0, length, (self.model - length) // 2),)
        starts = [k * beyond // (count - 1) for k in range(count)]
        shared = [a + self.model - b for a, b in pairwise(starts)]
        return tuple(
            Window(self.canvas, self.model, start, self.model, 0, rise, fall)
            for start, rise, fall in zip(starts, [0, *shared], [*shared, 0], strict=True)
        )

    def weights(self, pixels: int) -> tuple[npt.NDArray[np.float32], ...]:
        """Each window's weight at its :meth:`Window.reach`; over all windows they add up to 1."""
        windows = self.windows()
        total = np.zeros(pixels, np.float64)
        tapers = [window.taper(pixels) for window in windows]
        for window, taper in zip(windows, tapers, strict=True):
            first, end = window.reach(pixels)
            total[first:end] += taper
        return tuple(
            (taper / total[slice(*window.reach(pixels))]).astype(np.float32)
            for window, taper in zip(windows, tapers, strict=True)
        )
