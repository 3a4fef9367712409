"""Counts each class's pixels, their share of the image, and the network's confidence in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.formats.label_map import Encoded, MaskOptions, MaskView
from serving.imaging.jit import compiled, read_only
from serving.palette import LabelMap, format_palette, label_type


@dataclass(frozen=True)
class ClassShare:
    """One class in one label map.

    ``share`` is the part of all pixels, 0 to 1. ``mean_confidence``, 0 to 1, is over the class's
    own pixels; None without a confidence map or where the class has no pixels.
    """

    id: int
    name: str
    pixels: int
    share: float
    mean_confidence: float | None = None


def class_statistics(
    labels: LabelMap,
    names: Sequence[str],
    confidence: npt.NDArray[np.uint8] | None = None,
) -> tuple[ClassShare, ...]:
    """Returns every class of ``names`` in the order of the ids, those without pixels too.

    Ids that have no name, the ignore label among them, get no entry; they count in the total, so
    that the shares then sum to less than 1.

    Args:
        labels: class ids, ``[H,W]``.
        names: the name of each id.
        confidence: uint8 ``[H,W]``, 255 is certain.

    Raises:
        ValueError: ``confidence`` has another shape than ``labels``.
    """
    if confidence is not None and confidence.shape != labels.shape:
        raise ValueError(f"confidence is {confidence.shape}, the label map {labels.shape}")
    flat = read_only(labels).reshape(-1)
    ids = np.iinfo(labels.dtype).max + 1
    if confidence is None:
        pixels, sums = _count(flat, ids).sum(axis=0), None
    else:
        counts, totals = _sum_confidence(flat, read_only(confidence).reshape(-1), ids)
        pixels, sums = counts.sum(axis=0), totals.sum(axis=0)
    shares = []
    for index, name in enumerate(names):
        count = int(pixels[index])
        mean = None if sums is None or count == 0 else int(sums[index]) / (255 * count)
        shares.append(ClassShare(index, name, count, count / max(labels.size, 1), mean))
    return tuple(shares)


def warm(classes: int = 2) -> None:
    """Compiles the loops of this module (seconds, once), so that no request waits for it."""
    zeros = np.zeros((2, 2), label_type(classes))
    class_statistics(zeros, ("a",))
    class_statistics(zeros, ("a",), np.zeros((2, 2), np.uint8))


@compiled
def _count(labels: LabelMap, ids: int) -> npt.NDArray[np.int64]:
    """Returns the pixels of each id, int64 ``[4,ids]``: in four parts, to be added."""
    # Neighbours are mostly equal, and adding to one counter twice in a row stalls.
    counts = np.zeros((4, ids), np.int64)
    whole = len(labels) // 4 * 4
    for k in range(0, whole, 4):
        counts[0, labels[k]] += 1
        counts[1, labels[k + 1]] += 1
        counts[2, labels[k + 2]] += 1
        counts[3, labels[k + 3]] += 1
    for k in range(whole, len(labels)):
        counts[0, labels[k]] += 1
    return counts


@compiled
def _sum_confidence(
    labels: LabelMap, confidence: npt.NDArray[np.uint8], ids: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels of each id and the sum of their confidence, int64 ``[2,ids]``: in two parts."""
    counts = np.zeros((2, ids), np.int64)
    sums = np.zeros((2, ids), np.int64)
    whole = len(labels) // 2 * 2
    for k in range(0, whole, 2):
        counts[0, labels[k]] += 1
        sums[0, labels[k]] += confidence[k]
        counts[1, labels[k + 1]] += 1
        sums[1, labels[k + 1]] += confidence[k + 1]
    for k in range(whole, len(labels)):
        counts[0, labels[k]] += 1
        sums[0, labels[k]] += confidence[k]
    return counts, sums


MEDIA_TYPE = "application/json"


def write_stats(view: MaskView, options: MaskOptions) -> Encoded:
    """Returns every class in the order of the ids: pixels, share and, with ``confidence``, its
    mean."""
    classes: list[dict[str, object]] = []
    confidence = view.certain() if options.confidence else None
    for share in class_statistics(view.labels, view.names, confidence):
        entry: dict[str, object] = {
            "id": share.id,
            "name": share.name,
            "color": format_palette([view.colors[share.id]]),
            "pixels": share.pixels,
            "share": round(share.share, 6),
        }
        if share.mean_confidence is not None:
            entry["mean_confidence"] = round(share.mean_confidence, 4)
        classes.append(entry)
    height, width = view.labels.shape
    answer = {"height": height, "width": width, "classes": classes}
    return Encoded(
        json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode(), MEDIA_TYPE
    )
