import io
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.errors import InvalidRequest
from serving.formats import png
from serving.formats.label_map import Encoded, MaskOptions, MaskView
from serving.formats.overlay import draw_legend
from serving.formats.registry import FORMATS, check_options, encode, warm
from serving.palette import IGNORE_COLOR, plte
from tests.support.mask_views import CITYS, citys_view, opened


@pytest.fixture(scope="module")
def view():
    warm()
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 19, (6, 8)), np.ones((7, 9), int)).astype(np.uint8)
    labels[:4, :5] = 255
    return citys_view(labels)


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


def test_a_legend_has_a_swatch_and_the_name_beside_it():
    """At 600 pixels: letters of 11, lines of 19, and 5 between."""
    color = (10, 200, 30)
    strip = draw_legend([("road", color), ("sky", (1, 2, 3))], 600).astype(int)
    assert strip.shape == (19, 600, 3)
    rows, columns = np.nonzero((strip == color).all(-1))
    # Inside of an outline of one pixel, from (4, 5) to (14, 15).
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 13, 6, 14)
    outline = strip[4:15, 5:16].copy()
    outline[1:-1, 1:-1] = 0
    assert not outline.any()
    dark = np.flatnonzero((strip[:, 16:] < 128).all(-1).any(0)) + 16
    assert 18 <= dark[0] <= 22, "the name begins a little to the right"
    # Nothing but the background above and below the swatch.
    assert (strip[:4, :16] == 255).all()
    assert (strip[15:, :16] == 255).all()
    # Half as wide, the second entry has a line of its own.
    names = [("a class of many words", color), ("another class of many words", color)]
    assert draw_legend(names, 190).shape == (38, 190, 3)
    assert draw_legend(names, 600).shape == (19, 600, 3)
    assert draw_legend([], 600).shape == (0, 600, 3)


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


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_opacity_of_an_overlay(view, opacity):
    pixels = np.asarray(opened(encode(view, "overlay", MaskOptions(opacity=opacity)).body))
    colors = np.vstack([CITYS.colors, np.zeros((237, 3))])[view.labels]
    colors[view.labels == 255] = view.image[view.labels == 255]
    assert np.abs(pixels - ((1 - opacity) * view.image + opacity * colors)).max() <= 1


def test_an_overlay_as_jpeg(view):
    smooth = replace(view, image=np.full_like(view.image, 90), labels=np.full_like(view.labels, 8))
    sizes = []
    for quality in (None, 30, 95):
        answer = encode(smooth, "overlay", MaskOptions(image="jpeg", quality=quality))
        assert answer.media_type == "image/jpeg"
        picture = opened(answer.body)
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        expected = (90 + np.array(CITYS.colors[8]) + 1) // 2
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 4
        noisy = encode(view, "overlay", MaskOptions(image="jpeg", quality=quality))
        sizes.append(len(noisy.body))
    assert sizes[1] < sizes[0] < sizes[2]


def test_a_jpeg_too_long_for_its_format_is_refused():
    long = citys_view(np.zeros((1, 65_501), np.uint8))
    with pytest.raises(InvalidRequest, match=r"at most 65500 pixels a side.*image=png"):
        encode(long, "overlay", MaskOptions(image="jpeg"))
    assert opened(encode(long, "overlay").body).size == (65_501, 1)


@pytest.mark.parametrize("image", ["png", "jpeg"])
def test_a_legend_stands_below_the_picture(view, image):
    width = 700
    wide = citys_view(np.resize(np.array([0, 1, 13, 255], np.uint8), (40, width)))
    plain = opened(encode(wide, "overlay", MaskOptions(image=image)).body)
    picture = opened(encode(wide, "overlay", MaskOptions(image=image, legend=True)).body)
    assert picture.width == width
    assert 40 < picture.height < 100
    strip = np.asarray(picture)[plain.height :]
    if image == "png":
        assert np.array_equal(np.asarray(picture)[: plain.height], np.asarray(plain))
        shown = {tuple(color) for color in strip.reshape(-1, 3).tolist()}
        assert {CITYS.colors[k] for k in (0, 1, 13)} <= shown
        assert CITYS.colors[8] not in shown
    assert (strip < 60).all(axis=2).sum() > 100  # letters


def test_a_legend_takes_as_many_lines_as_it_needs(view):
    narrow = encode(view, "overlay", MaskOptions(legend=True)).body
    assert opened(narrow).height > view.labels.shape[0] + 5 * 11
    nothing = replace(view, labels=np.full_like(view.labels, 255))
    assert opened(encode(nothing, "overlay", MaskOptions(legend=True)).body).size == (72, 42)


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
    both = encode(view, "npy", MaskOptions(confidence=True))
    assert both.media_type == "application/x-npz"
    with np.load(io.BytesIO(both.body), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["confidence", "mask"]
        assert np.array_equal(arrays["mask"], view.labels)
        assert np.array_equal(arrays["confidence"], view.confidence)
    assert encode(view, "raw") == Encoded(view.labels.tobytes(), "application/octet-stream")


def test_stats(view):
    answer = encode(view, "stats", MaskOptions(confidence=True))
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
    for view in (bare, other):
        for format in ("overlay", "confidence"):
            with pytest.raises(ValueError, match="size of the labels"):
                encode(view, format)
        for format in ("npy", "stats", "rle", "polygons"):
            with pytest.raises(ValueError, match="size of the labels"):
                encode(view, format, MaskOptions(confidence=True))


def test_formats_say_what_they_need():
    assert [name for name, format in FORMATS.items() if format.needs_image] == ["overlay"]
    assert [name for name, format in FORMATS.items() if format.needs_confidence] == ["confidence"]


def test_an_unknown_format_is_refused_with_the_known_ones(view):
    known = "png, overlay, confidence, npy, raw, stats, rle, polygons"
    with pytest.raises(InvalidRequest, match=f"'gif'.*{known}"):
        encode(view, "gif")


@pytest.mark.parametrize(
    ("formats", "options", "text"),
    [
        (("png",), {"opacity": 0.5}, "opacity goes with format=overlay, not with png"),
        (("stats", "png"), {"tolerance": 0.0}, "tolerance goes with format=polygons"),
        (("raw",), {"confidence": True}, "confidence goes with format=confidence or format=npy"),
        (("overlay",), {"quality": 80}, "quality goes with image=jpeg"),
        (("overlay",), {"image": "png", "quality": 80}, "quality goes with image=jpeg"),
        (("rle",), {"min_area": 0}, "min_area goes"),
        (("rle",), {"legend": True}, "legend goes"),
        (("png", "gif"), {}, "'gif'"),
        (("png", "stats", "png"), {}, "'png' is named twice"),
        ((), {}, "no format"),
        (("overlay",), {"opacity": 1.5}, "opacity is 1.5, expected 0 to 1"),
        (("overlay",), {"opacity": float("nan")}, "opacity is nan"),
        (("overlay",), {"image": "gif"}, "image is 'gif'; known: png, jpeg"),
        (("overlay",), {"image": "jpeg", "quality": 0}, "quality is 0, expected 1 to 100"),
        (("polygons",), {"tolerance": -1.0}, "tolerance is -1"),
        (("polygons",), {"tolerance": float("inf")}, "tolerance is inf"),
        (("polygons",), {"min_area": -1}, "min_area is -1"),
    ],
)
def test_options_that_go_with_nothing_are_refused_by_name(formats, options, text):
    with pytest.raises(InvalidRequest, match=text):
        check_options(formats, MaskOptions(**options))


def test_options_go_with_one_of_several_formats():
    check_options(("png", "overlay", "polygons"), MaskOptions(opacity=0.1, tolerance=3))
    check_options(("raw", "stats"), MaskOptions(confidence=True))
