"""The boundaries of regions as rings of lattice points: the corners of pixels, not their centres.

Pixel ``(y, x)`` is the square from ``(x, y)`` to ``(x + 1, y + 1)``. A ring runs along pixel edges
with its region on the right as seen on screen (y down), so that an exterior has a positive area
in coordinates and a hole a negative one: RFC 7946's counterclockwise and clockwise. No ring meets
itself: where one would touch itself in a point it is cut in two there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.formats.regions import Regions, find_regions
from serving.imaging.jit import compiled
from serving.palette import LabelMap as Labels
from serving.palette import label_type

Padded = npt.NDArray[np.signedinteger[Any]]
Indices = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]
Selection = npt.NDArray[np.bool_]

# Headings: right, down, left, up.
STEP_X = np.array((1, 0, -1, 0), np.int32)
STEP_Y = np.array((0, 1, 0, -1), np.int32)
# The pixel on the right of an edge that leaves a point with that heading, and the one on its left.
RIGHT_X = np.array((0, -1, -1, 0), np.int32)
RIGHT_Y = np.array((0, 0, -1, -1), np.int32)
LEFT_X = np.array((0, 0, -1, -1), np.int32)
LEFT_Y = np.array((-1, 0, 0, -1), np.int32)

JUNCTION, TOUCH = 1, 2
OUTSIDE = -1


@dataclass(frozen=True, eq=False)
class Rings:
    """Ring k has the points ``first[k]`` to ``first[k + 1]`` and belongs to ``region[k]``.

    ``junction`` is 1 at points where three or more boundaries meet, and at the image's corners.
    """

    x: Indices
    y: Indices
    junction: Flags
    first: Indices
    region: Indices


def trace_rings(labels: Labels, regions: Regions, wanted: Selection, junctions: bool) -> Rings:
    """Returns the rings of the regions for which ``wanted``, bool ``[regions]``, is True.

    Args:
        labels: ``[H,W]``, of which ``regions`` are.
        junctions: keep the junctions that lie on a straight edge too.
    """
    kind = np.int16 if labels.dtype == np.uint8 else np.int32
    padded: Padded = np.full((labels.shape[0] + 2, labels.shape[1] + 2), OUTSIDE, kind)
    padded[1:-1, 1:-1] = labels
    return Rings(
        *_trace(padded, regions.row_first, regions.run_start, regions.run_region, wanted, junctions)
    )


def warm(classes: int = 2) -> None:
    """Compiles the loops of this module, so that no request waits for it."""
    labels = np.eye(2, dtype=label_type(classes))
    regions = find_regions(labels, np.eye(2, dtype=np.uint8))
    trace_rings(labels, regions, np.ones(len(regions.area), np.bool_), junctions=True)


@compiled
def _trace(
    padded: Padded,
    row_first: Indices,
    run_start: Indices,
    run_region: Indices,
    wanted: Selection,
    junctions: bool,
) -> tuple[Indices, Indices, Flags, Indices, Indices]:
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    traced = np.zeros((height, width), np.bool_)  # upper edges of pixels
    place = np.zeros((height + 1, width + 1), np.int32)  # of a point on its path, from 1
    path = np.empty((3, 1024), np.int32)
    rings = np.empty((3, 4096), np.int32)
    ends, owner = np.empty(256, np.int32), np.empty(256, np.int32)
    points = count = 0
    for y in range(height):
        for run in range(row_first[y], row_first[y + 1]):
            if not wanted[run_region[run]]:
                continue
            end = run_start[run + 1] if run + 1 < row_first[y + 1] else width
            for x in range(run_start[run], end):
                if padded[y, x + 1] == padded[y + 1, x + 1] or traced[y, x]:
                    continue
                path, length = _walk(padded, x, y, junctions, traced, path)
                while points + length > rings.shape[1]:
                    rings = _grown(rings)
                # Where a point comes back, the path since then is a ring of its own.
                depth = 0
                for k in range(length):
                    px, py = path[0, k], path[1, k]
                    if path[2, k] & TOUCH:
                        back = place[py, px] - 1
                        if back >= 0:
                            if count + 2 > len(ends):
                                ends, owner = _grown_row(ends), _grown_row(owner)
                            points = _cut(path, back, depth, rings, points, place)
                            ends[count], owner[count] = points, run_region[run]
                            count += 1
                            depth = back
                        place[py, px] = depth + 1
                    path[0, depth], path[1, depth], path[2, depth] = px, py, path[2, k]
                    depth += 1
                if count + 2 > len(ends):
                    ends, owner = _grown_row(ends), _grown_row(owner)
                points = _cut(path, 0, depth, rings, points, place)
                ends[count], owner[count] = points, run_region[run]
                count += 1
    first = np.zeros(count + 1, np.int32)
    first[1:] = ends[:count]
    junction = np.empty(points, np.uint8)
    for k in range(points):
        junction[k] = rings[2, k] & JUNCTION
    return rings[0, :points].copy(), rings[1, :points].copy(), junction, first, owner[:count].copy()


@compiled
def _walk(
    padded: Padded, x: int, y: int, junctions: bool, traced: Selection, path: Indices
) -> tuple[Indices, int]:
    """Walks once around from the point ``x, y``, a corner of the pixel right below it.

    Returns x, y and flags of each corner in ``[3,*]``, in ``path`` where they fit, and their
    number. Notes in ``traced`` the upper edges that it passes.
    """
    label = padded[y + 1, x + 1]
    px, py, heading, length = x, y, 0, 0
    while True:
        if heading == 0:
            traced[py, px] = True
        behind = padded[py + LEFT_Y[heading] + 1, px + LEFT_X[heading] + 1]
        px, py = px + STEP_X[heading], py + STEP_Y[heading]
        right = padded[py + RIGHT_Y[heading] + 1, px + RIGHT_X[heading] + 1]
        left = padded[py + LEFT_Y[heading] + 1, px + LEFT_X[heading] + 1]
        flags, turn = 0, 0
        if right != label:
            # Also where only a corner is left of the region ahead: regions share edges.
            turn = 1
            if left == label:
                flags = JUNCTION | TOUCH
            elif right != left or left != behind or left == OUTSIDE:
                flags = JUNCTION
        elif left == label:
            turn = 3
        elif left != behind:
            flags = JUNCTION
        if turn or (junctions and flags):
            if length == path.shape[1]:
                path = _grown(path)
            path[0, length], path[1, length], path[2, length] = px, py, flags
            length += 1
        heading = (heading + turn) & 3
        if px == x and py == y and heading == 0:
            return path, length


@compiled
def _cut(path: Indices, begin: int, end: int, rings: Indices, points: int, place: Indices) -> int:
    """Moves the end of a path behind the last ring; returns the number of points of all rings."""
    for k in range(begin, end):
        for row in range(3):
            rings[row, points] = path[row, k]
        if path[2, k] & TOUCH:
            place[path[1, k], path[0, k]] = 0
        points += 1
    return points


@compiled
def _grown(table: Indices) -> Indices:
    """Returns the same columns with as many again free ones."""
    grown = np.empty((table.shape[0], 2 * table.shape[1]), np.int32)
    grown[:, : table.shape[1]] = table
    return grown


@compiled
def _grown_row(row: Indices) -> Indices:
    grown = np.empty(2 * len(row), np.int32)
    grown[: len(row)] = row
    return grown
