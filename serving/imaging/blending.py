"""Views of one image blended to one label map: the weighted mean of their logits, then the argmax.

Logits, not probabilities, are averaged (so one view's doubt does not outvote another's certainty);
every scale and mirror image counts the same. Windows that overlap fade into one another.

Nothing of the image's size times the classes is ever held. What a view has answered waits at the
network's own resolution until every view that shows the same rows is there; the rows are then
interpolated and added up, block after block of a size that a processor's cache holds, become labels
and are forgotten. So memory holds about two rows of windows (at a sixteenth of their pixels, where
logits are a quarter of the input in height and width) and a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.imaging import restore
from serving.imaging.geometry import Axis, Plan, Size, Window, plan
from serving.imaging.interpolation import (
    Confidence,
    Fractions,
    Indices,
    Labels,
    Logits,
    fill_largest,
)
from serving.imaging.jit import compiled, read_only
from serving.palette import label_type

# What is added up at once: rows enough to share the reading of logits, bytes that a cache holds.
BLOCK_ROWS = 16
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """One axis of a view: how the image's pixels ``first`` to ``end`` read the view's logits.

    Pixel ``first + k`` lies in ``cell[k]``, between two positions of the logits, at ``fraction[k]``
    of the way across, and counts ``weight[k]``.
    """

    first: int
    end: int
    cell: Indices
    fraction: Fractions
    weight: Fractions

    def within(self, pixels: range) -> Reading:
        """Returns the part that reads these pixels; empty where it reads none of them."""
        first, end = max(self.first, pixels.start), min(self.end, pixels.stop)
        part = slice(first - self.first, max(first, end) - self.first)
        return Reading(first, end, self.cell[part], self.fraction[part], self.weight[part])


class Blender:
    """Takes the logits of a plan's views in any order; makes labels from the top downwards.

    One call at a time, on any thread.

    Args:
        target: the size of the label map, of the whole image.
        logits: the size of the network's logits.
        confidence: also keep the largest softmax of the blended logits.
        classes: of the logits.
    """

    def __init__(
        self, plan: Plan, target: Size, logits: Size, confidence: bool = False, classes: int = 2
    ) -> None:
        shape = (target.height, target.width)
        self.labels: Labels = np.empty(shape, label_type(classes))
        self.confidence: Confidence | None = np.empty(shape, np.uint8) if confidence else None
        self._views = plan.views
        self._rows = _read_rows(plan, target.height, logits.height)
        self._columns = _read_columns(plan, target.width, logits.width)
        self._waiting = set(range(len(self._views)))
        self._held: dict[int, Logits] = {}
        self._finished = 0

    @property
    def held_bytes(self) -> int:
        """Logits that wait for others."""
        return sum(logits.nbytes for logits in self._held.values())

    @property
    def complete_rows(self) -> int:
        """Returns how many rows of the label map, from its top, no missing view shows."""
        firsts = (self._rows[self._views[k].rows].first for k in self._waiting)
        return min(firsts, default=len(self.labels))

    @property
    def can_advance(self) -> bool:
        """Returns whether rows are complete that are not labels yet."""
        return self.complete_rows > self._finished

    def add(self, index: int, logits: Logits) -> None:
        """Takes view ``index``'s logits, float32 ``[C,h,w]``; keeps them, not a copy."""
        self._waiting.remove(index)
        self._held[index] = logits

    def advance(self) -> None:
        """Turns the complete rows into labels, and forgets what no later row needs."""
        begin, end = self._finished, self.complete_rows
        held = sorted(self._held.items())
        if begin < end:
            classes = len(held[0][1])
            width = max(64, BLOCK_BYTES // (4 * classes * BLOCK_ROWS))
            for top in range(begin, end, BLOCK_ROWS):
                rows = range(top, min(top + BLOCK_ROWS, end))
                for left in range(0, self.labels.shape[1], width):
                    columns = range(left, min(left + width, self.labels.shape[1]))
                    self._blend(rows, columns, classes, held)
        self._finished = end
        for index, _ in held:
            if self._rows[self._views[index].rows].end <= end:
                del self._held[index]

    def _blend(
        self, rows: range, columns: range, classes: int, held: list[tuple[int, Logits]]
    ) -> None:
        block = np.zeros((classes, len(rows), len(columns)), np.float32)
        for index, logits in held:
            view = self._views[index]
            down = self._rows[view.rows].within(rows)
            across = self._columns[view.columns, view.flip].within(columns)
            if len(down.cell) and len(across.cell):
                add_view(
                    read_only(logits),
                    down.cell,
                    down.fraction,
                    down.weight * np.float32(view.share),
                    across.cell,
                    across.fraction,
                    across.weight,
                    block,
                    down.first - rows.start,
                    across.first - columns.start,
                )
        place = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        if self.confidence is None:
            fill_largest(block, self.labels, rows.start, columns.start)
        else:
            # The block is logits with a position for each pixel.
            size = Size(len(rows), len(columns))
            labels, confidence = restore.labels_and_confidence(block, size, size)
            self.labels[place], self.confidence[place] = labels, confidence


def warm(classes: int = 2) -> None:
    """Compiles the loop of this module (once), so that no request waits for it."""
    size = Size(3, 3)
    for confidence in (False, True):
        blender = Blender(plan(size, size), size, Size(2, 2), confidence, classes)
        blender.add(0, np.zeros((classes, 2, 2), np.float32))
        blender.advance()


def _read_rows(plan: Plan, pixels: int, logits: int) -> dict[Window, Reading]:
    return {
        window: reading
        for grid in plan.grids
        for window, reading in _read_axis(grid.rows, pixels, logits, False)
    }


def _read_columns(plan: Plan, pixels: int, logits: int) -> dict[tuple[Window, bool], Reading]:
    return {
        (window, mirrored): reading
        for grid in plan.grids
        for mirrored in ({False, plan.flip})
        for window, reading in _read_axis(grid.columns, pixels, logits, mirrored)
    }


def _read_axis(
    axis: Axis, pixels: int, logits: int, mirrored: bool
) -> list[tuple[Window, Reading]]:
    readings = []
    for window, weight in zip(axis.windows(), axis.weights(pixels), strict=True):
        first, end = window.reach(pixels)
        positions = window.positions(pixels, logits, mirrored)[first:end]
        cell = np.minimum(positions.astype(np.int32), max(logits - 2, 0))
        fraction = (positions - cell).astype(np.float32)
        readings.append((window, Reading(first, end, cell, fraction, weight)))
    return readings


@compiled
def add_view(
    logits: Logits,
    y_cell: Indices,
    y_fraction: Fractions,
    y_weight: Fractions,
    x_cell: Indices,
    x_fraction: Fractions,
    x_weight: Fractions,
    total: npt.NDArray[np.float32],
    top: int,
    left: int,
) -> None:
    """Adds interpolated logits, times their weights, to ``total``, float32 ``[C,rows,columns]``.

    The first pixel goes to row ``top`` and column ``left``.
    """
    classes, height, _ = logits.shape
    upper = np.empty(len(x_cell), np.float32)
    lower = np.empty(len(x_cell), np.float32)
    for c in range(classes):
        row_of_upper = -2
        for y in range(len(y_cell)):
            above = y_cell[y]
            if above != row_of_upper:
                if above == row_of_upper + 1:
                    upper, lower = lower, upper
                else:
                    _read_row(logits[c, above], x_cell, x_fraction, x_weight, upper)
                below = logits[c, min(above + 1, height - 1)]
                _read_row(below, x_cell, x_fraction, x_weight, lower)
                row_of_upper = above
            fraction, weight = y_fraction[y], y_weight[y]
            row = total[c, top + y, left : left + len(upper)]
            for x in range(len(upper)):
                row[x] += weight * (upper[x] + fraction * (lower[x] - upper[x]))


@compiled
def _read_row(
    row: Fractions, x_cell: Indices, x_fraction: Fractions, x_weight: Fractions, out: Fractions
) -> None:
    """Writes a row of logits, interpolated across, times the weights."""
    last = len(row) - 1
    for x in range(len(x_cell)):
        left = row[x_cell[x]]
        out[x] = x_weight[x] * (left + x_fraction[x] * (row[min(x_cell[x] + 1, last)] - left))
