"""The boundary F-score against a slow reference that shares nothing with it, and its rules."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from training.evaluation.boundaries import (
    DEFAULT_TOLERANCE,
    BoundaryScore,
    boundary_f,
    make_disk,
)

Labels = npt.NDArray[np.uint8]
Points = list[tuple[int, int]]


def outline(labels: Labels, wanted: int) -> Points:
    """Pixel by pixel."""
    height, width = labels.shape
    points = []
    for y in range(height):
        for x in range(width):
            if labels[y, x] != wanted:
                continue
            around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if any(
                0 <= v < height and 0 <= u < width and labels[v, u] != wanted for v, u in around
            ):
                points.append((y, x))
    return points


def share_matched(points: Points, others: Points, reach: float) -> float:
    """All distances."""
    if not points or not others:
        return 0.0
    a, b = np.array(points, np.float64), np.array(others, np.float64)
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return float((distances.min(1) <= reach).mean())


def reference(truth: Labels, prediction: Labels, classes: int, tolerance: float) -> list[float]:
    reach = max(1.0, tolerance * math.hypot(*truth.shape))
    prediction = prediction.copy()
    prediction[truth == 255] = 255
    found = []
    for wanted in range(classes):
        true, predicted = outline(truth, wanted), outline(prediction, wanted)
        if not true and not predicted:
            found.append(math.nan)
            continue
        p, r = share_matched(predicted, true, reach), share_matched(true, predicted, reach)
        found.append(0.0 if p + r == 0 else 2 * p * r / (p + r))
    return found


def blobs(random: np.random.Generator, height: int, width: int, classes: int) -> Labels:
    """Discs over each other."""
    labels = np.zeros((height, width), np.uint8)
    y, x = np.ogrid[:height, :width]
    for _ in range(9):
        cy, cx, r = random.uniform(0, height), random.uniform(0, width), random.uniform(2, 14)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = random.integers(0, classes)
    return labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tolerance", [0.0001, DEFAULT_TOLERANCE, 0.02, 0.061])
def test_it_equals_the_slow_reference(seed: int, tolerance: float) -> None:
    random = np.random.default_rng(seed)
    truth = blobs(random, 53, 71, 5)
    prediction = np.roll(truth, int(random.integers(0, 4)), int(random.integers(0, 2)))
    shown = blobs(random, 53, 71, 5)
    prediction[20:33, 30:50] = shown[20:33, 30:50]
    if seed % 2:
        truth[blobs(random, 53, 71, 5) == 3] = 255
    expected = reference(truth, prediction, 6, tolerance)
    assert sum(0 < value < 1 for value in expected) >= 2, "or the comparison says nothing"
    found = boundary_f(truth, prediction, 6, tolerance)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_shift_beyond_the_tolerance_costs_everything() -> None:
    truth, prediction = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    truth[:, 40:] = 1
    prediction[:, 43:] = 1
    assert boundary_f(truth, prediction, 2, 3 / 100).tolist() == [1.0, 1.0]
    assert boundary_f(truth, prediction, 2, 2.9 / 100).tolist() == [0.0, 0.0]


def test_what_is_predicted_in_the_ignored_region_changes_nothing() -> None:
    random = np.random.default_rng(1)
    truth = blobs(random, 40, 50, 4)
    truth[10:30, 10:25] = 255
    prediction = np.where(truth == 255, 0, truth).astype(np.uint8)
    other = prediction.copy()
    other[truth == 255] = random.integers(0, 4, int((truth == 255).sum()))
    assert np.nanmin(boundary_f(truth, prediction, 4)) == 1.0
    np.testing.assert_array_equal(
        boundary_f(truth, other, 4), boundary_f(truth, prediction, 4)
    )  # fmt: skip


def test_a_class_in_one_map_only_gets_nothing_and_one_in_neither_is_left_out() -> None:
    truth, prediction = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[5:9, 5:9] = 1
    prediction[15:19, 15:19] = 2
    found = boundary_f(truth, prediction, 4)
    assert found[1:3].tolist() == [0.0, 0.0]
    assert math.isnan(found[3])
    assert np.isnan(boundary_f(truth * 0, truth * 0, 4)).all(), "the image's edge is no boundary"


def test_the_mean_is_over_images_then_over_classes() -> None:
    total = BoundaryScore(3)
    assert math.isnan(total.mean)
    total.add(np.array([1.0, 0.5, np.nan]))
    total.add(np.array([np.nan, 0.0, np.nan]))
    assert total.classes[:2].tolist() == [1.0, 0.25]
    assert math.isnan(total.classes[2])
    assert total.images.tolist() == [1, 2, 0]
    assert total.mean == 0.625


def test_the_disk_is_euclidean() -> None:
    assert make_disk(1.0).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert make_disk(1.5).tolist() == [[1, 1, 1]] * 3
    assert make_disk(4.5).sum() == sum(
        x * x + y * y <= 4.5**2 for x in range(-5, 6) for y in range(-5, 6)
    )
