"""The page at ``/``, in a real browser, against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from serving.http.page import PAGE, build_policy
from serving.imaging.geometry import Size
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    CLASSES,
    MODEL_SIZE,
    Served,
    bands,
    encode,
    free_ports,
    serve_bands,
    serve_fake,
    serve_fakes,
    write_model,
)
from tests.support.browser import open_browser
from tests.support.photos import exif
from tests.support.waiting import SECONDS

KEY = "a-key-of-sixteen-characters"
PHOTO = bands(60, 96)
FILE = {"name": "bands.png", "mimeType": "image/png", "buffer": encode(PHOTO)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose console stays silent: a blocked script or style would be an error there."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.set_default_timeout(SECONDS * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: line.type == "error" and errors.append(line.text))
    yield page
    page.close()
    # A refused request is in the console too, whatever the page does.
    assert [e for e in errors if not e.startswith("Failed to load resource")] == []


def pixel(page: Page, x: int, y: int) -> list[int]:
    """RGBA of the label map on the page."""
    return page.evaluate(
        "([x, y]) => [...document.getElementById('labels').getContext('2d')"
        ".getImageData(x, y, 1, 1).data]",
        [x, y],
    )


def wait_for_photo(page: Page) -> None:
    """Until the browser has decoded it: its size is 0 before, and what lies below moves then."""
    page.evaluate("() => Promise.all([...document.images].map(e => e.decode()))")


def sizes(page: Page) -> list[int]:
    """Width and height of the label map, and of the photo as the browser turned it."""
    wait_for_photo(page)
    return page.evaluate(
        "[...document.querySelectorAll('#labels'), ...document.images].flatMap("
        "e => [e.naturalWidth ?? e.width, e.naturalHeight ?? e.height])"
    )


def colors(served: Served) -> list[list[int]]:
    entries = httpx.get(f"http://{served.http}/v2/models/bands/classes").json()
    return [[*bytes.fromhex(entry["color"][1:]), 255] for entry in entries]


def test_the_page_is_one_file_under_a_policy_that_allows_nothing_else(served: Served) -> None:
    url = f"http://{served.http}/"
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == PAGE.read_text("utf-8")
    policy = answer.headers["content-security-policy"]
    assert policy == build_policy(answer.text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert set(re.findall(r"https?://[^'\"\s)]*", answer.text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link[^>]*stylesheet|<script[^>]+src|@import|\son\w+=", answer.text)
    assert httpx.head(url).status_code == 200
    assert httpx.post(url).status_code == 405


def test_a_photo_becomes_a_label_map(page: Page, served: Served) -> None:
    page.goto(f"http://{served.http}/")
    expect(page.locator("#model")).to_have_value("bands")
    expect(page.locator("#results")).to_be_hidden()
    page.set_input_files("#file", FILE)
    legend = page.locator("#legend li")
    expect(legend).to_have_count(len(CLASSES))
    expect(page.locator("#error")).to_be_hidden()
    for k, color in enumerate(colors(served)):
        assert pixel(page, 12 * k + 6, 30) == color
        row = legend.filter(has=page.get_by_text(CLASSES[k], exact=True))
        expect(row).to_contain_text("12.5 %")
        swatch = row.locator(".swatch").evaluate("e => getComputedStyle(e).backgroundColor")
        assert swatch == f"rgb({color[0]}, {color[1]}, {color[2]})"
    assert sizes(page) == [96, 60, 96, 60]
    for stage in ("decode", "preprocess", "queue", "infer", "restore", "encode"):
        expect(page.locator("#stages tr").filter(has_text=stage)).to_contain_text(" ms")
    expect(page.locator("#elapsed")).to_contain_text(" ms")
    expect(page.locator("#facts")).to_contain_text("bands, version 1; photo 60x96")


def test_view_slider_legend_and_pointer(page: Page, served: Served) -> None:
    page.goto(f"http://{served.http}/")
    page.set_input_files("#file", FILE)
    labels, photo = page.locator("#labels"), page.locator("#photo")
    expect(page.locator("#legend li")).to_have_count(len(CLASSES))
    expect(labels).to_have_css("opacity", "0.5")
    page.locator("#opacity").fill("0.8")
    expect(labels).to_have_css("opacity", "0.8")
    expect(photo).to_be_visible()
    page.get_by_label("label map").check()
    expect(labels).to_have_css("opacity", "1")
    expect(photo).to_have_css("visibility", "hidden")
    expect(page.locator("#opacity")).to_be_disabled()
    page.get_by_label("overlay").check()
    expect(labels).to_have_css("opacity", "0.8")
    # One class hidden, and shown again.
    entry = page.locator("#legend button").filter(has=page.get_by_text("band2", exact=True))
    entry.click()
    expect(entry).to_have_attribute("aria-pressed", "false")
    assert pixel(page, 30, 30)[3] == 0
    assert pixel(page, 42, 30) == colors(served)[3]
    entry.click()
    assert pixel(page, 30, 30) == colors(served)[2]
    wait_for_photo(page)
    box = labels.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 30.5 / 96, box["y"] + box["height"] * 20.5 / 60)
    # A pointer has whole coordinates, a picture need not begin at one.
    place = re.compile("row (19|20|21), column (29|30|31): band2")
    expect(page.locator("#under")).to_have_text(place)


def test_confidence_is_asked_for(page: Page, served: Served) -> None:
    page.goto(f"http://{served.http}/")
    page.set_input_files("#file", FILE)
    expect(page.locator("#legend li")).to_have_count(len(CLASSES))
    expect(page.locator("#legend")).not_to_contain_text("conf.")
    page.get_by_label("mean confidence").check()
    expect(page.locator("#legend")).to_contain_text("conf. 0.")


def test_a_photo_is_dropped_upright(page: Page, served: Served, tmp_path: Path) -> None:
    """By drag and drop; turned by its EXIF, as the server turns it."""
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.rot90(PHOTO).copy()).save(path, quality=95, exif=exif(6))
    page.goto(f"http://{served.http}/")
    expect(page.locator("#model")).to_have_value("bands")
    data = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "turned.jpg"));
            return transfer;
        }""",
        [*path.read_bytes()],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    expect(page.locator("#facts")).to_contain_text("photo 60x96")
    assert sizes(page) == [96, 60, 96, 60]
    assert pixel(page, 6, 30) == colors(served)[0]
    assert pixel(page, 90, 30) == colors(served)[7]
    data = page.evaluate_handle("new DataTransfer()")
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    expect(page.locator("#error")).to_have_text("That was not a file.")


def test_the_servers_errors_are_shown_in_its_words(page: Page, served: Served) -> None:
    page.goto(f"http://{served.http}/")
    page.set_input_files("#file", FILE)
    expect(page.locator("#results")).to_be_visible()
    broken = {"name": "<b>.png", "mimeType": "image/png", "buffer": FILE["buffer"][:200]}
    page.set_input_files("#file", broken)
    told = page.locator("#error")
    expect(told).to_contain_text("400 invalid_image: the PNG image is truncated")
    expect(page.locator("#results")).to_be_hidden()
    # The next one is answered.
    page.set_input_files("#file", FILE)
    expect(told).to_be_hidden()
    expect(page.locator("#results")).to_be_visible()


def test_only_the_last_photo_is_shown(page: Page, served: Served) -> None:
    page.goto(f"http://{served.http}/")
    expect(page.locator("#model")).to_have_value("bands")
    served.engine.hold.clear()
    try:
        page.set_input_files("#file", FILE)
        expect(page.locator("#drop")).to_have_class(re.compile("busy"))
        small = {**FILE, "buffer": encode(bands(32, 48))}
        page.set_input_files("#file", small)
    finally:
        served.engine.hold.set()
    expect(page.locator("#facts")).to_contain_text("photo 32x48")
    expect(page.locator("#drop")).not_to_have_class(re.compile("busy"))
    assert sizes(page) == [48, 32, 48, 32]


def test_without_a_server_the_page_says_so(page: Page, tmp_path: Path) -> None:
    with serve_bands(tmp_path) as served:
        page.goto(f"http://{served.http}/")
        expect(page.locator("#model")).to_have_value("bands")
    page.set_input_files("#file", FILE)
    expect(page.locator("#error")).to_contain_text("The server does not answer")


def test_a_family_is_offered_first(page: Page, tmp_path: Path) -> None:
    write_model(tmp_path, "small", Size(32, 48), family="shapes")
    write_model(tmp_path, "large", Size(64, 96), family="shapes")
    write_model(tmp_path, "alone", Size(32, 48))
    with ServerThread(free_ports(tmp_path), serve_fakes) as server:
        page.goto(f"http://127.0.0.1:{server.ports.http}/")
        expect(page.locator("#model option")).to_have_text(
            ["shapes (the best fit of 2)", "alone", "large", "small"]
        )
        page.set_input_files("#file", FILE)
        expect(page.locator("#facts")).to_contain_text("large, version 1")
        page.select_option("#model", "small")
        expect(page.locator("#facts")).to_contain_text("small, version 1")


def test_a_key_is_typed_into_the_page(page: Page, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"alice {KEY}\n")
    write_model(tmp_path / "repository")
    settings = free_ports(tmp_path / "repository").model_copy(update={"api_keys_file": keys})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        page.goto(f"http://127.0.0.1:{server.ports.http}/")
        expect(page.locator("#error")).to_contain_text("401 unauthenticated: no API key")
        expect(page.locator("#key")).to_be_focused()
        page.locator("#key").fill("not-the-key-of-anybody")
        page.locator("#key").press("Enter")
        expect(page.locator("#error")).to_contain_text("unknown API key")
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Tab")
        expect(page.locator("#model")).to_have_value("bands")
        expect(page.locator("#error")).to_be_hidden()
        page.set_input_files("#file", FILE)
        expect(page.locator("#legend li")).to_have_count(len(CLASSES))
        assert KEY not in page.content()
