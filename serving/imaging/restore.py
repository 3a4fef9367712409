"""Restores predictions to the original size: bilinear logits and argmax, exact, or nearest ids.

Logits are float32 ``[C,h,w]`` without NaN. Labels are uint8, with more than 255
classes uint16. Equal logits give the lowest id, as argmax does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.imaging.geometry import Size, View, source_positions
from serving.imaging.interpolation import (
    Confidence,
    Fractions,
    Indices,
    Labels,
    Logits,
    fill_labels,
    fill_labels_and_confidence,
    fill_nearest,
)
from serving.imaging.jit import read_only
from serving.palette import MAX_CLASSES, LabelMap, label_type

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """The prediction of a network: logits or mask, for a batch or (first axis gone) for one image.

    Attributes:
        logits: float32 ``[n,C,h,w]``.
        mask: class ids, uint8 ``[n,H,W]``; with more than 255 classes uint16.
    """

    logits: npt.NDArray[np.float32] | None
    mask: LabelMap | None

    def __getitem__(self, index: int) -> Prediction:
        """Returns the prediction of one image of the batch (a view)."""
        return Prediction(
            None if self.logits is None else self.logits[index],
            None if self.mask is None else self.mask[index],
        )


def labels_from_logits(
    logits: Logits, model: Size, original: Size, out: Labels | None = None
) -> Labels:
    """Returns the label map, ``[H0,W0]``, at the size of ``original``.

    Each pixel reads the logits, bilinearly, at its
    :func:`~serving.imaging.geometry.source_positions`, and takes the class with the largest.

    Args:
        logits: float32 ``[C,h,w]``.
        model: the size of the model's input.
        original: the size of the label map.
        out: ``[H0,W0]``, contiguous, to write into.

    Raises:
        ValueError: ``logits`` or ``out`` of another shape, or more than 65,535 classes.
    """
    _check_logits(logits)
    return labels_at(logits, *_positions(logits, model, original), out)


def labels_at(
    logits: Logits, y_positions: Positions, x_positions: Positions, out: Labels | None = None
) -> Labels:
    """Returns the label map, ``[H0,W0]``, read from ``logits`` at these rows and columns.

    Args:
        logits: float32 ``[C,h,w]``.
        y_positions: float64 ``[H0]``, ascending, within ``[0, h - 1]``.
        x_positions: float64 ``[W0]``, ascending, within ``[0, w - 1]``.
        out: ``[H0,W0]``, contiguous, to write into.

    Raises:
        ValueError: ``logits`` or ``out`` of another shape, or more than 65,535 classes.
    """
    _check_logits(logits)
    shape = (len(y_positions), len(x_positions))
    kind = label_type(logits.shape[0])
    if out is None:
        out = np.empty(shape, kind)
    elif out.shape != shape or out.dtype != kind or not out.flags.carray:
        raise ValueError(
            f"out is contiguous, writable {kind} of {Size(*shape)}, not {out.dtype} {out.shape}"
        )
    fill_labels(read_only(logits), *_places(logits, y_positions, x_positions), out)
    return out


def model_labels(logits: Logits, model: Size) -> Labels:
    """Returns the label map at the model's own size, ``[H,W]``: what an in-graph argmax
    gives."""
    return labels_from_logits(logits, model, model)


def labels_nearest(labels: Labels, original: Size) -> Labels:
    """Resizes ids, ``[H,W]``, to ``[H0,W0]``: nearest, half-pixel centres.

    Returns ``labels`` itself where it already has that size.
    """
    if labels.shape == (original.height, original.width):
        return labels
    out: Labels = np.empty((original.height, original.width), labels.dtype)
    rows = _nearest(original.height, labels.shape[0])
    columns = _nearest(original.width, labels.shape[1])
    fill_nearest(read_only(labels), rows, columns, out)
    return out


def labels_and_confidence(logits: Logits, model: Size, original: Size) -> tuple[Labels, Confidence]:
    """Returns :func:`labels_from_logits` and each pixel's confidence, in one pass.

    The confidence is uint8 ``[H0,W0]``, 255 is certain: the largest softmax probability of the
    interpolated logits, times 255, rounded.

    Raises:
        ValueError: ``logits`` of another shape, or more than 65,535 classes.
    """
    _check_logits(logits)
    return labels_and_confidence_at(logits, *_positions(logits, model, original))


def labels_and_confidence_at(
    logits: Logits, y_positions: Positions, x_positions: Positions
) -> tuple[Labels, Confidence]:
    """Returns :func:`labels_and_confidence` at the rows and columns that :func:`labels_at` takes.

    Raises:
        ValueError: ``logits`` of another shape, or more than 65,535 classes.
    """
    _check_logits(logits)
    labels = np.empty((len(y_positions), len(x_positions)), label_type(logits.shape[0]))
    confidence = np.empty(labels.shape, np.uint8)
    places = _places(logits, y_positions, x_positions)
    fill_labels_and_confidence(read_only(logits), *places, labels, confidence)
    return labels, confidence


def confidence_from_logits(logits: Logits, model: Size, original: Size) -> Confidence:
    """Returns the confidence of :func:`labels_and_confidence` alone."""
    return labels_and_confidence(logits, model, original)[1]


def warm(classes: int = 2) -> None:
    """Compiles every loop of this module (seconds, once), so that no request waits for it.

    Label maps of so many ``classes`` have loops of their own.
    """
    size = Size(3, 3)
    logits = np.zeros((classes, 2, 2), np.float32)
    labels_from_logits(logits, size, size)
    labels_and_confidence(logits, size, size)
    labels_nearest(np.zeros((2, 2), label_type(classes)), size)


def labels_reference(logits: npt.NDArray[np.float32], model: Size, original: Size) -> Labels:
    """Computes :func:`labels_from_logits` in float64 NumPy, one operation after the other: slow."""
    found = _interpolated(logits, model, original).argmax(axis=0)
    return np.asarray(found, label_type(len(logits)))


def confidence_reference(
    logits: npt.NDArray[np.float32], model: Size, original: Size
) -> Confidence:
    """Computes :func:`confidence_from_logits` in float64 NumPy."""
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
    if logits.shape[0] > MAX_CLASSES:
        raise ValueError(f"a label map holds at most {MAX_CLASSES} classes, not {logits.shape[0]}")


def _positions(logits: Logits, model: Size, original: Size) -> tuple[Positions, Positions]:
    """Returns where the rows and the columns of ``original`` lie in the logits."""
    _, height, width = logits.shape
    return (
        source_positions(original.height, model.height, height),
        source_positions(original.width, model.width, width),
    )


def _places(
    logits: Logits, y_positions: Positions, x_positions: Positions
) -> tuple[Indices, Fractions, Indices, Fractions]:
    """Returns each pixel's cell and fraction down, then across."""
    _, height, width = logits.shape
    return (*_cells(y_positions, height), *_cells(x_positions, width))


def _cells(positions: Positions, logits: int) -> tuple[Indices, Fractions]:
    """Returns each pixel's cell, between two positions of the logits, and where in it (0 to 1)."""
    cells = np.minimum(positions.astype(np.int32), max(logits - 2, 0))
    return cells, (positions - cells).astype(np.float32)


def _nearest(original: int, source: int) -> Indices:
    centres = (np.arange(original, dtype=np.float64) + 0.5) * source / original
    return np.minimum(centres.astype(np.int32), source - 1)


def labels_suffice(view: View, target: Size, smooth: bool | None = None) -> bool:
    """Returns whether a label map of ``target`` can be read off labels at the network's input size.

    So it can where ids are asked for (``smooth`` is False), and where no pixel lies between two.
    """
    return smooth is False or (view.rows.length, view.columns.length) == (
        target.height,
        target.width,
    )


def restore_labels(
    prediction: Prediction, view: View, target: Size, smooth: bool | None = None
) -> Labels:
    """Returns the label map of the whole image, ``[H0,W0]`` of the size of ``target``.

    Args:
        prediction: of one image.
        view: how the network saw it.
        smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
    """
    logits = prediction.logits
    if logits is not None and smooth is not False:
        return labels_at(logits, *_view_positions(view, target, logits.shape))
    if logits is not None:
        ids = model_labels(logits, Size(view.rows.model, view.columns.model))
    else:
        assert prediction.mask is not None
        ids = prediction.mask
    return labels_nearest(ids[view.content], target)


def restore_labels_and_confidence(
    prediction: Prediction, view: View, target: Size, smooth: bool | None = None
) -> tuple[Labels, Confidence]:
    """Returns :func:`restore_labels` and the confidence of each pixel, both ``[H0,W0]``.

    The confidence is that of the interpolated logits; the prediction must have them.
    """
    logits = prediction.logits
    assert logits is not None
    positions = _view_positions(view, target, logits.shape)
    labels, confidence = labels_and_confidence_at(logits, *positions)
    if smooth is False:
        labels = restore_labels(prediction, view, target, smooth)
    return labels, confidence


def _view_positions(
    view: View, target: Size, logits: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return (
        view.rows.positions(target.height, logits[1]),
        view.columns.positions(target.width, logits[2]),
    )
