"""Files that killed, filled or stalled the server once: each costs its own request an error.

The server runs in a process of its own here, as one that dies must not take the tests with it.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mutant_values import IMAGE
from protocol_mutants import http
from protocol_target import ProtocolTarget

from tests.support.odd_images import png, webp
from tests.support.odd_images.item import encoded, noise, scene
from tests.support.odd_images.jpeg_encoder import segment, tables

SEGMENT = "/v2/models/bands/segment?format=raw"
# Far above what a refusal takes, far below the minutes that these files took.
BOUND_S = 20.0


@pytest.fixture
def server() -> Iterator[ProtocolTarget]:
    with ProtocolTarget() as target:
        yield target


def control(frames: int) -> bytes:
    return png.chunk(b"acTL", struct.pack(">II", frames, 0))


def still(colour: int, depth: int = 8, **options: object) -> bytes:
    return png.png(png.samples_of(64, 64, colour, depth), colour, depth, **options)


def half_of_the_rows() -> bytes:
    samples = png.samples_of(64, 64, png.RGB, 8)
    idat = [zlib.compress(png.stream(samples, 8)[: 193 * 2])]
    before = control(1) + png.frame_control(0, 64, 64)
    return png.png(samples, png.RGB, 8, before=before, idat=idat)


def scans_again(count: int) -> bytes:
    """A gray picture of 4096x4096 whose last scan comes again and again, 37 bytes each time."""
    blocks = (4096 // 8) ** 2
    # Runs of blocks that a scan changes nothing of: 32,767 is the longest.
    runs = ("11100000" + "1" * 14) * (blocks // 32767) + "00110000" + "000"
    runs += "1" * (-len(runs) % 8)
    nothing = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    again = segment(0xDA, b"\1\1\0\1\x3f\x10") + nothing
    return b"".join(
        (
            b"\xff\xd8",
            tables(1),
            segment(0xC2, struct.pack(">BHHB", 8, 4096, 4096, 1) + b"\1\x11\0"),
            segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 2),
            segment(0xDA, b"\1\1\0\1\x3f\1") + nothing,
            again * count,
            b"\xff\xd9",
        )
    )


def huge_behind_the_end() -> bytes:
    return still(png.RGB) + struct.pack(">I", 0x7FFFFFFF) + b"IDAT" + bytes(20_000)


BEYOND = control(1) + png.frame_control(0, 64, 64, 200, 200)
FRAME = webp.bitstream(scene(8, 10), lossless=True)
HOSTILE = {
    "a frame beyond the canvas": still(png.RGBA, before=BEYOND),
    "a filter that does not exist": still(
        png.RGB, before=control(1) + png.frame_control(0, 64, 64), filters=(9,)
    ),
    "gray that is disposed to background": png.apng(
        png.samples_of(64, 64, png.GRAY, 8), png.GRAY, 8, 1, 0, first=True
    ),
    "half of the rows of an animation": half_of_the_rows(),
    "a huge chunk behind the end": huge_behind_the_end(),
    "a broken frame of WebP": webp.animated(20, 22, webp.frame(14, 14, 8, 10, FRAME[:40])),
    "a frame of WebP far away": webp.animated(20, 22, webp.frame(9000, 9000, 8, 10, FRAME)),
    "empty segments of JPEG": b"\xff\xd8"
    + segment(0xE1) * 100_000
    + encoded(scene(9, 9), "JPEG")[2:],
    "many scans of JPEG": scans_again(1500),
    "a million fill bytes": b"\xff\xd8" + b"\xff" * 1_000_000 + encoded(scene(9, 9), "JPEG")[2:],
    "a hundred thousand chunks": still(png.RGB, before=png.chunk(b"tEXt", b"a\0b") * 100_000),
    "a profile of gigabytes": still(
        png.RGB, before=png.chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26)))
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_its_own_request_alone(server: ProtocolTarget, name: str) -> None:
    began = time.monotonic()
    answer = server.exchange(http(SEGMENT, HOSTILE[name]))
    assert answer.split(maxsplit=2)[1] in (b"200", b"400", b"413"), answer[:500]
    assert time.monotonic() - began < BOUND_S
    assert server.health() == ""


def test_nothing_of_another_callers_picture_is_answered(server: ProtocolTarget) -> None:
    """Labels are bands of red: rows that were never written would show the first picture's."""
    secret = noise((64, 64, 3), 255, 12).astype(np.uint8)
    for _ in range(20):
        assert b" 200 " in server.exchange(http(SEGMENT, encoded(secret, "PNG")))[:20]
        answer = server.exchange(http(SEGMENT, half_of_the_rows()))
        assert answer.split(maxsplit=2)[1] == b"400", answer[:300]


def test_files_that_take_long_leave_room_for_others(server: ProtocolTarget) -> None:
    """Three at once held every decoding thread for a minute; a good request has its answer."""
    slow = HOSTILE["many scans of JPEG"]
    with ThreadPoolExecutor(6) as pool:
        held = [pool.submit(server.exchange, http(SEGMENT, slow)) for _ in range(6)]
        began = time.monotonic()
        good = server.exchange(http(SEGMENT, IMAGE, (("X-Timeout-Ms", "15000"),)))
        took_s = time.monotonic() - began
        for request in held:
            assert request.result().split(maxsplit=2)[1] in (b"200", b"400", b"413")
    assert b" 200 " in good[:20], good[:300]
    assert took_s < BOUND_S
    assert server.health() == ""
