"""Polygons, read and drawn back by shapely."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import shape

from serving.errors import InvalidRequest
from serving.formats import polygons, rings, simplification
from serving.formats.label_map import MaskOptions
from serving.formats.polygons import write_polygons
from serving.formats.regions import find_regions
from tests.support.mask_views import blob_labels, citys_view

PLAIN = MaskOptions()

blobs = st.builds(
    blob_labels,
    st.integers(1, 45),
    st.integers(1, 45),
    st.integers(1, 5),
    st.integers(0, 2**32),
    st.sampled_from([0, 0.6, 1, 2, 4]),
)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    polygons.warm()


def read(labels, options=PLAIN):
    """The features' properties and shapes; all shapes are valid, with the RFC's winding."""
    answer = json.loads(write_polygons(citys_view(labels), options).body)
    assert answer["type"] == "FeatureCollection"
    assert (answer["height"], answer["width"]) == labels.shape
    features = []
    for feature in answer["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid, shapely.is_valid_reason(polygon)
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
        features.append(({**feature["properties"], "id": feature["id"]}, polygon))
    return features


def drawn(features, like):
    """Class ids at the pixels' centres, 255 where no polygon is."""
    y, x = np.mgrid[: like.shape[0], : like.shape[1]] + 0.5
    image = np.full(like.shape, 255, np.uint8)
    for properties, polygon in features:
        image[shapely.contains_xy(polygon, x, y)] = properties["class_id"]
    return image


@settings(max_examples=150, deadline=None)
@given(blobs)
def test_drawing_the_polygons_gives_the_mask_again(labels):
    features = read(labels)
    assert np.array_equal(drawn(features, labels), labels)
    for properties, polygon in features:
        assert properties["area"] == polygon.area
    assert len(features) == count_regions(labels)


def count_regions(labels):
    """By flooding, pixel by pixel."""
    left, count = set(np.ndindex(labels.shape)), 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if other in left and labels[other] == labels[y, x]:
                    left.remove(other)
                    stack.append(other)
    return count


@settings(max_examples=200, deadline=None)
@given(blobs, st.sampled_from([0.5, 0.8, 1, 1.5, 2, 3, 6, 40]))
def test_simplified_polygons_stay_valid_and_cover_the_image_once(labels, tolerance):
    features = read(labels, MaskOptions(tolerance=tolerance))
    shapes = [polygon for _, polygon in features]
    # Neither gaps nor overlaps: slivers that vanish leave neither.
    assert sum(polygon.area for polygon in shapes) == labels.size
    assert shapely.union_all(shapes).area == pytest.approx(labels.size)
    edges = shapely.union_all([polygon.boundary for _, polygon in read(labels)])
    points = shapely.points(np.concatenate([shapely.get_coordinates(p) for p in shapes]))
    assert (shapely.distance(points, edges) == 0).all()


def test_the_dropped_points_are_within_the_tolerance():
    labels = blob_labels(120, 160, 4, 7, 6)
    exact = {properties["id"]: polygon for properties, polygon in read(labels)}
    counts = [sum(shapely.get_num_coordinates(p) for p in exact.values())]
    for tolerance in (1, 3):
        features = read(labels, MaskOptions(tolerance=tolerance))
        simple = {properties["id"]: polygon for properties, polygon in features}
        assert simple.keys() <= exact.keys()
        for region, polygon in exact.items():
            if region in simple:
                outside = shapely.hausdorff_distance(polygon.exterior, simple[region].exterior)
                assert outside <= tolerance + 1e-9
            else:
                # It was at most so wide that its two sides met.
                assert polygon.buffer(-tolerance).is_empty
        counts.append(sum(shapely.get_num_coordinates(p) for p in simple.values()))
    assert counts[0] > 2 * counts[1] > 3 * counts[2]


def test_holes_and_touching_corners():
    ring = np.array([[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 0, 0], [0, 0, 0, 0]], np.uint8)
    features = read(ring)
    assert [properties["class_id"] for properties, _ in features] == [0, 1, 2, 3]
    assert len(features[0][1].interiors) == 1
    # The hole's corner meets the outside: two rings that touch in a point.
    pocket = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1]], np.uint8)
    assert np.array_equal(drawn(read(pocket), pocket), pocket)
    assert len(read(pocket)) == 3


def test_the_corners_are_pixel_edges():
    labels = np.full((5, 6), 255, np.uint8)
    labels[1:3, 2:5] = 13
    body = json.loads(write_polygons(citys_view(labels), PLAIN).body)
    (feature,) = body["features"]
    (ring,) = feature["geometry"]["coordinates"]
    assert sorted(map(tuple, ring[:-1])) == [(2, 1), (2, 3), (5, 1), (5, 3)]
    assert ring[0] == ring[-1]
    assert feature["properties"] == {"class_id": 13, "class": "car", "area": 6}
    assert feature["id"] == 1


def test_scores_are_the_regions_mean_confidence():
    labels = blob_labels(40, 50, 3, 3, 3)
    view = citys_view(labels)
    body = write_polygons(view, MaskOptions(confidence=True)).body
    y, x = np.mgrid[:40, :50] + 0.5
    for feature in json.loads(body)["features"]:
        inside = shapely.contains_xy(shape(feature["geometry"]), x, y)
        expected = view.confidence[inside].mean() / 255
        assert feature["properties"]["score"] == pytest.approx(expected, abs=1e-4)


def test_small_regions_are_left_out():
    labels = blob_labels(60, 60, 4, 5, 1)
    everything = read(labels)
    large = read(labels, MaskOptions(min_area=30))
    assert 0 < len(large) < len(everything)
    assert [p for p, _ in large] == [p for p, _ in everything if p["area"] >= 30]
    assert read(labels, MaskOptions(min_area=9999)) == []
    assert read(labels, MaskOptions(min_area=9999, tolerance=2)) == []


def test_too_many_regions_are_refused_with_the_remedy():
    labels = blob_labels(60, 60, 4, 5, 0.6)
    with pytest.raises(InvalidRequest, match=r"at most 50 polygons.*max_polygons.*min_area"):
        write_polygons(citys_view(labels), MaskOptions(max_polygons=50))
    assert read(labels, MaskOptions(max_polygons=50, min_area=30))


def test_regions_are_in_the_order_of_their_first_pixels():
    regions = find_regions(np.array([[3, 3, 1], [3, 1, 1], [1, 3, 3]], np.uint8))
    assert regions.label.tolist() == [3, 1, 1, 3]
    assert regions.area.tolist() == [3, 3, 1, 2]
    assert regions.confidence_sum.tolist() == [0, 0, 0, 0]


def test_nothing_compiles_anew_after_warm():
    labels = blob_labels(30, 20, 4, 2, 2)
    labels.flags.writeable = False
    for part in (labels, labels[::2, 3:]):
        for options in (PLAIN, MaskOptions(tolerance=2, confidence=True, min_area=3)):
            write_polygons(citys_view(part), options)
    for loop in (rings._trace, simplification._choose, polygons._write, polygons._doubled_areas):
        assert len(loop.signatures) == 1
