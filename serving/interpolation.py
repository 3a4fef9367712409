"""The compiled loops under :mod:`serving.restore`: from logits to labels and confidence.

Bilinear interpolation is a convex combination, so a class that wins at all four corners of a cell
of logits wins everywhere inside. Only the other cells are interpolated, and there only the classes
that can win: those whose largest corner reaches the largest of all classes' smallest corners.

A pixel's place along an axis is its cell (int32), between two positions of the logits, and the
fraction of the way across it (float32); ``first`` holds each cell's first pixel and, at the end,
the number of pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.jit import compiled

Labels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Fractions = npt.NDArray[np.float32]

# Pixels that are worked on at once, so that all classes' values stay in the first-level cache.
BLOCK = 256

LOG2_E = np.float32(np.log2(np.e))
LOWEST_POWER = np.float32(-126)  # of the normal floats
# 2 ** x for x in [-1, 0], coefficients from the constant up; the error is below 1e-5.
_NODES = np.cos(np.pi * (np.arange(5) + 0.5) / 5) / 2 - 0.5
EXP2 = tuple(np.float32(a) for a in reversed(np.polyfit(_NODES, np.exp2(_NODES), 4)))


@compiled
def fill_labels(
    logits: Logits,
    y_first: Indices,
    y_fraction: Fractions,
    x_first: Indices,
    x_fraction: Fractions,
    out: Labels,
) -> None:
    """Writes into ``out``, ``[H0,W0]``, the class with the largest interpolated logit."""
    classes, height, width = logits.shape
    upper = np.empty(width, np.int32)  # winners of the cell row's upper and lower logits
    lower = np.empty(width, np.int32)
    best = np.empty(width, np.float32)
    mixed = np.empty(width, np.int32)  # cells of the row where several classes may win
    corners = np.empty((4, classes), np.float32)
    candidate = np.empty(classes, np.int32)
    left = np.empty(classes, np.float32)
    right = np.empty(classes, np.float32)
    row_of_lower = -1
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
            winner = upper[j]
            if winner == upper[beside] and winner == lower[j] and winner == lower[beside]:
                for x in range(x_first[j], x_first[j + 1]):
                    first_row[x] = winner
            elif x_first[j] < x_first[j + 1]:
                mixed[mixed_count] = j
                mixed_count += 1
        for y in range(y_begin + 1, y_end):
            _copy_row(first_row, out[y])

        for m in range(mixed_count):
            j = mixed[m]
            beside = min(j + 1, width - 1)
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
            for y in range(y_begin, y_end):
                fraction = y_fraction[y]
                for k in range(count):
                    left[k] = corners[0, k] + fraction * (corners[2, k] - corners[0, k])
                    right[k] = corners[1, k] + fraction * (corners[3, k] - corners[1, k])
                    right[k] -= left[k]
                for x in range(x_first[j], x_first[j + 1]):
                    fraction = x_fraction[x]
                    largest = left[0] + fraction * right[0]
                    winner = candidate[0]
                    for k in range(1, count):
                        value = left[k] + fraction * right[k]
                        if value > largest:
                            largest = value
                            winner = candidate[k]
                    out[y, x] = winner


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
def fill_confidence(
    logits: Logits,
    y_cell: Indices,
    y_fraction: Fractions,
    x_cell: Indices,
    x_fraction: Fractions,
    out: Labels,
) -> None:
    """Writes into ``out``, ``[H0,W0]``, the largest softmax of interpolated logits x 255."""
    classes, height, _ = logits.shape
    pixels = len(x_cell)
    # Across first: a row of logits serves all the pixel rows beside it.
    upper = np.empty((classes, pixels), np.float32)
    lower = np.empty((classes, pixels), np.float32)
    values = np.empty((classes, BLOCK), np.float32)
    largest = np.empty(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    mantissa = np.empty(BLOCK, np.float32)
    exponent_bits = np.empty(BLOCK, np.int32)
    exponent = exponent_bits.view(np.float32)
    row_of_upper = -2
    for y in range(len(y_cell)):
        above = y_cell[y]
        if above != row_of_upper:
            if above == row_of_upper + 1:
                upper, lower = lower, upper
            else:
                _stretch_row(logits, above, x_cell, x_fraction, upper)
            _stretch_row(logits, min(above + 1, height - 1), x_cell, x_fraction, lower)
            row_of_upper = above
        fraction = y_fraction[y]
        for x in range(0, pixels, BLOCK):
            count = min(BLOCK, pixels - x)
            largest[:] = -np.inf
            total[:] = 0
            for c in range(classes):
                above_row, below_row = upper[c, x : x + count], lower[c, x : x + count]
                row = values[c]
                for k in range(count):
                    value = above_row[k] + fraction * (below_row[k] - above_row[k])
                    row[k] = value
                    largest[k] = np.maximum(largest[k], value)
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
                out[y, x + k] = np.uint8(np.float32(255) / total[k] + np.float32(0.5))


@compiled
def _stretch_row(
    logits: Logits, i: int, x_cell: Indices, x_fraction: Fractions, out: Logits
) -> None:
    """Row ``i`` of the logits, interpolated across: ``[C,W0]``."""
    classes, _, width = logits.shape
    for c in range(classes):
        row = logits[c, i]
        for x in range(len(x_cell)):
            j = x_cell[x]
            beside = min(j + 1, width - 1)
            out[c, x] = row[j] + x_fraction[x] * (row[beside] - row[j])
