import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.geometry import Plan, Size, plan, prepare, source_positions

lengths = st.integers(1, 300)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_size_survives_its_text(height, width):
    assert Size.parse(str(Size(height, width))) == Size(height, width)


def test_a_size_is_height_first():
    assert Size.parse("352x480") == Size(height=352, width=480)
    assert str(Size(height=352, width=480)) == "352x480"


@pytest.mark.parametrize("text", ["", "352", "352x", "x480", "0x5", "-1x5", "3.5x4", "352*480"])
def test_a_text_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
        Size.parse(text)


def test_an_empty_size_is_refused():
    with pytest.raises(ValueError, match="0x3"):
        Size(0, 3)


def test_stretch_is_the_only_way_so_far():
    assert plan(Size(3, 4), Size(5, 6)) == Plan(Size(3, 4), Size(5, 6))
    for way in ("letterbox", "tile"):
        with pytest.raises(ValueError, match=f"{way}.*not supported yet"):
            plan(Size(3, 4), Size(5, 6), way)
    with pytest.raises(ValueError, match="stretch, letterbox, tile"):
        plan(Size(3, 4), Size(5, 6), "crop")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_prepare_returns_the_image_itself_at_the_same_size(image):
    assert prepare(image, plan(Size(30, 40), Size(30, 40))) is image


@pytest.mark.parametrize("model", [Size(30, 40), Size(16, 24), Size(60, 41), Size(1, 1)])
def test_prepare_fills_a_slot_of_a_batch(image, model):
    batch = np.zeros((3, model.height, model.width, 3), np.uint8)
    slot = batch[1]
    given_plan = plan(Size(30, 40), model)
    assert prepare(image, given_plan, slot) is slot
    expected = cv2.resize(image, (model.width, model.height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(batch[1], expected)
    assert not batch[0].any()
    assert not batch[2].any()
    assert np.array_equal(prepare(image, given_plan), expected)


def test_prepare_fills_a_slot_that_is_not_contiguous(image):
    wide = np.zeros((16, 48, 3), np.uint8)
    prepare(image, plan(Size(30, 40), Size(16, 24)), wide[:, ::2])
    expected = cv2.resize(image, (24, 16), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(wide[:, ::2], expected)


def test_prepare_refuses_other_sizes(image):
    with pytest.raises(ValueError, match="31x40"):
        prepare(image, plan(Size(31, 40), Size(16, 24)))
    with pytest.raises(ValueError, match="16x24"):
        prepare(image, plan(Size(30, 40), Size(16, 24)), np.zeros((24, 16, 3), np.uint8))


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
