"""Which form of an answer the header Accept asks for."""

import pytest

from serving.formats.registry import FORMATS
from serving.http.negotiation import Choice, choose


@pytest.mark.parametrize(
    ("header", "chosen"),
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
        ("image/png;q=0", None),
        ("image/png;q=much", None),
        ("text/html", None),
        ("image", None),
        ("", None),
    ],
)
def test_accept(header, chosen):
    found = choose(header, list(FORMATS.values()))
    assert found == (None if chosen is None else Choice(chosen))


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("image/jpeg", Choice("overlay", "jpeg")),
        ("image/jpeg, image/png", Choice("overlay", "jpeg")),
        ("image/png, image/jpeg", Choice("png")),
        ("image/*, image/jpeg", Choice("overlay", "jpeg")),
        ("image/jpeg;q=0.5, application/geo+json", Choice("polygons")),
        ("image/png;q=0, */*", Choice("overlay", "jpeg")),
    ],
)
def test_a_jpeg_is_an_overlay(header, chosen):
    assert choose(header, list(FORMATS.values())) == chosen


def test_of_named_formats_it_says_how():
    overlay = [FORMATS["overlay"]]
    assert choose("image/jpeg, */*", overlay) == Choice("overlay", "jpeg")
    assert choose("*/*", overlay) == Choice("overlay")
    assert choose("application/json", overlay) is None
