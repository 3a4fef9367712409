"""Plans how an image reaches the model's size and where its pixels lie in the logits.

A plan resizes the image to one canvas a scale (``cv2.INTER_LINEAR``, half-pixel centres) and shows
the network views of it: windows of exactly its input size, as they are and perhaps mirrored.

- ``stretch``: the canvas is the network's size, whatever the aspect.
- ``letterbox``: the largest canvas of the image's own aspect that fits, centred, padding beside it.
- ``tile``: the canvas is the image in its own pixels, under overlapping windows; an axis that is
  shorter than the network's is centred and padded.

Test-time augmentation multiplies the canvas by each scale, and mirrors every view. What then does
not fit into the network's input is tiled, what is smaller is padded, whatever the way to resize.

A canvas that is longer than the network's input is covered by several windows, spread evenly, that
overlap; a shorter one is centred in its window, with padding on both sides. Along one axis a pixel
x0 of an image of length N lies at ``u = (x0 + 0.5) * canvas / N - 0.5`` on the canvas, at
``x = u - start + offset`` in the window's input of length ``model`` (at ``model - 1 - x`` if that
is mirrored), and at ``x * (logits - 1) / (model - 1)`` among the network's logits, whose corners
are aligned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

RESIZES = ("stretch", "letterbox", "tile")
DEFAULT_TILE_OVERLAP = 0.25
MAX_TILE_OVERLAP = 0.5

# ImageNet's mean in RGB, which the networks here subtract: nearly zero once normalised.
PADDING = (124, 116, 104)


@dataclass(frozen=True)
class Size:
    """Height and width in pixels, written HEIGHTxWIDTH."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a size has at least one pixel each way, not {self}")

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads ``"352x480"`` as height 352, width 480.

        Raises:
            ValueError: anything else.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text.strip().lower())
        if match is None:
            raise ValueError(
                f"{text!r} is not a valid size: expected HEIGHTxWIDTH, for example 352x480"
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Augmentation:
    """The scales that an image is looked at in, and whether mirrored (left to right) as well."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def wanted(self) -> bool:
        """Returns whether there is more than the plain image."""
        return self.flip or len(self.scales) > 1


PLAIN = Augmentation()


@dataclass(frozen=True)
class View:
    """One input of the network: a window of a canvas, mirrored or not.

    ``share`` is its part in the mean over scales and mirror images.
    """

    rows: Window
    columns: Window
    flip: bool
    share: float

    @property
    def canvas(self) -> Size:
        """Returns the size that the image is resized to before the window is cut."""
        return Size(self.rows.canvas, self.columns.canvas)

    @property
    def content(self) -> tuple[slice, slice]:
        """Returns the rows and columns of the network's input that are not padding (not
        mirrored)."""
        rows, columns = self.rows, self.columns
        return (
            slice(rows.offset, rows.offset + rows.length),
            slice(columns.offset, columns.offset + columns.length),
        )

    @property
    def whole(self) -> bool:
        """Returns whether the canvas is the network's input, with nothing beside it."""
        return self.rows.whole and self.columns.whole


@dataclass(frozen=True)
class Grid:
    """One canvas under windows, along both axes."""

    rows: Axis
    columns: Axis


@dataclass(frozen=True)
class Plan:
    """The way of one image of size ``original`` to a network whose input is ``model``.

    One grid a scale; each of its windows is a view, or two with ``flip``.
    """

    original: Size
    model: Size
    grids: tuple[Grid, ...]
    flip: bool = False

    @property
    def view_count(self) -> int:
        """Returns how many views there are, without making them."""
        return (1 + self.flip) * sum(grid.rows.count * grid.columns.count for grid in self.grids)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Returns all views from the top of the image to its bottom, so that its rows finish in
        order."""
        sides = (False, True) if self.flip else (False,)
        share = 1.0 / (len(sides) * len(self.grids))
        views = [
            View(rows, columns, side, share)
            for grid in self.grids
            for rows in grid.rows.windows()
            for columns in grid.columns.windows()
            for side in sides
        ]
        return tuple(sorted(views, key=lambda view: view.rows.begin))

    @property
    def only_view(self) -> View:
        """Returns the view of a plan that has one.

        Raises:
            ValueError: there are several.
        """
        if self.view_count != 1:
            raise ValueError(f"{self.original} pixels take {self.view_count} views of {self.model}")
        return self.views[0]


def plan(
    original: Size,
    model: Size,
    resize: str = "stretch",
    *,
    tile_overlap: float = DEFAULT_TILE_OVERLAP,
    augmentation: Augmentation = PLAIN,
) -> Plan:
    """Returns the plan for an image of size ``original`` (after EXIF) and a model of size
    ``model``.

    Args:
        resize: one of :data:`RESIZES`.
        tile_overlap: what neighbouring windows share at least, as a part of their length, 0 to
            :data:`MAX_TILE_OVERLAP`.

    Raises:
        ValueError: another ``resize`` or ``tile_overlap``.
    """
    if resize not in RESIZES:
        raise ValueError(f"unknown resize {resize!r}; the ways are {', '.join(RESIZES)}")
    if not 0.0 <= tile_overlap <= MAX_TILE_OVERLAP:
        raise ValueError(f"tile_overlap is 0 to {MAX_TILE_OVERLAP}, not {tile_overlap}")
    height, width = float(model.height), float(model.width)
    if resize == "letterbox":
        factor = min(height / original.height, width / original.width)
        height, width = factor * original.height, factor * original.width
    elif resize == "tile":
        height, width = float(original.height), float(original.width)
    grids = tuple(
        Grid(
            *(
                Axis(max(1, round(scale * canvas)), length, round(tile_overlap * length))
                for canvas, length in ((height, model.height), (width, model.width))
            )
        )
        for scale in augmentation.scales
    )
    return Plan(original, model, grids, augmentation.flip)


def prepare(image: Pixels, plan: Plan) -> Pixels:
    """Returns the network's input, uint8 ``[H,W,3]``, of an image uint8 ``[H0,W0,3]`` with a single
    view.

    Returns ``image`` itself when nothing is to be done, else a new array.

    Raises:
        ValueError: ``image`` is not of the plan's size, or there are several views.
    """
    original, view = plan.original, plan.only_view
    if image.shape != (original.height, original.width, 3):
        raise ValueError(f"the plan is for {original} RGB pixels, the image is {image.shape}")
    return cut(scale(image, view.canvas), view)


def scale(image: Pixels, canvas: Size) -> Pixels:
    """Resizes ``image``, uint8 ``[H0,W0,3]``, to ``canvas``; returns itself where it has that
    size."""
    if image.shape[:2] == (canvas.height, canvas.width):
        return image
    size = (canvas.width, canvas.height)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def cut(canvas: Pixels, view: View) -> Pixels:
    """Returns the network's input for ``view``, uint8 ``[H,W,3]``, contiguous, padded with PADDING.

    Returns ``canvas`` itself where it is the input.
    """
    if view.whole and not view.flip:
        return canvas
    rows, columns = view.rows, view.columns
    window = canvas[
        rows.start : rows.start + rows.length, columns.start : columns.start + columns.length
    ]
    if window.shape[:2] != (rows.model, columns.model):
        padded = np.empty((rows.model, columns.model, 3), np.uint8)
        padded[:] = PADDING
        padded[view.content] = window
        window = padded
    return np.ascontiguousarray(window[:, ::-1] if view.flip else window)


def source_positions(original: int, model: int, logits: int) -> npt.NDArray[np.float64]:
    """Returns where each of ``original`` pixels along one stretched axis lies among ``logits``
    positions.

    ``model`` is the length of the same axis at the model's input. Returns float64 ``[original]``,
    ascending, within ``[0, logits - 1]``.
    """
    return Window(model, model, 0, model).positions(original, logits)


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
        """Returns whether the canvas is the network's input, with nothing beside it."""
        return self.canvas == self.model

    @property
    def begin(self) -> float:
        """Returns where the window begins, as a part of the canvas, 0 to 1."""
        return self.start / self.canvas

    def positions(self, pixels: int, logits: int, mirrored: bool = False) -> Floats:
        """Returns where each of ``pixels`` along the image's axis lies among ``logits`` positions.

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
        """Returns the first of ``pixels`` along the image's axis that this window shows, and the
        end.

        A window shows what is nearer to its pixels than to others: from half a pixel before its
        first to half a pixel behind its last. The range may be empty where windows are shorter
        than a pixel of the image.
        """
        where = self._canvas_positions(pixels)
        edges = (self.start - 0.5, self.start + self.length - 0.5)
        first, end = np.searchsorted(where, edges)
        return int(first), int(end)

    def taper(self, pixels: int) -> Floats:
        """Returns the window's weight at its :meth:`reach`: 1, falling to 0 over what it shares.

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
        """Returns how many windows it takes."""
        beyond = max(0, self.canvas - self.model)
        return 1 + -(-beyond // (self.model - self.overlap))

    def windows(self) -> tuple[Window, ...]:
        """Returns the windows, in ascending order: together they show every pixel of the canvas."""
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
        """Returns each window's weight at its :meth:`Window.reach`; over all windows they add up to
        1."""
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
