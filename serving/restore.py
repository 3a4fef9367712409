"""Predictions back to the original size: bilinear logits and argmax, exact, or nearest on ids.

Logits are float32 ``[C,h,w]`` without NaN, 1 to 255 classes. Equal logits give the lowest id, as
argmax does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.geometry import Size, source_positions
from serving.interpolation import (
    Fractions,
    Indices,
    Labels,
    Logits,
    fill_confidence,
    fill_labels,
    fill_nearest,
)
from serving.jit import read_only


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
    elif (
        out.shape != (original.height, original.width)
        or out.dtype != np.uint8
        or not out.flags.carray
    ):
        raise ValueError(
            f"out is contiguous, writable uint8 of {original}, not {out.dtype} {out.shape}"
        )
    _, height, width = logits.shape
    y_cell, y_fraction = _cells(original.height, model.height, height)
    x_cell, x_fraction = _cells(original.width, model.width, width)
    y_first = _first_pixels(y_cell, height)
    x_first = _first_pixels(x_cell, width)
    fill_labels(read_only(logits), y_first, y_fraction, x_first, x_fraction, out)
    return out


def model_labels(logits: Logits, model: Size) -> Labels:
    """The label map at the model's own size, uint8 ``[H,W]``: what an in-graph argmax gives."""
    return labels_from_logits(logits, model, model)


def labels_nearest(labels: Labels, original: Size) -> Labels:
    """Resizes ids, uint8 ``[H,W]``, to uint8 ``[H0,W0]``: nearest, half-pixel centres.

    Returns ``labels`` itself where it already has that size.
    """
    if labels.shape == (original.height, original.width):
        return labels
    out: Labels = np.empty((original.height, original.width), np.uint8)
    rows = _nearest(original.height, labels.shape[0])
    columns = _nearest(original.width, labels.shape[1])
    fill_nearest(read_only(labels), rows, columns, out)
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
    fill_confidence(read_only(logits), y_cell, y_fraction, x_cell, x_fraction, out)
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
