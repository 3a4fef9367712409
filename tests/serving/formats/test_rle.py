"""Run lengths, decoded by pycocotools."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from serving.formats import rle
from serving.formats.label_map import MaskOptions
from serving.formats.rle import write_rle
from tests.support.mask_views import blob_labels, citys_view

PLAIN = MaskOptions()


@pytest.fixture(scope="module", autouse=True)
def compiled():
    rle.warm()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32),
    st.sampled_from([0, 1, 5]), st.sampled_from([1, 40]),
)  # fmt: skip
def test_counts_are_those_of_pycocotools(height, width, classes, seed, smoothness, scale):
    labels = blob_labels(height, width, classes, seed, smoothness)
    labels = np.kron(labels, np.ones((scale, 1), np.uint8))
    answer = json.loads(write_rle(citys_view(labels), PLAIN).body)
    assert (answer["height"], answer["width"]) == labels.shape
    assert [entry["category_id"] for entry in answer["annotations"]] == np.unique(labels).tolist()
    for entry in answer["annotations"]:
        mask = labels == entry["category_id"]
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert entry["segmentation"]["counts"] == expected["counts"].decode()
        assert entry["bbox"] == coco.toBbox(expected).tolist()
        assert entry["area"] == coco.area(expected)
        assert np.array_equal(coco.decode(entry["segmentation"]), mask)


def test_names_and_scores():
    view = citys_view(blob_labels(40, 50, 3, 1, 3))
    answer = json.loads(write_rle(view, MaskOptions(confidence=True)).body)
    assert [entry["category_name"] for entry in answer["annotations"]] == list(view.names[:3])
    for entry in answer["annotations"]:
        certain = view.confidence[view.labels == entry["category_id"]]
        assert entry["score"] == pytest.approx(certain.mean() / 255, abs=1e-4)
    assert "score" not in json.loads(write_rle(view, PLAIN).body)["annotations"][0]


def test_pixels_without_a_class_have_no_mask():
    labels = np.full((4, 5), 255, np.uint8)
    assert json.loads(write_rle(citys_view(labels), PLAIN).body)["annotations"] == []
    labels[1, 2] = 7
    (entry,) = json.loads(write_rle(citys_view(labels), PLAIN).body)["annotations"]
    assert (entry["category_id"], entry["area"], entry["bbox"]) == (7, 1, [2, 1, 1, 1])


def test_a_view_of_another_order_is_taken():
    labels = blob_labels(30, 20, 4, 2, 2)
    turned = citys_view(np.asfortranarray(labels))
    assert write_rle(turned, PLAIN).body == write_rle(citys_view(labels), PLAIN).body


def test_nothing_compiles_anew_after_warm():
    labels = blob_labels(30, 20, 4, 2, 2)
    labels.flags.writeable = False
    write_rle(citys_view(labels), PLAIN)
    write_rle(citys_view(labels[::2, 3:]), PLAIN)
    assert len(rle._encode_columns.signatures) == 1
