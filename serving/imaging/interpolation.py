"""The compiled loops under :mod:`serving.imaging.restore`: from logits to labels and confidence.

Bilinear interpolation is a convex combination, so a class that wins at all four corners of a cell
of logits wins everywhere inside. Only the other cells are interpolated, and there only the classes
that can win: those whose largest corner reaches the largest of all classes' smallest corners.

A row of many such cells, as noise gives them, is interpolated whole instead: every class, but
many pixels at once. Both ways interpolate across first and then down, so that they give the same
float32 values.

A pixel's place along an axis is its cell (int32, ascending), between two positions of the logits,
and the fraction of the way across it (float32).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serving.imaging.jit import compiled
from serving.palette import LabelMap

Labels: TypeAlias = LabelMap
Confidence = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Fractions = npt.NDArray[np.float32]

# Pixels that are worked on at once, so that all classes' values stay in the first-level cache.
BLOCK = 256

# What a mixed cell costs by itself, in shares of a cell that is interpolated with its whole row:
# for its corners, and for its candidates if all classes are. Measured, on 11 and 19 classes.
CORNERS_COST, CANDIDATES_COST = 2, 6

LOG2_E = np.float32(np.log2(np.e))
LOWEST_POWER = np.float32(-126)  # of the normal floats
# 2 ** x for x in [-1, 0], coefficients from the constant up; the error is below 1e-5.
_NODES = np.cos(np.pi * (np.arange(5) + 0.5) / 5) / 2 - 0.5
EXP2 = tuple(np.float32(a) for a in reversed(np.polyfit(_NODES, np.exp2(_NODES), 4)))


@compiled
def fill_labels(
    logits: Logits,
    y_cell: Indices,
    y_fraction: Fractions,
    x_cell: Indices,
    x_fraction: Fractions,
    out: Labels,
) -> None:
    """Writes into ``out``, ``[H0,W0]``, the class with the largest interpolated logit."""
    classes, height, width = logits.shape
    pixels = len(x_cell)
    y_first = _first_pixels(y_cell, max(height - 1, 1))
    x_first = _first_pixels(x_cell, max(width - 1, 1))
    upper = np.empty(width, np.int32)  # winners of the cell row's upper and lower logits
    lower = np.empty(width, np.int32)
    best = np.empty(width, np.float32)
    mixed = np.empty(width, np.int32)  # cells of the row where several classes may win
    corners = np.empty((4, classes), np.float32)
    candidate = np.empty(classes, np.int32)
    sides = np.empty((2, classes), np.float32)
    stretched = np.empty((2, classes, 0), np.float32)  # only rows of many mixed cells need it
    values = np.empty((classes, BLOCK), np.float32)
    largest = np.empty(BLOCK, np.float32)
    winner = np.empty(BLOCK, np.int32)
    row_of_lower, row_of_stretched = -1, -2
    candidates = 2  # of a mixed cell, as in the last row
    for i in range(len(y_first) - 1):
        y_begin, y_end = y_first[i], y_first[i + 1]
        if y_begin == y_end:
            continue
        below = min(i + 1, height - 1)
        if row_of_lower == i:
            upper, lower = lower, upper
        else:
            _argmax_row(logits, i, best, upper)
        _argmax_row(logits, below, best, lower)
        row_of_lower = below

        mixed_count = 0
        first_row = out[y_begin]
        for j in range(len(x_first) - 1):
            beside = min(j + 1, width - 1)
            if upper[j] == upper[beside] and upper[j] == lower[j] and upper[j] == lower[beside]:
                for x in range(x_first[j], x_first[j + 1]):
                    first_row[x] = upper[j]
            elif x_first[j] < x_first[j + 1]:
                mixed[mixed_count] = j
                mixed_count += 1
        cost = CORNERS_COST * classes * mixed_count + CANDIDATES_COST * candidates * mixed_count
        if cost > classes * width:
            if stretched.shape[2] == 0:
                stretched = np.empty((2, classes, pixels), np.float32)
            _stretch_rows(logits, i, row_of_stretched, x_cell, x_fraction, stretched)
            row_of_stretched = i
            for y in range(y_begin, y_end):
                for x in range(0, pixels, BLOCK):
                    count = min(BLOCK, pixels - x)
                    _compete(stretched, i & 1, y_fraction[y], x, count, values, largest, winner)
                    row = out[y, x : x + count]
                    for k in range(count):
                        row[k] = winner[k]
            continue
        for y in range(y_begin + 1, y_end):
            _copy_row(first_row, out[y])
        found = 0
        for m in range(mixed_count):
            j = mixed[m]
            count = _gather_candidates(logits, i, j, corners, candidate)
            found += count
            for x in range(x_first[j], x_first[j + 1]):
                fraction = x_fraction[x]
                for k in range(count):
                    sides[0, k] = corners[0, k] + fraction * (corners[1, k] - corners[0, k])
                    sides[1, k] = corners[2, k] + fraction * (corners[3, k] - corners[2, k])
                for y in range(y_begin, y_end):
                    fraction = y_fraction[y]
                    top, first = sides[0, 0] + fraction * (sides[1, 0] - sides[0, 0]), candidate[0]
                    for k in range(1, count):
                        value = sides[0, k] + fraction * (sides[1, k] - sides[0, k])
                        if value > top:
                            top, first = value, candidate[k]
                    out[y, x] = first
        if mixed_count:
            candidates = found // mixed_count


@compiled
def _first_pixels(cells: Indices, count: int) -> Indices:
    """Returns the first pixel of each of ``count`` cells and, at the end, the number of pixels."""
    first = np.zeros(count + 1, np.int32)
    for x in range(len(cells)):
        first[cells[x] + 1] += 1
    for j in range(count):
        first[j + 1] += first[j]
    return first


@compiled
def _gather_candidates(logits: Logits, i: int, j: int, corners: Logits, candidate: Indices) -> int:
    """Returns the classes that can win in cell ``i, j``, ascending, and their four corners'
    logits."""
    classes, height, width = logits.shape
    below, beside = min(i + 1, height - 1), min(j + 1, width - 1)
    floor = np.float32(-np.inf)  # at every point some class reaches at least this
    for c in range(classes):
        a, b = logits[c, i, j], logits[c, i, beside]
        d, e = logits[c, below, j], logits[c, below, beside]
        corners[0, c], corners[1, c], corners[2, c], corners[3, c] = a, b, d, e
        floor = max(floor, min(min(a, b), min(d, e)))
    count = 0
    for c in range(classes):
        top = max(max(corners[0, c], corners[1, c]), max(corners[2, c], corners[3, c]))
        if top >= floor:
            candidate[count] = c
            for k in range(4):
                corners[k, count] = corners[k, c]
            count += 1
    return count


@compiled
def _copy_row(source: Labels, target: Labels) -> None:
    for x in range(len(source)):  # several times faster than an assignment of slices
        target[x] = source[x]


@compiled
def _argmax_row(logits: Logits, i: int, best: Fractions, winner: Indices) -> None:
    """The winning class at each position of row ``i``."""
    classes, _, width = logits.shape
    best[:] = logits[0, i]
    winner[:] = 0
    for c in range(1, classes):
        row = logits[c, i]
        for j in range(width):
            # Arithmetic, as a choice would become a masked store, which is slow.
            winner[j] += np.int32(row[j] > best[j]) * (np.int32(c) - winner[j])
            best[j] = np.maximum(best[j], row[j])


@compiled
def fill_largest(logits: Logits, out: Labels, top: int, left: int) -> None:
    """Writes into ``out``, from row ``top`` and column ``left`` on, the largest class of each."""
    _, height, width = logits.shape
    best = np.empty(width, np.float32)
    winner = np.empty(width, np.int32)
    for i in range(height):
        _argmax_row(logits, i, best, winner)
        row = out[top + i]
        for j in range(width):
            row[left + j] = winner[j]


@compiled
def fill_nearest(labels: Labels, rows: Indices, columns: Indices, out: Labels) -> None:
    """Writes into ``out`` the ids at the given rows and columns of ``labels``."""
    for y in range(len(rows)):
        if y > 0 and rows[y] == rows[y - 1]:
            _copy_row(out[y - 1], out[y])
            continue
        source, target = labels[rows[y]], out[y]
        for x in range(len(columns)):
            target[x] = source[columns[x]]


@compiled
def fill_labels_and_confidence(
    logits: Logits,
    y_cell: Indices,
    y_fraction: Fractions,
    x_cell: Indices,
    x_fraction: Fractions,
    labels: Labels,
    confidence: Confidence,
) -> None:
    """Writes, both ``[H0,W0]``, what :func:`fill_labels` does and the largest softmax x 255."""
    classes = logits.shape[0]
    pixels = len(x_cell)
    stretched = np.empty((2, classes, pixels), np.float32)
    values = np.empty((classes, BLOCK), np.float32)
    largest = np.empty(BLOCK, np.float32)
    winner = np.empty(BLOCK, np.int32)
    total = np.empty(BLOCK, np.float32)
    mantissa = np.empty(BLOCK, np.float32)
    exponent_bits = np.empty(BLOCK, np.int32)
    exponent = exponent_bits.view(np.float32)
    row_of_stretched = -2
    for y in range(len(y_cell)):
        if y_cell[y] != row_of_stretched:
            _stretch_rows(logits, y_cell[y], row_of_stretched, x_cell, x_fraction, stretched)
            row_of_stretched = y_cell[y]
        for x in range(0, pixels, BLOCK):
            count = min(BLOCK, pixels - x)
            _compete(stretched, y_cell[y] & 1, y_fraction[y], x, count, values, largest, winner)
            total[:] = 0
            for c in range(classes):
                # 2 ** power in two factors, by a polynomial and by the float's exponent bits.
                row = values[c]
                for k in range(count):
                    power = (row[k] - largest[k]) * LOG2_E
                    power = power if power > LOWEST_POWER else LOWEST_POWER
                    whole = np.int32(power)
                    part = power - np.float32(whole)
                    exponent_bits[k] = (whole + np.int32(127)) << np.int32(23)
                    mantissa[k] = (
                        ((EXP2[4] * part + EXP2[3]) * part + EXP2[2]) * part + EXP2[1]
                    ) * part + EXP2[0]
                for k in range(count):
                    total[k] += mantissa[k] * exponent[k]
            for k in range(count):
                labels[y, x + k] = winner[k]
                confidence[y, x + k] = np.uint8(np.float32(255) / total[k] + np.float32(0.5))


@compiled
def _stretch_rows(
    logits: Logits,
    i: int,
    done: int,
    x_cell: Indices,
    x_fraction: Fractions,
    stretched: Logits,
) -> None:
    """Rows ``i`` and ``i + 1`` of the logits, interpolated across, into ``stretched``.

    Row ``i`` lies at ``i & 1`` of its first axis, so that the lower row of cell row ``done``, the
    last one that was asked for, serves as the upper one of the next.
    """
    classes, height, width = logits.shape
    for row in range(i + (done + 1 == i), i + 2):
        for c in range(classes):
            source, target = logits[c, min(row, height - 1)], stretched[row & 1, c]
            for x in range(len(x_cell)):
                j = x_cell[x]
                beside = min(j + 1, width - 1)
                target[x] = source[j] + x_fraction[x] * (source[beside] - source[j])


@compiled
def _compete(
    stretched: Logits,
    upper: int,
    fraction: float,
    x: int,
    count: int,
    values: Logits,
    largest: Fractions,
    winner: Indices,
) -> None:
    """All classes' logits at ``count`` pixels from ``x`` on, the largest, and whose it is."""
    for c in range(stretched.shape[1]):
        above, below = stretched[upper, c, x : x + count], stretched[1 - upper, c, x : x + count]
        row = values[c]
        if c == 0:
            for k in range(count):
                row[k] = above[k] + fraction * (below[k] - above[k])
                largest[k] = row[k]
                winner[k] = 0
            continue
        for k in range(count):
            value = above[k] + fraction * (below[k] - above[k])
            row[k] = value
            # Arithmetic, as a choice would become a masked store, which is slow.
            winner[k] += np.int32(value > largest[k]) * (np.int32(c) - winner[k])
            largest[k] = np.maximum(largest[k], value)
