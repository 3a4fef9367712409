import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.imaging import interpolation, restore
from serving.imaging.geometry import Size
from serving.imaging.restore import (
    _interpolated,
    confidence_from_logits,
    confidence_reference,
    labels_and_confidence,
    labels_from_logits,
    labels_nearest,
    labels_reference,
    model_labels,
    warm,
)

lengths = st.integers(1, 40)
sizes = st.builds(Size, lengths, lengths)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    warm()


def random_logits(shape, seed, spread=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), lengths, lengths, sizes, sizes, st.integers(0, 2**32))
def test_labels_are_those_of_the_reference(classes, height, width, model, original, seed):
    logits = random_logits((classes, height, width), seed)
    labels = labels_from_logits(logits, model, original)
    expected = labels_reference(logits, model, original)
    assert labels.dtype == np.uint8
    assert labels.shape == (original.height, original.width)
    # A near tie may fall either way in float32; there is not more than one in so few pixels.
    assert (labels != expected).sum() <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), lengths, lengths, sizes, st.integers(0, 2**32))
def test_equal_classes_give_the_lowest_id(classes, height, width, original, seed):
    logits = random_logits((classes, height, width), seed)
    doubled = np.concatenate([logits, logits])
    model = Size(64, 64)
    expected = labels_from_logits(logits, model, original)
    assert np.array_equal(labels_from_logits(doubled, model, original), expected)
    nothing = np.zeros_like(logits)
    assert not labels_from_logits(nothing, model, original).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), lengths, lengths, sizes, sizes, st.integers(0, 2**32))
def test_confidence_is_that_of_the_reference(classes, height, width, model, original, seed):
    logits = random_logits((classes, height, width), seed)
    confidence = confidence_from_logits(logits, model, original)
    expected = confidence_reference(logits, model, original)
    assert confidence.dtype == np.uint8
    assert confidence.shape == (original.height, original.width)
    assert np.abs(confidence.astype(int) - expected).max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), lengths, lengths, sizes, sizes, st.integers(0, 2**32))
def test_confidence_is_rounded_to_the_nearest(classes, height, width, model, original, seed):
    """Half a step at most, but for float32: cut off, it would be a whole one."""
    logits = random_logits((classes, height, width), seed)
    values = _interpolated(logits, model, original)
    exact = 255 / np.exp(values - values.max(axis=0)).sum(axis=0)
    assert np.abs(confidence_from_logits(logits, model, original) - exact).max() < 0.51


@pytest.mark.parametrize(
    ("probability", "steps"),
    [(0.9, 230), (0.8, 204), (0.7, 179), (0.6, 153), (199.6 / 255, 200), (199.4 / 255, 199)],
)
def test_confidence_by_hand(probability, steps):
    """Two classes; 0.9 x 255 is 229.5 but for float32, so a little more is asked for."""
    odds = (probability + 1e-4) / (1 - probability - 1e-4)
    logits = np.zeros((2, 3, 4), np.float32)
    logits[1] = np.log(odds)
    labels, confidence = labels_and_confidence(logits, Size(6, 8), Size(5, 9))
    assert (labels == 1).all()
    assert set(np.unique(confidence)) == {steps}


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), lengths, lengths, sizes, sizes, st.integers(0, 2**32))
def test_both_in_one_pass_are_what_each_is_alone(classes, height, width, model, original, seed):
    logits = random_logits((classes, height, width), seed)
    labels, confidence = labels_and_confidence(logits, model, original)
    assert np.array_equal(labels, labels_from_logits(logits, model, original))
    assert np.array_equal(confidence, confidence_from_logits(logits, model, original))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_rows_of_many_mixed_cells_are_no_different(share):
    """From some share of mixed cells on, a row is interpolated whole."""
    logits = np.zeros((19, 40, 90), np.float32)
    logits[3] = 50
    noisy = round(90 * share)
    logits[:, ::2, :noisy] = random_logits((19, 20, noisy), 8)
    size = Size(160, 360)
    labels = labels_from_logits(logits, size, size)
    assert (labels != labels_reference(logits, size, size)).sum() <= 1
    assert np.array_equal(labels, labels_and_confidence(logits, size, size)[0])


@pytest.mark.parametrize("scale", [0, 1, 30, 1000, 1e30])
def test_confidence_of_extreme_logits(scale):
    logits = random_logits((5, 8, 9), 0) * np.float32(scale)
    size = Size(30, 31)
    confidence = confidence_from_logits(logits, size, size)
    assert np.abs(confidence.astype(int) - confidence_reference(logits, size, size)).max() <= 1


def test_confidence_of_certain_pixels_is_full():
    logits = np.zeros((3, 4, 4), np.float32)
    logits[1] = 100
    assert (confidence_from_logits(logits, Size(16, 16), Size(600, 700)) == 255).all()
    assert (confidence_from_logits(logits[:1], Size(16, 16), Size(6, 7)) == 255).all()


def smooth_logits(classes, height, width):
    """A few broad blobs a class, as a trained network gives them."""
    rng = np.random.default_rng(5)
    coarse = rng.standard_normal((classes, height // 8, width // 8)).astype(np.float32) * 6
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2) + random_logits(
        (classes, height, width), 6, 0.3
    )


@pytest.mark.parametrize("original", [Size(512, 1024), Size(360, 480), Size(701, 1333)])
def test_agreement_at_real_sizes(original):
    logits = smooth_logits(19, 128, 256)
    model = Size(512, 1024)
    labels = labels_from_logits(logits, model, original)
    assert (labels == labels_reference(logits, model, original)).mean() >= 0.9999


@pytest.mark.parametrize(("classes", "kind"), [(255, "uint8"), (256, "uint16"), (700, "uint16")])
def test_as_many_classes_as_a_pixel_holds(classes, kind):
    logits = random_logits((classes, 6, 7), 1)
    size = Size(20, 30)
    labels = labels_from_logits(logits, size, size)
    assert labels.dtype == kind
    assert (labels == labels_reference(logits, size, size)).mean() >= 0.999
    assert labels.max() > 0.8 * classes
    certain = labels_and_confidence(logits, size, size)
    assert [part.dtype for part in certain] == [kind, np.uint8]
    assert np.array_equal(certain[0], labels)
    with pytest.raises(ValueError, match="contiguous, writable"):
        labels_from_logits(logits, size, size, out=np.empty((20, 30), np.int16))


def test_more_classes_than_a_label_map_holds_are_refused():
    with pytest.raises(ValueError, match="at most 65535 classes, not 65536"):
        labels_from_logits(np.zeros((65536, 1, 1), np.float32), Size(1, 1), Size(1, 1))


def test_model_labels_agree_at_the_aligned_corners():
    logits = random_logits((4, 3, 5), 2)
    labels = model_labels(logits, Size(9, 17))
    assert labels.shape == (9, 17)
    assert np.array_equal(labels[::4, ::4], logits.argmax(axis=0))
    assert np.array_equal(model_labels(logits, Size(3, 5)), logits.argmax(axis=0))


def test_labels_are_written_into_out():
    logits = random_logits((4, 3, 5), 2)
    size = Size(9, 17)
    batch = np.full((2, 9, 17), 99, np.uint8)
    out = batch[1]
    assert labels_from_logits(logits, size, size, out=out) is out
    assert np.array_equal(batch[1], model_labels(logits, size))
    assert (batch[0] == 99).all()
    with pytest.raises(ValueError, match="9x17"):
        labels_from_logits(logits, size, size, out=batch[:, :, 0])


def test_logits_may_be_read_only_or_a_view():
    logits = random_logits((3, 5, 4), 3)
    expected = model_labels(logits, Size(20, 16))
    turned = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert np.array_equal(model_labels(turned, Size(20, 16)), expected)
    logits.flags.writeable = False
    assert np.array_equal(model_labels(logits, Size(20, 16)), expected)


def test_no_argument_compiles_anew_after_warm():
    """A request would wait for seconds."""
    size = Size(20, 16)
    for classes in (2, 256):  # labels of one byte, and of two
        restore.warm(classes)
    for logits in (random_logits((3, 5, 4), 3), random_logits((2, 3, 5, 4), 3)[1]):
        for writeable in (True, False):
            logits.flags.writeable = writeable
            labels_from_logits(logits, size, Size(7, 9), out=np.empty((2, 7, 9), np.uint8)[1])
            confidence_from_logits(logits[:, ::2], size, Size(7, 9))
            labels_nearest(logits[0].astype(np.uint8).T, Size(7, 9))
    for loop in (
        interpolation.fill_labels,
        interpolation.fill_labels_and_confidence,
        interpolation.fill_nearest,
    ):
        assert len(loop.signatures) == 2


@pytest.mark.parametrize("shape", [(3, 4), (0, 3, 4), (1, 3, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="C,h,w"):
        labels_from_logits(np.zeros(shape, np.float32), Size(3, 4), Size(3, 4))


def test_other_types_are_refused():
    for function in (labels_from_logits, confidence_from_logits):
        with pytest.raises(ValueError, match="float64"):
            function(np.zeros((3, 4, 5)), Size(3, 4), Size(3, 4))


@settings(max_examples=100, deadline=None)
@given(sizes, sizes, st.integers(0, 2**32))
def test_nearest_reads_the_pixel_that_holds_the_centre(source, original, seed):
    labels = np.random.default_rng(seed).integers(
        0, 256, (source.height, source.width), dtype=np.uint8
    )
    # (y0 + 0.5) * H / H0, in integers.
    rows = (2 * np.arange(original.height) + 1) * source.height // (2 * original.height)
    columns = (2 * np.arange(original.width) + 1) * source.width // (2 * original.width)
    assert np.array_equal(labels_nearest(labels, original), labels[np.ix_(rows, columns)])
