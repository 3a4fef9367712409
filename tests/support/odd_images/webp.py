"""Odd WebP files: bitstreams by libwebp, the container put together here."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from tests.support.odd_images.item import (
    Duty,
    OddImage,
    Pixels,
    encoded,
    noise,
    scene,
    tiff,
    turned,
)

# Flags of VP8X.
ICC, ALPHA, EXIF, XMP, ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Name, length, content and a byte that makes it even."""
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    """A file of these chunks; ``size`` where another one is to be told."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def extended(height: int, width: int, flags: int) -> bytes:
    """The VP8X chunk."""
    return chunk(
        b"VP8X",
        struct.pack("<I", flags) + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little"),
    )  # fmt: skip


def frame(y: int, x: int, height: int, width: int, body: bytes, flags: int = 0) -> bytes:
    """An ANMF chunk; ``flags`` 1 disposes of it, 2 does not blend. Offsets are even."""
    numbers = (x // 2, y // 2, width - 1, height - 1, 100)
    head = b"".join(number.to_bytes(3, "little") for number in numbers)
    return chunk(b"ANMF", head + bytes([flags]) + body)


def animated(height: int, width: int, *frames: bytes, background: int = 0) -> bytes:
    """A file of frames."""
    control = chunk(b"ANIM", struct.pack("<IH", background, 0))
    return riff(extended(height, width, ANIMATION | ALPHA), control, *frames)


def bitstream(pixels: Pixels, **options: object) -> bytes:
    """The chunks that hold an image (ALPH and VP8, or VP8L), without what is around them."""
    data = encoded(pixels, "WEBP", **options)
    place, kept = 12, b""
    while place < len(data):
        kind, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        end = place + 8 + size + size % 2
        if kind in (b"VP8 ", b"VP8L", b"ALPH"):
            kept += data[place:end]
        place = end
    return kept


def streams() -> Iterator[OddImage]:
    """What encoders write: sizes, qualities, lossless methods, alpha."""
    for height, width in ((1, 1), (1, 9), (9, 1), (15, 17), (16, 16), (33, 50)):
        pixels = scene(height, width)
        for method in (0, 4, 6):
            data = encoded(pixels, "WEBP", lossless=True, method=method)
            yield OddImage(
                f"webp lossless {height}x{width} method {method}", data, "decode", pixels
            )
        for quality in (1, 50, 100):
            data = encoded(pixels, "WEBP", quality=quality)
            yield OddImage(
                f"webp lossy {height}x{width} quality {quality}", data, "decode", None, 2
            )
    few = noise((20, 20, 3), 1, 5).astype(np.uint8) * np.uint8(200)
    pictures: dict[str, Pixels] = {
        "two colours": few,
        "noise": noise((20, 20, 3), 255, 6).astype(np.uint8),
        "one colour": np.full((20, 20, 3), 77, np.uint8),
        "sixteen colours": (noise((20, 20, 1), 15, 7) * (1, 5, 9)).astype(np.uint8),
    }
    for name, picture in pictures.items():
        data = encoded(picture, "WEBP", lossless=True)
        yield OddImage(f"webp lossless of {name}", data, "decode", picture)
        yield OddImage(f"webp lossy of {name}", encoded(picture, "WEBP"), "decode", None, 2)
    alpha = np.dstack([scene(21, 18), np.linspace(0, 255, 21 * 18).reshape(21, 18)])
    alpha = alpha.astype(np.uint8)
    data = encoded(alpha, "WEBP", lossless=True, exact=True)
    yield OddImage("webp lossless with alpha", data, "decode", alpha[..., :3])
    for quality in (0, 60, 100):
        data = encoded(alpha, "WEBP", quality=80, alpha_quality=quality)
        yield OddImage(f"webp lossy with alpha {quality}", data, "decode", None, 2)


def containers() -> Iterator[OddImage]:
    """Chunks around one image, in legal and in unusual orders."""
    pixels = scene(15, 22)
    body = bitstream(pixels, lossless=True)
    lossy = bitstream(pixels, quality=90)
    icc, xmp = chunk(b"ICCP", bytes(131)), chunk(b"XMP ", b"<x:xmpmeta/> ")
    odd = chunk(b"abcd", b"odd")
    exif = chunk(b"EXIF", tiff(6))

    def of(
        name: str, flags: int, *chunks: bytes, duty: Duty = "either", orientation: int = 1
    ) -> OddImage:
        file = riff(extended(15, 22, flags), *chunks)
        return OddImage(f"webp {name}", file, duty, turned(pixels, orientation))

    yield of("extended alone", 0, body, duty="decode")
    yield of("with a profile", ICC, icc, body, duty="decode")
    yield of("with a profile and no flag", 0, icc, body)
    yield of("flags without chunks", ICC | EXIF | XMP, body)
    yield of("with xmp", XMP, body, xmp, duty="decode")
    yield of("unknown chunks", 0, odd, body, odd, odd)
    yield of("everything", ICC | EXIF | XMP, icc, body, exif, xmp, duty="decode", orientation=6)
    yield of("exif before the image", EXIF, exif, body, orientation=6)
    yield of("two exif", EXIF, body, exif, chunk(b"EXIF", tiff(3)), orientation=6)
    yield of("two exif around", EXIF, exif, body, chunk(b"EXIF", tiff(3)), orientation=6)
    yield of("500 unknown chunks", 0, body, odd * 500)
    yield of("alpha flag without alpha", ALPHA, body)
    yield of("two images", 0, body, bitstream(scene(15, 22, 4), lossless=True))
    for orientation in range(1, 9):
        for order in "<>":
            block = tiff(orientation, order, offset=8 + orientation, before=orientation % 3)
            for prefix in (b"", b"Exif\0\0"):
                yield of(
                    f"orientation {orientation} {order} {'prefix' if prefix else 'plain'}",
                    EXIF,
                    body,
                    chunk(b"EXIF", prefix + block),
                    duty="either" if prefix else "decode",
                    orientation=orientation,
                )
    yield OddImage("webp lossy extended", riff(extended(15, 22, 0), lossy), "decode", None, 2)
    for trailer in (b"x", b"trailer" * 9, exif):
        data = riff(body) + trailer
        yield OddImage(f"webp {len(trailer)} bytes behind the end", data, "decode", pixels)
    data = riff(body, exif)
    yield OddImage("webp simple with exif behind", data, "either", None)


def animations() -> Iterator[OddImage]:
    """The first frame on a black canvas, or refused."""
    one, two = scene(8, 10), scene(8, 10, 3)
    bodies = [bitstream(picture, lossless=True) for picture in (one, two)]
    for y, x in ((0, 0), (4, 6), (0, 12), (12, 0)):
        canvas = np.zeros((20, 22, 3), np.uint8)
        canvas[y : y + 8, x : x + 10] = one
        for flags in (0, 1, 2, 3):
            for background in (0, 0xFFFF8040):
                first = frame(y, x, 8, 10, bodies[0], flags)
                second = frame(2, 2, 8, 10, bodies[1], flags)
                data = animated(20, 22, first, second, background=background)
                name = f"webp animated at {y},{x} flags {flags} background {background:x}"
                yield OddImage(name, data, "either", canvas)
    full = bitstream(scene(20, 22), lossless=True)
    data = animated(20, 22, frame(0, 0, 20, 22, full))
    yield OddImage("webp animated of one frame", data, "either", scene(20, 22))
    lossy = bitstream(scene(20, 22), quality=90)
    data = animated(20, 22, frame(0, 0, 20, 22, lossy), frame(2, 2, 8, 10, bodies[1]))
    # A single still image of the same bitstream is what Pillow reads of it, too.
    yield OddImage("webp animated lossy", data, "either", None, 2)
    for name, data in {
        "frame beyond the canvas": animated(20, 22, frame(14, 14, 8, 10, bodies[0])),
        "frame far beyond": animated(20, 22, frame(20000, 20000, 8, 10, bodies[0])),
        "frame of another size": animated(20, 22, frame(0, 0, 20, 22, bodies[0])),
        "smaller than its bitstream": animated(20, 22, frame(0, 0, 4, 4, bodies[0])),
        "no frame": animated(20, 22),
        "empty frame": animated(20, 22, frame(0, 0, 8, 10, b"")),
        "broken frame": animated(20, 22, frame(0, 0, 8, 10, bodies[0][:30])),
    }.items():
        yield OddImage(f"webp animated {name}", data, "refuse")


def refused() -> Iterator[OddImage]:
    """Files without one right answer."""
    pixels = scene(15, 22)
    body, lossy = bitstream(pixels, lossless=True), bitstream(pixels, quality=90)
    good = riff(body)
    for name, data in {
        "a byte missing": good[:-2],
        "half": good[: len(good) // 2],
        "header alone": good[:20],
        "half of a lossy one": riff(lossy)[: len(lossy) // 2],
        "told longer than it is": riff(body, size=len(body) + 400),
        "told endless": riff(body, size=0xFFFFFFFF),
        "told 10 bytes": riff(body, size=10),
        "no image": riff(extended(15, 22, 0)),
        "another first chunk": riff(chunk(b"abcd", b"xy"), body),
        "canvas of another size": riff(extended(40, 40, 0), body),
        "smaller canvas": riff(extended(4, 4, 0), body),
        "empty bitstream": riff(chunk(b"VP8L")),
        "wrong signature": riff(chunk(b"VP8L", b"\x30" + body[9:])),
        "a future version": riff(chunk(b"VP8L", body[8:12] + bytes([body[12] | 0x20]) + body[13:])),
        "no key frame": riff(chunk(b"VP8 ", bytes([lossy[8] | 1]) + lossy[9:])),
        "lossy of no width": riff(chunk(b"VP8 ", lossy[8:14] + bytes(4) + lossy[18:])),
    }.items():
        yield OddImage(f"webp {name}", data, "refuse")
    # libwebp's partitions may be cut without notice: gray rows, which Pillow shows as well.
    short = chunk(b"VP8 ", lossy[8 : 8 + (len(lossy) - 8) * 2 // 3])
    yield OddImage("webp lossy with a short partition", riff(short), "refuse")


def all_webps() -> Iterator[OddImage]:
    """The whole corpus of this format."""
    for part in (streams, containers, animations, refused):
        yield from part()
