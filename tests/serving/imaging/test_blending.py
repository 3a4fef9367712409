"""Blended views against the whole image, with a network whose logits follow from single pixels."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.imaging import blending, restore
from serving.imaging.blending import Blender
from serving.imaging.geometry import RESIZES, Augmentation, Plan, Size, cut, plan, scale

Logits = npt.NDArray[np.float32]
CLASSES = 5

sizes = st.builds(Size, st.integers(1, 60), st.integers(1, 60))
augmentations = st.builds(
    lambda scales, flip: Augmentation(tuple(sorted({1.0, *scales})), flip),
    st.lists(st.floats(0.5, 2), max_size=2),
    st.booleans(),
)


def local_logits(pixels: npt.NDArray[np.uint8]) -> Logits:
    """Float32 ``[C,H,W]``: linear in each pixel's own colour."""
    mix = np.random.default_rng(5).normal(size=(CLASSES, 3))
    return np.ascontiguousarray(np.einsum("ck,yxk->cyx", mix, pixels / 32.0), np.float32)


def photo_of(size: Size, seed: int = 0) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size.height, size.width, 3), np.uint8)


def blend(
    photo: npt.NDArray[np.uint8],
    made: Plan,
    order: list[int] | None = None,
    confidence: bool = True,
) -> Blender:
    blender = Blender(made, made.original, made.model, confidence)
    for index in order or range(len(made.views)):
        view = made.views[index]
        blender.add(index, local_logits(cut(scale(photo, view.canvas), view)))
        if blender.can_advance:
            blender.advance()
    return blender


def blended_reference(photo: npt.NDArray[np.uint8], made: Plan) -> npt.NDArray[np.float64]:
    """The mean of every view's logits, float64 ``[C,H0,W0]``, one operation after the other."""
    height, width = made.original.height, made.original.width
    total = np.zeros((CLASSES, height, width))
    for view in made.views:
        grid = next(
            g
            for g in made.grids
            if (g.rows.canvas, g.columns.canvas) == (view.canvas.height, view.canvas.width)
        )
        down = grid.rows.weights(height)[grid.rows.windows().index(view.rows)]
        across = grid.columns.weights(width)[grid.columns.windows().index(view.columns)]
        values = local_logits(cut(scale(photo, view.canvas), view)).astype(np.float64)
        y = view.rows.positions(height, made.model.height)[slice(*view.rows.reach(height))]
        x = view.columns.positions(width, made.model.width, view.flip)
        values = _interpolate(values, y, x[slice(*view.columns.reach(width))])
        part = (slice(*view.rows.reach(height)), slice(*view.columns.reach(width)))
        total[:, part[0], part[1]] += view.share * np.outer(down, across) * values
    return total


def _interpolate(
    values: npt.NDArray[np.float64], y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    for axis, where in ((1, y), (2, x)):
        low = np.floor(where).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        part = (where - low).reshape((-1, 1) if axis == 1 else (1, -1))
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


def assert_labels_are_of(labels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float64]) -> None:
    """Each label's logit is the largest, but for rounding."""
    chosen = np.take_along_axis(logits, labels[None].astype(int), 0)[0]
    assert (logits.max(0) - chosen).max() < 1e-4


@settings(deadline=None)
@given(sizes, sizes, st.sampled_from(RESIZES), st.floats(0, 0.5), augmentations, st.randoms())
def test_blending_is_the_weighted_mean_of_logits(
    original, model, way, overlap, augmentation, random
):
    made = plan(original, model, way, tile_overlap=overlap, augmentation=augmentation)
    assume(made.view_count <= 60)
    order = list(range(made.view_count))
    random.shuffle(order)
    photo = photo_of(original)
    blender = blend(photo, made, order)
    assert blender.complete_rows == original.height
    assert blender.held_bytes == 0
    expected = blended_reference(photo, made)
    assert_labels_are_of(blender.labels, expected)
    powers = np.exp(expected - expected.max(0))
    np.testing.assert_allclose(blender.confidence, 255 / powers.sum(0), atol=0.6)


@pytest.mark.parametrize("way", RESIZES)
@pytest.mark.parametrize("original", [Size(37, 150), Size(150, 37), Size(18, 200)])
def test_blocks_are_put_beside_and_below_each_other(monkeypatch, way, original):
    """Of 64 columns and 16 rows, as images have them that are wide or of many classes."""
    monkeypatch.setattr(blending, "BLOCK_BYTES", 0)
    augmentation = Augmentation((0.75, 1.0), flip=True)
    made = plan(original, Size(20, 90), way, augmentation=augmentation)
    photo = photo_of(original)
    blender = blend(photo, made)
    expected = blended_reference(photo, made)
    assert_labels_are_of(blender.labels, expected)
    # Where no confidence is asked for, another loop writes the labels.
    assert_labels_are_of(blend(photo, made, confidence=False).labels, expected)
    powers = np.exp(expected - expected.max(0))
    np.testing.assert_allclose(blender.confidence, 255 / powers.sum(0), atol=0.6)


@settings(deadline=None)
@given(sizes, sizes, st.floats(0, 0.5))
def test_tiles_equal_the_whole_image(original, model, overlap):
    """Where logits follow from the pixels alone, no seam is to be seen."""
    made = plan(original, model, "tile", tile_overlap=overlap)
    assume(made.view_count <= 100)
    photo = photo_of(original)
    whole = local_logits(photo)
    assert_labels_are_of(blend(photo, made).labels, whole.astype(np.float64))


@settings(deadline=None)
@given(sizes, sizes)
def test_a_mirrored_image_has_the_mirrored_answer(original, model):
    flip = Augmentation(flip=True)
    made = plan(original, model, "stretch", augmentation=flip)
    photo = photo_of(original)
    logits = blended_reference(photo, made)
    mirrored = blend(np.ascontiguousarray(photo[:, ::-1]), made)
    # The resize rounds to bytes, alike on both sides but for half-way cases.
    close = np.take_along_axis(logits, mirrored.labels[None, :, ::-1].astype(int), 0)[0]
    assert (logits.max(0) - close).max() < 0.5


def test_one_view_is_restored_as_it_is_without_blending():
    model, original = Size(24, 32), Size(50, 70)
    logits = np.random.default_rng(1).normal(size=(CLASSES, 6, 8)).astype(np.float32)
    made = plan(original, model)
    blender = Blender(made, original, Size(6, 8), confidence=True)
    blender.add(0, logits)
    blender.advance()
    labels, confidence = restore.labels_and_confidence(logits, model, original)
    assert (blender.labels == labels).mean() > 0.999
    assert np.abs(blender.confidence.astype(int) - confidence).max() <= 1


def test_rows_are_labels_as_soon_as_they_are_complete():
    model = Size(20, 30)
    made = plan(Size(95, 30), model, "tile", tile_overlap=0.25)
    assert made.view_count == 6
    photo = photo_of(Size(95, 30))
    blender = Blender(made, made.original, model)
    done = []
    for index, view in enumerate(made.views):
        blender.add(index, local_logits(cut(photo, view)))
        blender.advance()
        done.append(blender.complete_rows)
        # One row of tiles at most waits for the next.
        assert blender.held_bytes <= 4 * CLASSES * 20 * 30
    assert done == [15, 30, 45, 60, 75, 95]


def test_memory_is_bounded_by_rows_of_tiles():
    """A tall image: its logits, interpolated, would take 38 MB; the blender takes 3."""
    model, logits, original = Size(64, 64), Size(16, 16), Size(8192, 128)
    made = plan(original, model, "tile")
    rng = np.random.default_rng(0)
    answers = rng.normal(size=(4, 9, 16, 16)).astype(np.float32)
    blender = Blender(made, original, logits)
    highest_held = 0
    tracemalloc.start()
    try:
        for index in range(len(made.views)):
            blender.add(index, answers[index % 4].copy())
            highest_held = max(highest_held, blender.held_bytes)
            if blender.can_advance:
                blender.advance()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    in_a_row = made.grids[0].columns.count
    assert blender.complete_rows == 8192
    assert highest_held <= 2 * in_a_row * answers[0].nbytes
    assert peak < 3e6
    assert 10 * peak < 4 * 9 * 8192 * 128


def test_a_view_counts_once():
    made = plan(Size(4, 4), Size(4, 4))
    blender = Blender(made, Size(4, 4), Size(4, 4))
    blender.add(0, np.zeros((2, 4, 4), np.float32))
    with pytest.raises(KeyError):
        blender.add(0, np.zeros((2, 4, 4), np.float32))
