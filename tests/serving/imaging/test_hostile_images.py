"""Files that were made to hurt: mutations of good images, bombs, animations, other formats."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from serving.errors import UnsupportedImageFormat
from serving.imaging.decode import DEFAULT_FORMATS, decode, probe
from serving.imaging.decoder_pool import DecoderPool
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    MODEL_SIZE,
    Served,
    band_labels,
    bands,
    encode,
    free_ports,
    png_header,
    serve_fake,
    write_model,
)
from tests.support.waiting import wait_for

SEGMENT = "/v2/models/bands/segment?format=raw"
GOOD = {form: encode(bands(32, 48), form) for form in sorted(DEFAULT_FORMATS)}
MUTATIONS = 200


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:
        yield client


def check_alive(http: httpx.Client) -> None:
    answer = http.post(SEGMENT, content=GOOD["PNG"])
    assert answer.content == band_labels(32, 48).tobytes()


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Cut off, bits flipped, lengths and sizes overwritten, pieces swapped or doubled."""
    changed = bytearray(data)
    kind = chance.randrange(5)
    if kind == 0:
        return bytes(changed[: chance.randrange(len(changed))])
    place = chance.randrange(len(changed))
    if kind == 1:
        for _ in range(chance.randrange(1, 20)):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        # Headers are at the front.
        place = chance.randrange(min(64, len(changed)))
        changed[place : place + 4] = chance.choice(
            [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"]
        )
    elif kind == 3:
        del changed[place : place + chance.randrange(1, 30)]
    else:
        changed[place:place] = changed[: chance.randrange(1, 200)]
    return bytes(changed)


def test_corrupt_images_are_the_callers_mistake(http: httpx.Client) -> None:
    """Some mutations leave an image, or what reads as one; the others are refused by name."""
    chance, refused, codes = random.Random(6), 0, set()
    while refused < MUTATIONS:
        data = mutate(GOOD[chance.choice(list(GOOD))], chance)
        answer = http.post(SEGMENT, content=data)
        assert answer.status_code in (200, 400, 413, 415), answer.text
        if answer.status_code != 200:
            codes.add(answer.json()["code"])
            refused += 1
    assert codes <= {"invalid_image", "too_large", "unsupported_image_format"}
    check_alive(http)


def png_bomb(height: int, width: int) -> bytes:
    """All zeros: a thousandth of its pixels' bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packer, row = zlib.compressobj(1), bytes(1 + 3 * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def resized_header(form: str, height: int, width: int) -> bytes:
    """A good file whose header says another size."""
    data = bytearray(GOOD[form])
    if form == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        place = data.index(b"VP8 ") + 14
        data[place : place + 4] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: png_bomb(10_001, 10_000),
        lambda: png_header(2**31 - 1, 2**31 - 1),
        lambda: resized_header("JPEG", 65_500, 65_500),
        lambda: resized_header("BMP", 2**31 - 1, 2**31 - 1),
        lambda: resized_header("WEBP", 16_383, 16_383),
    ],
    ids=["png", "png header", "jpeg", "bmp", "webp"],
)
def test_bombs_are_refused_unopened(http: httpx.Client, bomb: Callable[[], bytes]) -> None:
    answer = http.post(SEGMENT, content=bomb())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "max_image_megapixels" in answer.json()["error"]
    check_alive(http)


@pytest.mark.parametrize("form", ["BMP", "WEBP"])
def test_headers_that_lie_within_the_limit_are_refused_too(http: httpx.Client, form: str) -> None:
    """Not JPEG: libjpeg fills what is missing of a scan with gray, as every viewer does."""
    answer = http.post(SEGMENT, content=resized_header(form, 4000, 4000))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")
    check_alive(http)


def test_a_packed_body_is_unpacked_up_to_the_limit_only(http: httpx.Client, served: Served) -> None:
    size = served.server.settings.max_request_bytes + 1
    packed = zlib.compress(bytes(size), 1)
    assert len(packed) < size // 100
    answer = http.post(SEGMENT, content=packed, headers={"Content-Encoding": "deflate"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    check_alive(http)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_only_the_first_frame_of_an_animation_is_decoded(form: str) -> None:
    """So a thousand frames cost what one costs; their bytes are bounded anyhow."""
    first = Image.fromarray(bands(200, 300))
    others = [first.rotate(angle) for angle in range(1, 60)]
    files = []
    for more in (others[:1], others):
        buffer = io.BytesIO()
        options = {"lossless": True} if form == "WEBP" else {}
        first.save(buffer, form, save_all=True, append_images=more, **options)
        files.append(buffer.getvalue())
    with Image.open(io.BytesIO(files[1])) as animation:
        assert animation.n_frames == 60
    seconds = []
    for data in files:
        best = min(_time(data) for _ in range(5))
        seconds.append(best)
        np.testing.assert_array_equal(decode(data, max_megapixels=1), np.asarray(first))
    # Sixty frames would take sixty times as long.
    assert seconds[1] < 20 * seconds[0]


def _time(data: bytes) -> float:
    start = time.thread_time()
    decode(data, max_megapixels=1)
    return time.thread_time() - start


OTHERS = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "xml svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "gif": encode(bands(32, 48), "GIF"),
    "tiff": encode(bands(32, 48), "TIFF"),
    "ppm": encode(bands(32, 48), "PPM"),
    "ico": encode(bands(32, 48), "ICO"),
    "jpeg 2000": encode(bands(32, 48), "JPEG2000"),
    "hdr": cv2.imencode(".hdr", bands(32, 48).astype(np.float32))[1].tobytes(),
    "sun raster": b"\x59\xa6\x6a\x95" + bytes(60),
    "pxm with a comment": b"P6 # a\n9 9 255\n" + bytes(243),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_format_reaches_a_decoder(
    http: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(DecoderPool, "decode", never)
    answer = http.post(SEGMENT, content=OTHERS[name])
    assert answer.status_code in (400, 415), answer.text
    assert answer.json()["code"] in ("invalid_image", "unsupported_image_format")
    assert "JPEG" in answer.json()["error"]


def test_formats_may_be_fewer(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    settings = free_ports(folder).model_copy(update={"allowed_formats": frozenset({"PNG"})})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        url = f"http://127.0.0.1:{server.ports.http}{SEGMENT}"
        assert httpx.post(url, content=GOOD["PNG"]).status_code == 200
        answer = httpx.post(url, content=GOOD["JPEG"])
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_image_format")
    assert "send PNG" in answer.json()["error"]
    with pytest.raises(UnsupportedImageFormat):
        probe(GOOD["BMP"], frozenset({"JPEG"}))


@pytest.mark.parametrize("formats", ['["GIF"]', "[]"])
def test_formats_that_cannot_be_decoded_are_no_setting(
    formats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSERVE_ALLOWED_FORMATS", formats)
    with pytest.raises(ValidationError, match="BMP, JPEG, PNG, WEBP can"):
        Settings()


def test_large_images_of_small_files_are_bounded_together(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """While one is being inferred the next does not fit; alone it does."""
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    engine.hold.clear()
    settings = free_ports(folder).model_copy(update={"max_inflight_megapixels": 1.5})
    large = png_bomb(1000, 1000)
    with (
        ServerThread(settings, serve_fake(engine)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}") as http,
    ):
        try:
            with ThreadPoolExecutor() as pool:
                held = pool.submit(http.post, SEGMENT, content=large)
                wait_for(lambda: engine.batch_sizes)
                answer = http.post(SEGMENT, content=large)
                engine.hold.set()
                assert held.result().status_code == 200
        finally:
            engine.hold.set()
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert "max_inflight_megapixels" in answer.json()["error"]
        labels = {"model": "bands", "reason": "inflight_megapixels"}
        registry = server.metrics.registry
        assert registry.get_sample_value("segserve_rejected_total", labels) == 1
        assert http.post(SEGMENT, content=large).status_code == 200
