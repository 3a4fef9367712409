"""The label map of a letterboxed or stretched image: what is read, and where."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from serving.imaging import restore
from serving.imaging.geometry import Size, View, plan
from serving.imaging.restore import (
    Prediction,
    labels_suffice,
    restore_labels,
    restore_labels_and_confidence,
)

MODEL, CLASSES = Size(24, 40), 5
# A bar above and below, or left and right; or none.
WIDE, TALL = Size(30, 100), Size(100, 30)


def view_of(original: Size, resize: str = "letterbox") -> View:
    return plan(original, MODEL, resize).only_view


def random_logits(height: int, width: int, seed: int = 3) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return random.normal(size=(CLASSES, height, width)).astype(np.float32) * 4


@pytest.mark.parametrize("original", [WIDE, TALL, Size(48, 80)])
def test_a_letterboxed_mask_is_read_without_its_bars(original: Size) -> None:
    """Bars have a class of their own: none of it may come back."""
    view = view_of(original)
    rows, columns = view.content
    mask = np.full((MODEL.height, MODEL.width), 99, np.uint8)
    inner = np.random.default_rng(0).integers(
        0, CLASSES, (rows.stop - rows.start, columns.stop - columns.start), np.uint8
    )
    mask[rows, columns] = inner
    found = restore_labels(Prediction(None, mask), view, original)
    assert found.shape == (original.height, original.width)
    np.testing.assert_array_equal(found, restore.labels_nearest(inner, original))


@pytest.mark.parametrize("original", [WIDE, TALL])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("smooth", [None, True])
def test_logits_are_interpolated_at_the_views_positions(
    original: Size, resize: str, smooth: bool | None
) -> None:
    view, logits = view_of(original, resize), random_logits(7, 11)
    found = restore_labels(Prediction(logits, None), view, original, smooth)
    expected = restore.labels_at(
        logits,
        view.rows.positions(original.height, 7),
        view.columns.positions(original.width, 11),
    )
    np.testing.assert_array_equal(found, expected)
    labels, confidence = restore_labels_and_confidence(
        Prediction(logits, None), view, original, smooth
    )
    np.testing.assert_array_equal(labels, expected)
    assert confidence.shape == labels.shape


@pytest.mark.parametrize("original", [WIDE, TALL])
def test_without_smooth_ids_are_repeated_but_confidence_is_interpolated(original: Size) -> None:
    view, logits = view_of(original), random_logits(7, 11)
    prediction = Prediction(logits, None)
    ids = restore.model_labels(logits, MODEL)
    expected = restore.labels_nearest(ids[view.content], original)
    smooth, confidence = restore_labels_and_confidence(prediction, view, original)
    labels, same = restore_labels_and_confidence(prediction, view, original, False)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(restore_labels(prediction, view, original, False), expected)
    np.testing.assert_array_equal(same, confidence)
    assert (labels != smooth).any()


@pytest.mark.parametrize(
    ("resize", "original", "target", "suffices"),
    [
        ("stretch", WIDE, MODEL, True),  # the network's own size is asked for
        ("stretch", WIDE, Size(24, 41), False),
        ("stretch", WIDE, Size(25, 40), False),
        ("letterbox", WIDE, MODEL, False),  # its rows are bars in part
        ("letterbox", WIDE, Size(12, 40), True),
        ("letterbox", TALL, Size(24, 7), True),
        ("letterbox", TALL, MODEL, False),
    ],
)
def test_labels_suffice_where_no_pixel_lies_between_two(
    resize: str, original: Size, target: Size, suffices: bool
) -> None:
    view = view_of(original, resize)
    assert labels_suffice(view, target) is suffices
    assert labels_suffice(view, target, True) is suffices
    assert labels_suffice(view, target, False) is True
