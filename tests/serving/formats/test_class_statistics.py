import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.formats.class_statistics import ClassShare, class_statistics

maps = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def test_every_named_class_is_listed_and_no_other_id():
    labels = np.array([[0, 0, 2], [255, 2, 2]], np.uint8)
    assert class_statistics(labels, ("road", "car", "sky")) == (
        ClassShare(0, "road", 2, 2 / 6, None),
        ClassShare(1, "car", 0, 0.0, None),
        ClassShare(2, "sky", 3, 3 / 6, None),
    )


def test_mean_confidence_is_over_the_pixels_of_the_class():
    labels = np.array([[0, 0, 2]], np.uint8)
    confidence = np.array([[255, 0, 51]], np.uint8)
    shares = class_statistics(labels, ("road", "car", "sky"), confidence)
    assert [share.mean_confidence for share in shares] == [0.5, None, 0.2]


@given(maps, st.randoms(use_true_random=False))
def test_against_numpy(labels, random):
    confidence = np.frombuffer(random.randbytes(labels.size), np.uint8).reshape(labels.shape)
    names = tuple(str(k) for k in range(255))
    for share in class_statistics(labels, names, confidence):
        chosen = labels == share.id
        assert share.pixels == chosen.sum()
        assert share.share == share.pixels / labels.size
        if share.pixels:
            assert share.mean_confidence == pytest.approx(confidence[chosen].mean() / 255)
        else:
            assert share.mean_confidence is None


def test_views_and_read_only_maps():
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)[:, ::2]
    labels.flags.writeable = False
    shares = class_statistics(labels, tuple("abc"), labels)
    assert [share.pixels for share in shares] == [1, 0, 1]


def test_a_confidence_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        class_statistics(np.zeros((2, 2), np.uint8), ("a",), np.zeros((2, 3), np.uint8))
