"""Fewer points on the rings of a label map, without tearing it.

Rings are cut at junctions into arcs that two regions share, and both sides drop the same points
of an arc (Ramer 1972; Douglas and Peucker 1973). A chord is only taken where no other point of any
ring lies between it and the points that it replaces (de Berg, van Kreveld, Schirra 1998). So the
dropped points are within the tolerance of their chord, neighbours share their boundary without gaps
or overlaps, and no ring crosses itself or another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.formats.rings import Flags, Indices, Rings
from serving.imaging.jit import compiled

Bools = npt.NDArray[np.bool_]

# Points are looked up in squares of so many pixels.
SQUARE = 16


def simplify(rings: Rings, tolerance: float) -> Rings:
    """Drops the points of ``rings``, traced with their junctions, that lie within ``tolerance``
    pixels.

    A ring of which fewer than three points are left is dropped whole.
    """
    kept = _choose(rings.x, rings.y, rings.junction, rings.first, float(tolerance))
    before = np.concatenate([[0], np.cumsum(kept)])
    counts = np.diff(before[rings.first])
    solid = counts >= 3
    kept &= np.repeat(solid, np.diff(rings.first))
    first = np.concatenate([[0], np.cumsum(counts[solid])]).astype(np.int32)
    return Rings(rings.x[kept], rings.y[kept], rings.junction[kept], first, rings.region[solid])


def warm() -> None:
    """Compiles the loops of this module, so that no request waits for it."""
    square = np.array((0, 1, 1, 0), np.int32)
    ends = np.array((0, 4), np.int32)
    simplify(Rings(square, square[::-1].copy(), np.zeros(4, np.uint8), ends, ends[:1]), 1.0)


@compiled
def _choose(x: Indices, y: Indices, junction: Flags, first: Indices, tolerance: float) -> Bools:
    """Returns which points stay."""
    kept = np.zeros(len(x), np.bool_)
    longest = 0
    for ring in range(len(first) - 1):
        longest = max(longest, first[ring + 1] - first[ring])
    # One arc, both ends included, in the direction that both of its sides agree on.
    arc = np.empty(longest + 1, np.int32)
    stack = np.empty((longest + 1, 2), np.int32)
    square_first, members = _sort_into_squares(x, y)
    for ring in range(len(first) - 1):
        begin, count = first[ring], first[ring + 1] - first[ring]
        origin = -1
        for k in range(count):
            if junction[begin + k]:
                origin = k
                break
        if origin < 0:
            # No junction: any point will do that both sides choose.
            origin = 0
            for k in range(1, count):
                if _precedes(x, y, begin + k, begin + origin):
                    origin = k
        k = 0
        while k < count:
            # From one junction to the next, or all around.
            arc[0] = begin + (origin + k) % count
            length = 1
            while True:
                arc[length] = begin + (origin + k + length) % count
                length += 1
                if junction[arc[length - 1]] or k + length > count:
                    break
            k += length - 1
            if arc[0] == arc[length - 1]:
                middle = _farthest(x, y, arc, length)
                kept[arc[middle]] = True
                tail = arc[middle:length].copy()
                _simplify_arc(
                    x, y, arc[: middle + 1], tolerance, square_first, members, stack, kept
                )
                _simplify_arc(x, y, tail, tolerance, square_first, members, stack, kept)
            else:
                _simplify_arc(x, y, arc[:length], tolerance, square_first, members, stack, kept)
    return kept


@compiled
def _precedes(x: Indices, y: Indices, a: int, b: int) -> bool:
    return bool(y[a] < y[b] or (y[a] == y[b] and x[a] < x[b]))


@compiled
def _farthest(x: Indices, y: Indices, arc: Indices, length: int) -> int:
    """Returns the place in a closed arc that is farthest from its start; the first in order of
    several."""
    best, most = 0, np.int64(-1)
    for k in range(1, length - 1):
        dx, dy = np.int64(x[arc[k]]) - x[arc[0]], np.int64(y[arc[k]]) - y[arc[0]]
        distance = dx * dx + dy * dy
        if distance > most or (distance == most and _precedes(x, y, arc[k], arc[best])):
            best, most = k, distance
    return best


@compiled
def _simplify_arc(
    x: Indices, y: Indices, arc: Indices, tolerance: float, square_first: Indices,
    members: Indices, stack: Indices, kept: Bools,
) -> None:  # fmt: skip
    """Marks in ``kept`` the points of ``arc`` that stay, its ends among them."""
    if _precedes(x, y, arc[len(arc) - 1], arc[0]):
        arc[:] = arc[::-1].copy()
    kept[arc[0]] = kept[arc[len(arc) - 1]] = True
    stack[0, 0], stack[0, 1] = 0, len(arc) - 1
    depth = 1
    while depth:
        depth -= 1
        i, j = stack[depth]
        if j - i < 2:
            continue
        split, most = i + 1, -1.0
        for k in range(i + 1, j):
            distance = _distance(x[arc[k]], y[arc[k]], x[arc[i]], y[arc[i]], x[arc[j]], y[arc[j]])
            if distance > most:
                split, most = k, distance
        if most > tolerance or _encloses_another(x, y, arc[i : j + 1], most, square_first, members):
            kept[arc[split]] = True
            stack[depth, 0], stack[depth, 1] = i, split
            stack[depth + 1, 0], stack[depth + 1, 1] = split, j
            depth += 2


@compiled
def _distance(px: int, py: int, ax: int, ay: int, bx: int, by: int) -> float:
    """Returns the distance from a point to the segment from a to b."""
    dx, dy = float(bx - ax), float(by - ay)
    ex, ey = float(px - ax), float(py - ay)
    along = (ex * dx + ey * dy) / (dx * dx + dy * dy)
    along = min(max(along, 0.0), 1.0)
    return float(np.hypot(ex - along * dx, ey - along * dy))


@compiled
def _encloses_another(
    x: Indices, y: Indices, piece: Indices, reach: float, square_first: Indices, members: Indices
) -> bool:
    """Returns whether a point of another line lies between ``piece`` and its chord, or on the
    chord."""
    last = len(piece) - 1
    ax, ay, bx, by = x[piece[0]], y[piece[0]], x[piece[last]], y[piece[last]]
    left, right, top, bottom = ax, ax, ay, ay
    for k in piece:
        left, right = min(left, x[k]), max(right, x[k])
        top, bottom = min(top, y[k]), max(bottom, y[k])
    across = square_first.shape[1]
    for row in range(top // SQUARE, bottom // SQUARE + 1):
        for column in range(left // SQUARE, right // SQUARE + 1):
            end = (
                square_first[row, column + 1]
                if column + 1 < across
                else (square_first[row + 1, 0] if row + 1 < square_first.shape[0] else len(members))
            )
            for m in range(square_first[row, column], end):
                px, py = x[members[m]], y[members[m]]
                if px < left or px > right or py < top or py > bottom:
                    continue
                if _distance(px, py, ax, ay, bx, by) > reach:
                    continue
                if _is_between(x, y, piece, px, py):
                    return True
    return False


@compiled
def _is_between(x: Indices, y: Indices, piece: Indices, px: int, py: int) -> bool:
    """Returns whether a point lies within the polygon of ``piece`` and its chord, or on the
    chord."""
    for k in piece:
        if x[k] == px and y[k] == py:
            return False  # it is one of the piece's own, or of the same boundary's other side
    last = len(piece) - 1
    ax, ay, bx, by = x[piece[0]], y[piece[0]], x[piece[last]], y[piece[last]]
    if np.int64(bx - ax) * (py - ay) == np.int64(by - ay) * (px - ax):
        return True  # on the chord: within its bounds by the distance
    inside = False
    k = last
    for m in range(len(piece)):
        x1, y1, x2, y2 = x[piece[k]], y[piece[k]], x[piece[m]], y[piece[m]]
        if (y1 > py) != (y2 > py) and px < x1 + (py - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
        k = m
    return inside


@compiled
def _sort_into_squares(x: Indices, y: Indices) -> tuple[Indices, Indices]:
    """Returns the points of each square, row by row: where they begin in ``members``, and
    ``members``."""
    across = down = 1
    for k in range(len(x)):
        across, down = max(across, x[k] // SQUARE + 1), max(down, y[k] // SQUARE + 1)
    counts = np.zeros(across * down + 1, np.int32)
    for k in range(len(x)):
        counts[y[k] // SQUARE * across + x[k] // SQUARE + 1] += 1
    for k in range(across * down):
        counts[k + 1] += counts[k]
    first = counts[:-1].copy()
    members = np.empty(len(x), np.int32)
    for k in range(len(x)):
        square = y[k] // SQUARE * across + x[k] // SQUARE
        members[counts[square]] = k
        counts[square] += 1
    return first.reshape(down, across), members
