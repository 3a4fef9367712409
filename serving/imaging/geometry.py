"""How an image reaches the model's size and where its pixels lie in the logits: pure arithmetic.

A plan resizes the image to one canvas a scale (``cv2.INTER_LINEAR``, half-pixel centres) and shows
the network views of it: windows of exactly its input size, as they are and perhaps mirrored.

- ``stretch``: the canvas is the network's size, whatever the aspect.
- ``letterbox``: the largest canvas of the image's own aspect that fits, centred, padding beside it.
- ``tile``: the canvas is the image in its own pixels, under overlapping windows; an axis that is
  shorter than the network's is centred and padded.

Test-time augmentation multiplies the canvas by each scale, and mirrors every view. What then does
not fit into the network's input is tiled, what is smaller is padded, whatever the way to resize.
Where a pixel lies in a view: :mod:`serving.imaging.windows`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from serving.imaging.windows import Axis, Window

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
        """Whether there is more than the plain image."""
        return self.flip or len(self.scales) > 1


PLAIN = Augmentation()


@dataclass(frozen=True)
class View:
    """What the network is shown at once: a window of a canvas, mirrored or not.

    ``share`` is its part in the mean over scales and mirror images.
    """

    rows: Window
    columns: Window
    flip: bool
    share: float

    @property
    def canvas(self) -> Size:
        """The size that the image is resized to before the window is cut."""
        return Size(self.rows.canvas, self.columns.canvas)

    @property
    def content(self) -> tuple[slice, slice]:
        """Rows and columns of the network's input that are no padding; of an unmirrored view."""
        rows, columns = self.rows, self.columns
        return (
            slice(rows.offset, rows.offset + rows.length),
            slice(columns.offset, columns.offset + columns.length),
        )

    @property
    def whole(self) -> bool:
        """The canvas is the network's input, with nothing beside it."""
        return self.rows.whole and self.columns.whole


@dataclass(frozen=True)
class Grid:
    """One canvas under windows, along both axes."""

    rows: Axis
    columns: Axis


@dataclass(frozen=True)
class Plan:
    """How one image of size ``original`` is brought to a network whose input is ``model``.

    One grid a scale; each of its windows is a view, or two with ``flip``.
    """

    original: Size
    model: Size
    grids: tuple[Grid, ...]
    flip: bool = False

    @property
    def view_count(self) -> int:
        """How many views there are, without making them."""
        return (1 + self.flip) * sum(grid.rows.count * grid.columns.count for grid in self.grids)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """All views from the top of the image to its bottom, so that its rows finish in order."""
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
        """The view of a plan that has one.

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
    """The plan for an image of size ``original`` (after EXIF) and a model of size ``model``.

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
    """The network's input, uint8 ``[H,W,3]``, of an image uint8 ``[H0,W0,3]`` with a single view.

    Returns ``image`` itself when nothing is to be done, else a new array.

    Raises:
        ValueError: ``image`` is not of the plan's size, or there are several views.
    """
    original, view = plan.original, plan.only_view
    if image.shape != (original.height, original.width, 3):
        raise ValueError(f"the plan is for {original} RGB pixels, the image is {image.shape}")
    return cut(scale(image, view.canvas), view)


def scale(image: Pixels, canvas: Size) -> Pixels:
    """``image``, uint8 ``[H0,W0,3]``, in the size of ``canvas``; itself where it has that size."""
    if image.shape[:2] == (canvas.height, canvas.width):
        return image
    size = (canvas.width, canvas.height)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def cut(canvas: Pixels, view: View) -> Pixels:
    """The network's input for ``view``, uint8 ``[H,W,3]``, contiguous, padded with PADDING.

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
    """Where each of ``original`` pixels along one stretched axis lies among ``logits`` positions.

    ``model`` is the length of the same axis at the model's input. Returns float64 ``[original]``,
    ascending, within ``[0, logits - 1]``.
    """
    return Window(model, model, 0, model).positions(original, logits)
