"""Scores of label maps, computed from one confusion matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from export.datasets import IGNORE_LABEL
from serving.palette import LabelMap


class ConfusionMatrix:
    """Counts ``matrix[truth, prediction]`` over pixels whose truth is not ignored.

    A class that neither the truth nor any prediction holds has no IoU: it is left out of the mean
    (``absent`` names such classes), where GluonCV counts it as 0.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, truth: npt.NDArray[np.uint8], prediction: LabelMap) -> None:
        """Adds two maps of one shape.

        Raises:
            ValueError: the shapes differ, or a label or a prediction is not a class.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ")
        counted = truth != IGNORE_LABEL
        guesses = prediction[counted].astype(np.int64)
        if guesses.size and int(guesses.max()) >= self.num_classes:
            raise ValueError(f"prediction {guesses.max()} is not below {self.num_classes}")
        labels = truth[counted].astype(np.int64)
        if labels.size and int(labels.max()) >= self.num_classes:
            raise ValueError(f"label {labels.max()} is not below {self.num_classes}")
        cells = labels * self.num_classes + guesses
        counts = np.bincount(cells, minlength=self.num_classes**2)
        self.matrix += counts.reshape(self.num_classes, self.num_classes)

    def add(self, other: ConfusionMatrix) -> None:
        """Adds the counts of another matrix of the same classes."""
        self.matrix += other.matrix

    @property
    def pixel_accuracy(self) -> float:
        """Returns the share of counted pixels that are right; NaN without any."""
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix)) / total if total else float("nan")

    @property
    def intersection_over_union(self) -> npt.NDArray[np.float64]:
        """Returns the IoU of each class, float64 ``[C]``; NaN where absent."""
        intersection = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(0) + self.matrix.sum(1) - np.diag(self.matrix)
        return np.divide(
            intersection, union, out=np.full(self.num_classes, np.nan), where=union > 0
        )

    @property
    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Returns the share of each class's pixels that are right (its recall), ``[C]``; NaN
        without any."""
        totals = self.matrix.sum(1)
        return np.divide(
            np.diag(self.matrix), totals, out=np.full(self.num_classes, np.nan), where=totals > 0
        )

    @property
    def mean_accuracy(self) -> float:
        """Returns the mean of the classes' accuracies, over those that the truth holds; NaN without
        any."""
        return mean_of_present(self.class_accuracy)

    @property
    def class_shares(self) -> npt.NDArray[np.float64]:
        """Returns the share of each class in the counted pixels' truth, float64 ``[C]``; 0 without
        pixels."""
        counts = self.matrix.sum(1)
        return np.asarray(counts / max(1, int(counts.sum())), np.float64)

    @property
    def absent(self) -> tuple[int, ...]:
        """Returns the classes that neither the truth nor any prediction holds."""
        return tuple(np.flatnonzero(np.isnan(self.intersection_over_union)).tolist())

    @property
    def mean_iou(self) -> float:
        """Returns the mean IoU over the classes that are present; NaN without any."""
        return mean_of_present(self.intersection_over_union)

    @property
    def legacy_mean_iou(self) -> float:
        """Returns the mean IoU as GluonCV's ``SegmentationMetric`` counts it: absent classes are
        0."""
        return float(np.nan_to_num(self.intersection_over_union).mean())


def mean_of_present(scores: npt.NDArray[np.float64]) -> float:
    """Returns the mean of those that are not NaN; NaN where all are."""
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")
