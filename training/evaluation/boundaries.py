"""Boundary F-score: how well the outlines of classes are hit, whatever they enclose.

The definition, after Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
segmentation?" (BMVC 2013), matched by dilation as DAVIS does (Perazzi et al., CVPR 2016):

- The boundary of a class in a label map are its pixels with one of their four neighbours in
  another class. The edge of the image is not a boundary.
- Precision is the share of the predicted boundary with a pixel of the true boundary of that class
  within the tolerance (Euclidean), recall the reverse, F their harmonic mean.
- An image gives a class an F where the truth or the prediction has a boundary of it (0 where only
  one of them has); the score of a class is the mean over those images, that of a model the mean
  over its classes.
- Where the truth is ignored, the prediction is ignored too, and the border of that region counts as
  one of both maps: what is predicted inside changes nothing.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from export.datasets import IGNORE_LABEL
from export.precision.confusion_matrix import mean_of_present

# Share of the image's diagonal: 4.5 pixels of 360x480, 17 of 1024x2048.
DEFAULT_TOLERANCE = 0.0075

Labels = npt.NDArray[np.uint8]


class BoundaryScore:
    """A running mean of the F of each class over the images that have its boundary."""

    def __init__(self, num_classes: int) -> None:
        self.sums: npt.NDArray[np.float64] = np.zeros(num_classes)
        self.images: npt.NDArray[np.int64] = np.zeros(num_classes, np.int64)

    def add(self, scores: npt.NDArray[np.float64]) -> None:
        """Adds one image's :func:`boundary_f`."""
        present = ~np.isnan(scores)
        self.sums[present] += scores[present]
        self.images += present

    def join(self, other: BoundaryScore) -> None:
        """Adds the images of another score of the same classes."""
        self.sums += other.sums
        self.images += other.images

    @property
    def classes(self) -> npt.NDArray[np.float64]:
        """Returns the F of each class, float64 ``[C]``; NaN if no image has a boundary of it."""
        return np.divide(
            self.sums, self.images, out=np.full(len(self.sums), np.nan), where=self.images > 0
        )

    @property
    def mean(self) -> float:
        """Returns the mean over the classes that have an F; NaN without any."""
        return mean_of_present(self.classes)


def boundary_f(
    truth: Labels, prediction: Labels, num_classes: int, tolerance: float = DEFAULT_TOLERANCE
) -> npt.NDArray[np.float64]:
    """Returns the F of each class in one image, float64 ``[C]``; NaN if neither map has its
    boundary.

    Args:
        truth: class ids, uint8 ``[H,W]``, 255 ignored.
        prediction: class ids, uint8 ``[H,W]``.
        tolerance: share of the image's diagonal; never less than one pixel.
    """
    disk = make_disk(max(1.0, tolerance * math.hypot(*truth.shape)))
    predicted = np.where(truth == IGNORE_LABEL, truth, prediction)
    true_edges, predicted_edges = find_edges(truth), find_edges(predicted)
    scores = np.full(num_classes, np.nan)
    for index in range(num_classes):
        true_boundary = true_edges & (truth == index)
        predicted_boundary = predicted_edges & (predicted == index)
        window = _bounding_box(true_boundary | predicted_boundary)
        if window is not None:
            scores[index] = _f(true_boundary[window], predicted_boundary[window], disk)
    return scores


def find_edges(labels: Labels) -> npt.NDArray[np.bool_]:
    """Returns the pixels with one of their four neighbours in another class, bool ``[H,W]``."""
    edges = np.zeros(labels.shape, np.bool_)
    rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edges[1:] |= rows
    edges[:-1] |= rows
    edges[:, 1:] |= columns
    edges[:, :-1] |= columns
    return edges


def make_disk(radius: float) -> Labels:
    """Returns 1 within ``radius`` pixels of the centre, uint8 ``[2r+1,2r+1]``."""
    reach = int(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x * x + y * y <= radius * radius, np.uint8)


def _f(true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], disk: Labels) -> float:
    precision, recall = _share_near(predicted, true, disk), _share_near(true, predicted, disk)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(
    points: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_], disk: Labels
) -> float:
    count = int(points.sum())
    if not count:
        return 0.0
    near = cv2.dilate(others.astype(np.uint8), disk)
    return int(np.count_nonzero(near[points])) / count


def _bounding_box(points: npt.NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(points.any(1)), np.flatnonzero(points.any(0))
    if not rows.size:
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
