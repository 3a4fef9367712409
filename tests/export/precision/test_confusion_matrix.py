"""Scores of small confusion matrices that were computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export.precision.confusion_matrix import ConfusionMatrix


def confusion(truth: list[int], prediction: list[int], classes: int = 3) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(np.array([truth], np.uint8), np.array([prediction], np.uint8))
    return matrix


def test_counts_truth_by_rows() -> None:
    matrix = confusion([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2])
    assert matrix.matrix.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 1]]


def test_accuracies_are_of_the_truth_and_shares_too() -> None:
    """Three pixels of class 0, two of 1, one of 2; none of 3, which is guessed once."""
    matrix = confusion([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 3, 2], classes=4)
    accuracy = matrix.class_accuracy
    assert accuracy[:3].tolist() == pytest.approx([1 / 3, 1 / 2, 1.0])
    assert math.isnan(accuracy[3])
    assert matrix.mean_accuracy == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert matrix.class_shares.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    assert matrix.intersection_over_union.tolist() == pytest.approx([1 / 3, 1 / 4, 1.0, 0.0])
    assert matrix.absent == ()
    assert matrix.mean_iou == matrix.legacy_mean_iou == pytest.approx((1 / 3 + 1 / 4 + 1) / 4)
    assert ConfusionMatrix(3).class_shares.tolist() == [0.0, 0.0, 0.0]
    assert math.isnan(ConfusionMatrix(3).mean_accuracy)


def test_matrices_add_up_row_by_row() -> None:
    one, other = confusion([0, 1], [1, 2]), confusion([2, 2], [0, 2])
    one.add(other)
    assert one.matrix.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 1]]
    assert other.matrix.sum() == 2, "the other one is left alone"


def test_scores_by_hand() -> None:
    matrix = confusion([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2])
    assert matrix.pixel_accuracy == pytest.approx(4 / 6)
    assert matrix.intersection_over_union.tolist() == pytest.approx([2 / 4, 1 / 3, 1.0])
    assert matrix.mean_iou == pytest.approx((2 / 4 + 1 / 3 + 1.0) / 3)
    assert matrix.absent == ()


def test_updates_add_up() -> None:
    whole = confusion([0, 1, 2, 2], [0, 1, 1, 2])
    parts = confusion([0, 1], [0, 1])
    parts.update(np.array([[2, 2]], np.uint8), np.array([[1, 2]], np.uint8))
    np.testing.assert_array_equal(parts.matrix, whole.matrix)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    matrix = confusion([0, 0, 2], [0, 0, 2], classes=4)
    assert matrix.absent == (1, 3)
    assert matrix.mean_iou == 1.0
    assert matrix.legacy_mean_iou == 0.5, "GluonCV counts them as 0"


def test_a_class_only_predicted_counts_as_zero() -> None:
    matrix = confusion([0, 0], [0, 1], classes=3)
    assert matrix.absent == (2,)
    assert matrix.intersection_over_union[:2].tolist() == [0.5, 0.0]
    assert matrix.mean_iou == 0.25


def test_ignored_pixels_do_not_count() -> None:
    """Not even where the prediction there is a class of its own."""
    matrix = confusion([0, 255, 255], [0, 1, 200])
    assert matrix.matrix.sum() == 1
    assert matrix.pixel_accuracy == 1.0
    assert matrix.absent == (1, 2)


def test_all_ignored_has_no_score() -> None:
    matrix = confusion([255, 255], [0, 1])
    assert math.isnan(matrix.pixel_accuracy)
    assert math.isnan(matrix.mean_iou)
    assert matrix.absent == (0, 1, 2)


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and prediction \(3, 2\) differ"):
        ConfusionMatrix(3).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_a_prediction_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction 3 is not below 3"):
        confusion([0], [3])


def test_a_truth_that_is_no_class_is_refused() -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match="label 7 is not below 3"):
        matrix.update(np.array([[7]], np.uint8), np.array([[0]], np.uint8))
    assert matrix.matrix.sum() == 0
