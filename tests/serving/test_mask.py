import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from serving import png
from serving.errors import InvalidRequest
from serving.mask import FORMATS, Encoded, MaskView, encode, format_for_accept, warm
from serving.palette import IGNORE_COLOR, load_labels, plte

CITYS = load_labels("citys")


@pytest.fixture(scope="module")
def view():
    warm()
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 19, (6, 8)), np.ones((7, 9), int)).astype(np.uint8)
    labels[:4, :5] = 255
    return MaskView(
        labels,
        CITYS.names,
        CITYS.colors,
        image=rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8),
        confidence=rng.integers(0, 256, labels.shape, dtype=np.uint8),
    )


def opened(body):
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


def test_png_holds_the_ids_and_the_palette(view):
    answer = encode(view, "png")
    assert answer.media_type == "image/png"
    image = opened(answer.body)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), view.labels)
    assert bytes(image.getpalette()) == plte(CITYS.colors, 255)
    colors = np.array([*CITYS.colors, *[(0, 0, 0)] * 236, IGNORE_COLOR], np.uint8)
    painted = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(painted, colors[view.labels])


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_label_map_survives_the_png(labels):
    assert np.array_equal(np.asarray(opened(png.indexed(labels, bytes(768)))), labels)
    assert np.array_equal(np.asarray(opened(png.gray(labels))), labels)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_any_rgb_image_survives_the_png(pixels):
    assert np.array_equal(np.asarray(opened(png.rgb(pixels))), pixels)


def test_png_of_a_large_map_and_of_a_view():
    labels = np.random.default_rng(1).integers(0, 256, (700, 900), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(png.indexed(labels, bytes(768)))), labels)
    part = labels[10:600:3, ::2]
    assert np.array_equal(np.asarray(opened(png.indexed(part, bytes(768)))), part)


def test_png_refuses_what_it_cannot_hold():
    labels = np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="palette"):
        png.indexed(labels, b"12")
    with pytest.raises(ValueError, match="palette"):
        png.indexed(labels, bytes(771))
    with pytest.raises(ValueError, match="H,W"):
        png.indexed(np.zeros((3, 4, 3), np.uint8), bytes(768))
    with pytest.raises(ValueError, match="H,W"):
        png.gray(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="H,W,3"):
        png.rgb(labels)
    with pytest.raises(ValueError, match="one pixel"):
        png.gray(np.zeros((0, 3), np.uint8))


def test_overlay_is_half_photo_half_colour(view):
    image = opened(encode(view, "overlay").body)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    outside = view.labels == 255
    assert np.array_equal(pixels[outside], view.image[outside])
    colors = np.array(CITYS.colors)[view.labels[~outside]]
    assert np.array_equal(pixels[~outside], (view.image[~outside].astype(int) + colors + 1) // 2)


def test_confidence_is_a_gray_png(view):
    image = opened(encode(view, "confidence").body)
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), view.confidence)


def test_npy_and_raw(view):
    answer = encode(view, "npy")
    assert answer.media_type == "application/x-npy"
    loaded = np.load(io.BytesIO(answer.body), allow_pickle=False)
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, view.labels)
    assert encode(view, "raw") == Encoded(view.labels.tobytes(), "application/octet-stream")


def test_stats(view):
    answer = encode(view, "stats")
    assert answer.media_type == "application/json"
    stats = json.loads(answer.body)
    assert (stats["height"], stats["width"]) == view.labels.shape
    assert [entry["id"] for entry in stats["classes"]] == list(range(19))
    for entry in stats["classes"]:
        chosen = view.labels == entry["id"]
        assert entry["name"] == CITYS.names[entry["id"]]
        assert entry["pixels"] == chosen.sum()
        assert entry["share"] == pytest.approx(chosen.mean(), abs=1e-6)
        if chosen.any():
            mean = view.confidence[chosen].mean() / 255
            assert entry["mean_confidence"] == pytest.approx(mean, abs=1e-4)
        else:
            assert "mean_confidence" not in entry
    assert stats["classes"][10]["color"] == "#4682b4"


def test_stats_without_confidence():
    view = MaskView(np.zeros((2, 3), np.uint8), ("Straße",), ((1, 2, 3),))
    assert json.loads(encode(view, "stats").body) == {
        "height": 2,
        "width": 3,
        "classes": [{"id": 0, "name": "Straße", "color": "#010203", "pixels": 6, "share": 1.0}],
    }


def test_a_part_that_is_missing_or_of_another_size_is_refused():
    labels = np.zeros((2, 3), np.uint8)
    bare = MaskView(labels, ("road",), ((1, 2, 3),))
    other = MaskView(
        labels,
        ("road",),
        ((1, 2, 3),),
        image=np.zeros((3, 2, 3), np.uint8),
        confidence=np.zeros((3, 2), np.uint8),
    )
    for format in ("overlay", "confidence"):
        assert FORMATS[format].needs_image or FORMATS[format].needs_confidence
        for view in (bare, other):
            with pytest.raises(ValueError, match="size of the labels"):
                encode(view, format)


def test_formats_say_what_they_need():
    assert [name for name, format in FORMATS.items() if format.needs_image] == ["overlay"]
    assert [name for name, format in FORMATS.items() if format.needs_confidence] == ["confidence"]


def test_an_unknown_format_is_refused_with_the_known_ones(view):
    with pytest.raises(InvalidRequest, match=r"'gif'.*png, overlay, confidence, npy, raw, stats"):
        encode(view, "gif")


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("image/png", "png"),
        ("application/x-npy", "npy"),
        ("application/octet-stream", "raw"),
        ("application/json", "stats"),
        ("Application/JSON; charset=utf-8", "stats"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("application/json;q=0.5, application/x-npy", "npy"),
        ("application/json; q=0.5, application/x-npy; q=0.4", "stats"),
        ("application/x-npy, application/json", "npy"),
        ("application/json, */*", "stats"),
        ("*/*, application/json", "stats"),
        ("text/html,application/xhtml+xml,image/avif,*/*;q=0.8", "png"),
        ("image/png;q=0, application/json", "stats"),
        ("image/png;q=0, */*", "npy"),
        ("image/png;q=0", None),
        ("image/png;q=much", None),
        ("text/html", None),
        ("image", None),
        ("", None),
    ],
)
def test_accept(accept, format):
    assert format_for_accept(accept) == format
