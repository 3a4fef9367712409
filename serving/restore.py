"""Predictions back to the original size: bilinear logits and argmax, exact, or nearest on ids.

Bilinear interpolation is a convex combination, so a class that wins at all four corners of a cell
of logits wins everywhere inside. Only the other cells are interpolated, and there only the classes
that can win: those whose largest corner reaches the largest of all classes' smallest corners.

Logits are float32 ``[C,h,w]`` without NaN, 1 to 255 classes. Equal logits give the lowest id, as
argmax does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.geometry import Size, source_positions
from serving.jit import compiled, read_only

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


def labels_from_logits(
    logits: Logits, model: Size, original: Size, out: Labels | None = None
) -> Labels:
    """The label map, uint8 ``[H0,W0]``, at the size of ``original``.

    Each pixel reads the logits at its :func:`serving.geometry.source_positions`, bilinearly, and
    takes the class with the largest.

    Args:
        logits: float32 ``[C,h,w]``.
        model: the size of the model's input.
        original: the size of the label map.
        out: uint8 ``[H0,W0]``, contiguous, to write into.

    Raises:
        ValueError: ``logits`` or ``out`` of another shape, or more than 255 classes.
    """
    _check_logits(logits)
    if out is None:
        out = np.empty((original.height, original.width), np.uint8)
    elif out.shape != (original.height, original.width) or not out.flags.c_contiguous:
        raise ValueError(f"out is contiguous uint8 of {original}, not {out.shape}")
    _, height, width = logits.shape
    y_cell, y_fraction = _cells(original.height, model.height, height)
    x_cell, x_fraction = _cells(original.width, model.width, width)
    y_first = _first_pixels(y_cell, height)
    x_first = _first_pixels(x_cell, width)
    _fill_labels(read_only(logits), y_first, y_fraction, x_first, x_fraction, out)
    return out


def model_labels(logits: Logits, model: Size) -> Labels:
    """The label map at the model's own size, uint8 ``[H,W]``: what an in-graph argmax gives."""
    return labels_from_logits(logits, model, model)


def labels_nearest(labels: Labels, original: Size) -> Labels:
    """Resizes ids, uint8 ``[H,W]``, to uint8 ``[H0,W0]``: nearest, half-pixel centres."""
    if labels.shape == (original.height, original.width):
        return labels
    out: Labels = np.empty((original.height, original.width), np.uint8)
    rows = _nearest(original.height, labels.shape[0])
    columns = _nearest(original.width, labels.shape[1])
    _fill_nearest(read_only(labels), rows, columns, out)
    return out


def confidence_from_logits(logits: Logits, model: Size, original: Size) -> Labels:
    """How sure the network is of each pixel's class: uint8 ``[H0,W0]``, 255 is certain.

    The largest softmax probability of the interpolated logits, times 255, rounded.

    Raises:
        ValueError: ``logits`` of another shape, or more than 255 classes.
    """
    _check_logits(logits)
    _, height, width = logits.shape
    out = np.empty((original.height, original.width), np.uint8)
    y_cell, y_fraction = _cells(original.height, model.height, height)
    x_cell, x_fraction = _cells(original.width, model.width, width)
    _fill_confidence(read_only(logits), y_cell, y_fraction, x_cell, x_fraction, out)
    return out


def warm() -> None:
    """Compiles every loop of this module (seconds, once), so that no request waits for it."""
    size = Size(3, 3)
    logits = np.zeros((2, 2, 2), np.float32)
    labels_from_logits(logits, size, size)
    confidence_from_logits(logits, size, size)
    labels_nearest(np.zeros((2, 2), np.uint8), size)


def labels_reference(logits: npt.NDArray[np.float32], model: Size, original: Size) -> Labels:
    """:func:`labels_from_logits` in float64 NumPy, one operation after the other: clear, slow."""
    return np.asarray(_interpolated(logits, model, original).argmax(axis=0), np.uint8)


def confidence_reference(logits: npt.NDArray[np.float32], model: Size, original: Size) -> Labels:
    """:func:`confidence_from_logits` in float64 NumPy."""
    values = _interpolated(logits, model, original)
    powers = np.exp(values - values.max(axis=0))
    return np.asarray(np.rint(255.0 / powers.sum(axis=0)), np.uint8)


def _interpolated(
    logits: npt.NDArray[np.float32], model: Size, original: Size
) -> npt.NDArray[np.float64]:
    values = np.asarray(logits, np.float64)
    for axis, (source, through, target) in enumerate(
        zip(
            values.shape[1:],
            (model.height, model.width),
            (original.height, original.width),
            strict=True,
        ),
        start=1,
    ):
        positions = source_positions(target, through, source)
        low = np.floor(positions).astype(np.intp)
        high = np.minimum(low + 1, source - 1)
        fraction = (positions - low).reshape((-1, 1) if axis == 1 else (1, -1))
        start, end = values.take(low, axis), values.take(high, axis)
        values = np.asarray(start + fraction * (end - start), np.float64)
    return values


def _check_logits(logits: Logits) -> None:
    if logits.ndim != 3 or logits.dtype != np.float32 or 0 in logits.shape:
        raise ValueError(f"logits are float32 [C,h,w], not {logits.dtype} {logits.shape}")
    if logits.shape[0] > 255:
        raise ValueError(f"a label map holds at most 255 classes, not {logits.shape[0]}")


def _cells(original: int, model: int, logits: int) -> tuple[Indices, Fractions]:
    """For each pixel its cell, between two positions of the logits, and where in it (0 to 1)."""
    positions = source_positions(original, model, logits)
    cells = np.minimum(positions.astype(np.int32), max(logits - 2, 0))
    return cells, (positions - cells).astype(np.float32)


def _first_pixels(cells: Indices, logits: int) -> Indices:
    """The first pixel of each cell and, at the end, the number of pixels."""
    return np.searchsorted(cells, np.arange(max(logits - 1, 1) + 1)).astype(np.int32)


def _nearest(original: int, source: int) -> Indices:
    centres = (np.arange(original, dtype=np.float64) + 0.5) * source / original
    return np.minimum(centres.astype(np.int32), source - 1)


@compiled
def _fill_labels(
    logits: Logits,
    y_first: Indices,
    y_fraction: Fractions,
    x_first: Indices,
    x_fraction: Fractions,
    out: Labels,
) -> None:
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
def _fill_nearest(labels: Labels, rows: Indices, columns: Indices, out: Labels) -> None:
    for y in range(len(rows)):
        if y > 0 and rows[y] == rows[y - 1]:
            _copy_row(out[y - 1], out[y])
            continue
        source, target = labels[rows[y]], out[y]
        for x in range(len(columns)):
            target[x] = source[columns[x]]


@compiled
def _fill_confidence(
    logits: Logits,
    y_cell: Indices,
    y_fraction: Fractions,
    x_cell: Indices,
    x_fraction: Fractions,
    out: Labels,
) -> None:
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
