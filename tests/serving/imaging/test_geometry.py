import itertools

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from export.symbols.networks import IMAGENET_MEAN
from serving.imaging.geometry import (
    PADDING,
    RESIZES,
    Augmentation,
    Axis,
    Size,
    Window,
    cut,
    plan,
    prepare,
    source_positions,
)

lengths = st.integers(1, 300)
sizes = st.builds(Size, st.integers(1, 90), st.integers(1, 90))
ways = st.sampled_from(RESIZES)
overlaps = st.floats(0, 0.5)
augmentations = st.builds(
    lambda scales, flip: Augmentation(tuple(sorted({1.0, *scales})), flip),
    st.lists(st.floats(0.25, 4), max_size=2),
    st.booleans(),
)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_size_survives_its_text(height, width):
    assert Size.parse(str(Size(height, width))) == Size(height, width)


def test_a_size_is_height_first():
    assert Size.parse("352x480") == Size(height=352, width=480)
    assert str(Size(height=352, width=480)) == "352x480"
    assert Size(352, 480).pixels == 352 * 480


@pytest.mark.parametrize("text", ["", "352", "352x", "x480", "0x5", "-1x5", "3.5x4", "352*480"])
def test_a_text_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
        Size.parse(text)


def test_an_empty_size_is_refused():
    with pytest.raises(ValueError, match="0x3"):
        Size(0, 3)


def test_stretch_is_one_view_of_the_whole_image():
    view = plan(Size(3, 4), Size(5, 6)).only_view
    assert (view.canvas, view.whole, view.flip, view.share) == (Size(5, 6), True, False, 1.0)


def test_unknown_ways_and_overlaps_are_refused():
    with pytest.raises(ValueError, match="stretch, letterbox, tile"):
        plan(Size(3, 4), Size(5, 6), "crop")
    for overlap in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match=r"0 to 0\.5"):
            plan(Size(3, 4), Size(5, 6), "tile", tile_overlap=overlap)


@given(sizes, sizes)
def test_letterbox_keeps_the_aspect_and_centres(original, model):
    view = plan(original, model, "letterbox").only_view
    canvas = view.canvas
    assert canvas.height <= model.height
    assert canvas.width <= model.width
    factor = min(model.height / original.height, model.width / original.width)
    assert abs(canvas.height - max(1, factor * original.height)) <= 0.5
    assert abs(canvas.width - max(1, factor * original.width)) <= 0.5
    assert canvas.height == model.height or canvas.width == model.width
    for content, length in zip(view.content, (model.height, model.width), strict=True):
        assert 0 <= (length - content.stop) - content.start <= 1


@settings(deadline=None)
@given(sizes, sizes, ways, overlaps, augmentations)
def test_the_views_of_a_plan(original, model, way, overlap, augmentation):
    """As many as it says, from the top downwards, and their shares of each pixel make one."""
    made = plan(original, model, way, tile_overlap=overlap, augmentation=augmentation)
    assume(made.view_count <= 60)
    assert len(made.views) == made.view_count
    firsts = [view.rows.reach(original.height)[0] for view in made.views]
    assert np.diff(firsts).min(initial=0) >= -1  # windows of different scales: rounding
    total = np.zeros((original.height, original.width))
    for grid in made.grids:
        columns = grid.columns.windows(), grid.columns.weights(original.width)
        for row, down in zip(grid.rows.windows(), grid.rows.weights(original.height), strict=True):
            for column, across in zip(*columns, strict=True):
                part = (slice(*row.reach(original.height)), slice(*column.reach(original.width)))
                total[part] += np.outer(down, across)
    np.testing.assert_allclose(total, len(made.grids), rtol=1e-5)
    sides = 2 if augmentation.flip else 1
    assert all(view.share == 1 / (sides * len(made.grids)) for view in made.views)


def test_an_image_that_fits_is_one_tile_in_its_own_pixels(image):
    exact = plan(Size(30, 40), Size(30, 40), "tile")
    assert exact.only_view.whole
    assert prepare(image, exact) is image
    smaller = plan(Size(30, 40), Size(33, 44), "tile")
    shown = prepare(image, smaller)
    np.testing.assert_array_equal(shown[1:31, 2:42], image)
    beside = np.ones((33, 44), bool)
    beside[1:31, 2:42] = False
    assert (shown[beside] == PADDING).all()


def test_padding_is_the_mean_that_networks_subtract():
    """Red, green and blue as in an image."""
    assert PADDING == tuple(round(255 * mean) for mean in IMAGENET_MEAN) == (124, 116, 104)


@pytest.mark.parametrize(
    ("canvas", "overlap", "count"),
    [(40, 10, 1), (41, 10, 2), (70, 10, 2), (71, 10, 3), (80, 0, 2), (81, 0, 3), (39, 20, 1)],
)
def test_as_few_windows_as_the_overlap_allows(canvas, overlap, count):
    axis = Axis(canvas, 40, overlap)
    windows = axis.windows()
    assert axis.count == len(windows) == count
    assert windows[0].start == 0
    assert windows[-1].start + windows[-1].length == canvas
    for one, other in itertools.pairwise(windows):
        assert one.fall == other.rise == one.start + one.length - other.start >= overlap
    assert (windows[0].rise, windows[-1].fall) == (0, 0)


def test_windows_that_overlap_by_their_length_are_refused():
    for canvas, model, overlap in ((0, 4, 0), (4, 0, 0), (4, 4, 4), (4, 4, -1)):
        with pytest.raises(ValueError, match="less than their length"):
            Axis(canvas, model, overlap)


def test_a_longer_image_is_covered_evenly():
    made = plan(Size(10, 100), Size(10, 40), "tile", tile_overlap=0.25)
    windows = made.grids[0].columns.windows()
    assert [(w.start, w.length, w.rise, w.fall) for w in windows] == [
        (0, 40, 0, 10),
        (30, 40, 10, 10),
        (60, 40, 10, 0),
    ]


@pytest.mark.parametrize("shared", [2, 8])
def test_windows_fade_into_one_another_by_squared_sines(shared):
    """Half in the middle of what they share, sin^2(pi/8) a quarter in."""
    first = Window(canvas=40, model=24, start=0, length=24, fall=shared)
    second = Window(canvas=40, model=24, start=24 - shared, length=24, rise=shared)
    fine = 4000  # a hundred pixels of the image each pixel of the canvas
    weights = np.zeros((2, fine))
    for weight, window in zip(weights, (first, second), strict=True):
        weight[slice(*window.reach(fine))] = window.taper(fine)

    def at(pixels):
        """Weights where ``pixels`` of what is shared lie behind."""
        return weights[:, round((24 - shared + pixels) * 100)]

    assert at(shared / 2) == pytest.approx([0.5, 0.5], abs=0.01)
    quarter = np.sin(np.pi / 8) ** 2
    assert at(shared / 4) == pytest.approx([1 - quarter, quarter], abs=0.01)
    assert at(3 * shared / 4) == pytest.approx([quarter, 1 - quarter], abs=0.01)
    np.testing.assert_allclose(weights.sum(0)[: 46 * 100 - 600], 1.0, atol=1e-9)
    assert (weights[0, : (24 - shared) * 100] == 1).all()
    assert (weights[1, 24 * 100 :] == 1).all()


def test_scales_multiply_the_canvas():
    scales = Augmentation((0.5, 1.0, 1.5))
    made = plan(Size(40, 40), Size(20, 30), "stretch", augmentation=scales)
    assert {view.canvas for view in made.views} == {Size(10, 15), Size(20, 30), Size(30, 45)}
    tiled = plan(Size(40, 40), Size(20, 30), "tile", augmentation=scales)
    assert {view.canvas for view in tiled.views} == {Size(20, 20), Size(40, 40), Size(60, 60)}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_prepare_returns_the_image_itself_at_the_same_size(image):
    assert prepare(image, plan(Size(30, 40), Size(30, 40))) is image


@pytest.mark.parametrize("model", [Size(16, 24), Size(60, 41), Size(1, 1)])
def test_prepare_stretches_with_half_pixel_centres(image, model):
    expected = cv2.resize(image, (model.width, model.height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(prepare(image, plan(Size(30, 40), model)), expected)


@settings(deadline=None)
@given(sizes, sizes, ways, overlaps, augmentations)
def test_a_pixel_lies_in_a_view_where_cutting_put_it(original, model, way, overlap, augmentation):
    """The inverse is exact: with a position for each pixel of the input, it finds the canvas."""
    made = plan(original, model, way, tile_overlap=overlap, augmentation=augmentation)
    assume(made.view_count <= 20)
    for view in made.views:
        canvas = view.canvas
        # Each pixel of the canvas says where it is: its row, its column (from 1: 0 is padding).
        where = np.zeros((canvas.height, canvas.width, 3), np.uint8)
        where[..., :2] = np.stack(np.mgrid[: canvas.height, : canvas.width], -1) % 255 + 1
        shown = cut(where, view)
        assert shown.shape == (model.height, model.width, 3)
        rows, columns = view.rows, view.columns
        y = rows.positions(canvas.height, model.height)
        x = columns.positions(canvas.width, model.width, view.flip)
        inside = np.ix_(range(*rows.reach(canvas.height)), range(*columns.reach(canvas.width)))
        read = shown[np.rint(y).astype(int)][:, np.rint(x).astype(int)]
        np.testing.assert_array_equal(read[inside], where[inside])


def test_a_cut_view_shows_its_window(image):
    made = plan(Size(30, 40), Size(16, 24), "tile", augmentation=Augmentation(flip=True))
    for view in made.views:
        shown = cut(image, view)
        assert shown.shape == (16, 24, 3)
        assert shown.flags.c_contiguous
        expected = image[view.rows.start :, view.columns.start :][:16, :24]
        np.testing.assert_array_equal(shown, expected[:, ::-1] if view.flip else expected)


def test_prepare_refuses_other_sizes(image):
    with pytest.raises(ValueError, match="31x40"):
        prepare(image, plan(Size(31, 40), Size(16, 24)))
    with pytest.raises(ValueError, match="6 views of 16x24"):
        prepare(image, plan(Size(30, 40), Size(16, 24), "tile"))


@given(lengths, lengths, lengths)
def test_positions_are_ascending_symmetric_and_inside(original, model, logits):
    positions = source_positions(original, model, logits)
    assert positions.shape == (original,)
    assert positions.dtype == np.float64
    assert positions.min() >= 0
    assert positions.max() <= logits - 1
    assert (np.diff(positions) >= 0).all()
    if model > 1:
        mirrored = logits - 1 - positions[::-1]
        assert np.allclose(positions, mirrored, atol=1e-9)


@given(st.integers(2, 300), lengths)
def test_at_the_model_s_size_the_corners_are_aligned(model, logits):
    expected = np.linspace(0, logits - 1, model)
    assert np.allclose(source_positions(model, model, logits), expected, atol=1e-9)


@given(lengths, st.integers(2, 300))
def test_full_resolution_logits_invert_the_resize(original, model):
    """With as many logits as pixels only the resize remains, in half-pixel centres."""
    expected = (np.arange(original) + 0.5) * model / original - 0.5
    positions = source_positions(original, model, model)
    assert np.allclose(positions, np.clip(expected, 0, model - 1), atol=1e-9)


def test_a_single_position_is_read_everywhere():
    assert not source_positions(7, 5, 1).any()
    assert not source_positions(7, 1, 5).any()
