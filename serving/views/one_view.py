"""The label map of an image that the network has seen whole, in one view."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving import restore
from serving.engine import Prediction
from serving.geometry import Size, View

Labels = npt.NDArray[np.uint8]


def labels_suffice(view: View, target: Size, smooth: bool | None = None) -> bool:
    """Whether a label map of ``target`` can be read off labels at the network's input size.

    So it can where ids are asked for (``smooth`` is False), and where no pixel lies between two.
    """
    return smooth is False or (view.rows.length, view.columns.length) == (
        target.height,
        target.width,
    )


def restore_labels(
    prediction: Prediction, view: View, target: Size, smooth: bool | None = None
) -> Labels:
    """The label map of the whole image, uint8 ``[H0,W0]`` of the size of ``target``.

    Args:
        prediction: of one image.
        view: how the network saw it.
        smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
    """
    logits = prediction.logits
    if logits is not None and smooth is not False:
        return restore.labels_at(logits, *_positions(view, target, logits.shape))
    if logits is not None:
        ids = restore.model_labels(logits, Size(view.rows.model, view.columns.model))
    else:
        assert prediction.mask is not None
        ids = prediction.mask
    return restore.labels_nearest(ids[view.content], target)


def restore_labels_and_confidence(
    prediction: Prediction, view: View, target: Size, smooth: bool | None = None
) -> tuple[Labels, Labels]:
    """:func:`restore_labels`, and the confidence of each pixel, uint8 ``[H0,W0]``.

    The confidence is that of the interpolated logits; the prediction must have them.
    """
    logits = prediction.logits
    assert logits is not None
    positions = _positions(view, target, logits.shape)
    labels, confidence = restore.labels_and_confidence_at(logits, *positions)
    if smooth is False:
        labels = restore_labels(prediction, view, target, smooth)
    return labels, confidence


def _positions(
    view: View, target: Size, logits: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return (
        view.rows.positions(target.height, logits[1]),
        view.columns.positions(target.width, logits[2]),
    )
