"""Odd PNG files, put together chunk by chunk, with their right pixels by NumPy."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tests.support.odd_images.item import Duty, OddImage, Pixels, noise, scene, tiff, turned

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
DEPTHS = {
    GRAY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GRAY_ALPHA: (8, 16),
    RGBA: (8, 16),
}
SIZES = ((1, 1), (1, 9), (9, 1), (7, 9), (33, 17))
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip
Samples = npt.NDArray[np.uint16]


def chunk(kind: bytes, body: bytes = b"", crc: int | None = None) -> bytes:
    """Length, name, content and their right checksum, or another one."""
    if crc is None:
        crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def header(
    height: int, width: int, colour: int, depth: int, interlace: int = 0, *rest: int
) -> bytes:
    """The IHDR chunk; ``rest`` are the compression and the filter method, 0 and 0."""
    compression, filters = rest or (0, 0)
    body = struct.pack(">IIBBBBB", width, height, depth, colour, compression, filters, interlace)
    return chunk(b"IHDR", body)


def packed(samples: Samples, depth: int, filters: Sequence[int] = (0,)) -> bytes:
    """Filtered rows of ``[H,W,C]`` samples; filter types are taken in turn."""
    height = len(samples)
    flat = samples.reshape(height, -1)
    if depth == 16:
        rows = flat.astype(">u2").view(np.uint8).reshape(height, -1)
    elif depth == 8:
        rows = flat.astype(np.uint8)
    else:
        bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    step = max(1, samples.shape[2] * depth // 8)
    above = np.zeros(rows.shape[1], np.int64)
    lines = []
    for k, row in enumerate(rows.astype(np.int64)):
        kind = filters[k % len(filters)]
        lines.append(bytes([kind]) + _filtered(row, above, step, kind))
        above = row
    return b"".join(lines)


def _filtered(
    row: npt.NDArray[np.int64], above: npt.NDArray[np.int64], step: int, kind: int
) -> bytes:
    left = np.concatenate([np.zeros(step, np.int64), row])[: len(row)]
    corner = np.concatenate([np.zeros(step, np.int64), above])[: len(row)]
    if kind == 4:
        guess = left + above - corner
        far = [np.abs(guess - other) for other in (left, above, corner)]
        predicted = np.where(
            (far[0] <= far[1]) & (far[0] <= far[2]),
            left,
            np.where(far[1] <= far[2], above, corner),
        )
    else:
        predicted = {1: left, 2: above, 3: (left + above) // 2}.get(kind, np.zeros_like(row))
    return bytes(((row - predicted) % 256).astype(np.uint8))


def stream(
    samples: Samples, depth: int, interlace: int = 0, filters: Sequence[int] = (0,)
) -> bytes:
    """The rows, or those of the seven passes one behind the other."""
    if not interlace:
        return packed(samples, depth, filters)
    parts = (samples[y::down, x::across] for y, x, down, across in ADAM7)
    return b"".join(packed(part, depth, filters) for part in parts if part.size)


def palette_of(depth: int) -> Pixels:
    """Colours that no sum of the index gives by chance."""
    index = np.arange(1 << depth)
    planes = [index * 37 % 256, 255 - index * 11 % 256, index * 101 % 256]
    colours: Pixels = np.stack(planes, 1).astype(np.uint8)
    return colours


def shown(samples: Samples, colour: int, depth: int) -> Pixels:
    """The RGB that the samples mean: alpha dropped, 16 bits divided by 257 and rounded."""
    if colour == PALETTE:
        indexed: Pixels = palette_of(depth)[samples[..., 0]]
        return indexed
    eight = np.rint(samples.astype(float) * 255 / ((1 << depth) - 1)).astype(np.uint8)
    return np.repeat(eight[..., :1], 3, 2) if colour in (GRAY, GRAY_ALPHA) else eight[..., :3]


def samples_of(height: int, width: int, colour: int, depth: int, seed: int = 1) -> Samples:
    """Noise that uses every bit."""
    return noise((height, width, CHANNELS[colour]), (1 << depth) - 1, seed)


def png(
    samples: Samples,
    colour: int,
    depth: int,
    interlace: int = 0,
    *,
    before: bytes = b"",
    behind: bytes = b"",
    filters: Sequence[int] = (0,),
    idat: Sequence[bytes] | None = None,
    level: int = 6,
) -> bytes:
    """A whole file; ``before`` and ``behind`` are chunks around IDAT, behind PLTE."""
    if idat is None:
        idat = [zlib.compress(stream(samples, depth, interlace, filters), level)]
    plte = chunk(b"PLTE", palette_of(depth).tobytes()) if colour == PALETTE else b""
    return b"".join(
        (
            SIGNATURE,
            header(*samples.shape[:2], colour, depth, interlace),
            plte,
            before,
            *(chunk(b"IDAT", part) for part in idat),
            behind,
            chunk(b"IEND"),
        )
    )


def _plain() -> tuple[Samples, Pixels]:
    pixels = scene(15, 22)
    return pixels.astype(np.uint16), pixels


def kinds() -> Iterator[OddImage]:
    """Every colour type, depth and interlacing in several sizes."""
    for colour, depths in DEPTHS.items():
        for depth in depths:
            for interlace in (0, 1):
                for height, width in SIZES:
                    samples = samples_of(height, width, colour, depth)
                    yield OddImage(
                        f"png colour {colour} depth {depth} interlace {interlace} {height}x{width}",
                        png(samples, colour, depth, interlace),
                        "decode",
                        shown(samples, colour, depth),
                    )


def filters() -> Iterator[OddImage]:
    """Every filter type, alone and mixed, for several widths of a pixel."""
    for colour, depth in ((RGB, 8), (GRAY, 1), (RGBA, 16), (PALETTE, 4)):
        samples = samples_of(11, 13, colour, depth)
        for chosen in ((0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0), (1, 4)):
            for interlace in (0, 1):
                yield OddImage(
                    f"png filters {chosen} colour {colour} interlace {interlace}",
                    png(samples, colour, depth, interlace, filters=chosen),
                    "decode",
                    shown(samples, colour, depth),
                )


def streams() -> Iterator[OddImage]:
    """Compressed data in unusual settings and cut into unusual pieces."""
    samples, pixels = _plain()
    rows = stream(samples, 8)
    for level in (0, 1, 9):
        yield OddImage(f"png level {level}", png(samples, RGB, 8, level=level), "decode", pixels)
    for bits in range(9, 16):
        packer = zlib.compressobj(6, zlib.DEFLATED, bits)
        data = packer.compress(rows) + packer.flush()
        # zlib writes 512 as 256 in some versions, so the smallest windows are read or refused.
        duty: Duty = "decode" if bits > 10 else "either"
        yield OddImage(f"png window {bits}", png(samples, RGB, 8, idat=[data]), duty, pixels)
    for strategy in (1, 2, 3, 4):
        packer = zlib.compressobj(6, zlib.DEFLATED, 15, 8, strategy)
        data = packer.compress(rows) + packer.flush()
        yield OddImage(
            f"png strategy {strategy}", png(samples, RGB, 8, idat=[data]), "decode", pixels
        )
    packer = zlib.compressobj()
    flushed = b"".join(
        packer.compress(rows[k : k + 40]) + packer.flush(zlib.Z_FULL_FLUSH)
        for k in range(0, len(rows), 40)
    )
    flushed += packer.flush()
    yield OddImage("png flushed blocks", png(samples, RGB, 8, idat=[flushed]), "decode", pixels)
    data = zlib.compress(rows)
    for size in (1, 2, 7, 100):
        pieces = [data[k : k + size] for k in range(0, len(data), size)]
        yield OddImage(f"png idat of {size}", png(samples, RGB, 8, idat=pieces), "decode", pixels)
    for where, pieces in {
        "first": [b"", data],
        "last": [data, b""],
        "inside": [data[:20], b"", b"", data[20:]],
    }.items():
        yield OddImage(
            f"png empty idat {where}", png(samples, RGB, 8, idat=pieces), "either", pixels
        )
    extra = zlib.compress(rows + b"\0" * 67 * 4)
    yield OddImage("png more rows", png(samples, RGB, 8, idat=[extra]), "either", pixels)
    yield OddImage("png behind zlib", png(samples, RGB, 8, idat=[data + b"abc"]), "either", pixels)
    wrong = data[:-4] + b"\0\0\0\0"
    yield OddImage("png adler wrong", png(samples, RGB, 8, idat=[wrong]), "either", pixels)


def ancillary() -> Iterator[OddImage]:
    """Chunks that change nothing of the samples, wherever they lie."""
    samples, pixels = _plain()
    chunks = {
        "gAMA": struct.pack(">I", 100000),
        "gAMA 0.2": struct.pack(">I", 20000),
        "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        "sRGB": b"\0",
        "sBIT": b"\5\6\5",
        "bKGD": struct.pack(">HHH", 10, 20, 30),
        "pHYs": struct.pack(">IIB", 1, 9, 1),
        "tIME": struct.pack(">HBBBBB", 2024, 2, 30, 25, 61, 61),
        "tEXt": b"Comment\0an ordinary one",
        "zTXt": b"Comment\0\0" + zlib.compress(b"x" * 1000),
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation='6'/>",
        "iCCP broken": b"icc\0\0" + zlib.compress(bytes(200)),
        "iCCP no zlib": b"icc\0\0abc",
        "tRNS": struct.pack(">HHH", *pixels[3, 3]),
        "tRNS too long": bytes(100),
        "cICP": b"\x09\x10\0\1",
        "eXIf broken": b"II*\0\xff\xff\xff\xff",
        "abCd unknown": b"private content",
        "vpAg unknown": b"",
    }
    for name, body in chunks.items():
        one = chunk(name[:4].encode(), body)
        for where, data in {
            "before": png(samples, RGB, 8, before=one),
            "behind": png(samples, RGB, 8, behind=one),
            "twice": png(samples, RGB, 8, before=one + one),
        }.items():
            yield OddImage(f"png {name} {where} idat", data, "either", pixels)
    for colour, depth, body in (
        (GRAY, 1, b"\0\1"),
        (GRAY, 4, b"\0\7"),
        (GRAY, 16, b"\x12\x34"),
        (PALETTE, 2, b"\0\x80"),
        (PALETTE, 8, bytes(range(255, -1, -1))),
        (RGB, 16, bytes(6)),
    ):
        deep = samples_of(9, 14, colour, depth)
        for interlace in (0, 1):
            yield OddImage(
                f"png tRNS colour {colour} depth {depth} interlace {interlace}",
                png(deep, colour, depth, interlace, before=chunk(b"tRNS", body)),
                "decode",
                shown(deep, colour, depth),
            )
    bad = chunk(b"tEXt", b"Comment\0x", crc=1)
    yield OddImage("png text with a wrong crc", png(samples, RGB, 8, before=bad), "either", pixels)
    many = chunk(b"tEXt", b"a\0b") * 500
    yield OddImage("png 500 texts", png(samples, RGB, 8, before=many), "either", pixels)
    suggested = chunk(b"PLTE", palette_of(4).tobytes()) + chunk(b"hIST", bytes(32))
    yield OddImage(
        "png suggested palette", png(samples, RGB, 8, before=suggested), "decode", pixels
    )
    for trailer in (b"x", b"trailer" * 100, chunk(b"IDAT", b"x" * 50), chunk(b"IEND")):
        data = png(samples, RGB, 8) + trailer
        yield OddImage(f"png {len(trailer)} bytes behind the end", data, "decode", pixels)
    huge = struct.pack(">I", 0x7FFFFFFF) + b"IDAT" + bytes(60)
    yield OddImage("png huge chunk behind the end", png(samples, RGB, 8) + huge, "decode", pixels)


def _png_with_exif(samples: Samples, exif: bytes, side: str) -> bytes:
    before, behind = (exif, b"") if side == "before" else (b"", exif)
    return png(samples, RGB, 8, before=before, behind=behind)


def orientations() -> Iterator[OddImage]:
    """EXIF in both byte orders, at odd offsets, in front of the pixels and behind."""
    samples, pixels = _plain()
    for orientation in range(1, 9):
        for order in "<>":
            exif = chunk(b"eXIf", tiff(orientation, order, offset=8 + orientation, before=2))
            upright = turned(pixels, orientation)
            side = "before" if order == "<" else "behind"
            data = _png_with_exif(samples, exif, side)
            name = f"png orientation {orientation} {order} {side}"
            yield OddImage(name, data, "decode", upright)
    two = chunk(b"eXIf", tiff(6)) + chunk(b"eXIf", tiff(3))
    for side in ("before", "behind"):
        data = _png_with_exif(samples, two, side)
        yield OddImage(f"png two eXIf {side}", data, "either", turned(pixels, 6))
    data = png(samples, RGB, 8, before=chunk(b"eXIf", tiff(6)), behind=chunk(b"eXIf", tiff(3)))
    yield OddImage("png eXIf around the pixels", data, "either", turned(pixels, 6))


def animations() -> Iterator[OddImage]:
    """APNG: the default image is what a still image decoder shows."""
    height, width = 12, 16
    for colour, depth in (
        (RGB, 8),
        (RGBA, 8),
        (GRAY, 8),
        (PALETTE, 8),
        (RGB, 16),
        (GRAY_ALPHA, 16),
    ):
        samples = samples_of(height, width, colour, depth)
        for dispose in (0, 1, 2):
            for blend in (0, 1):
                for first in (True, False):
                    data = apng(samples, colour, depth, dispose, blend, first=first)
                    yield OddImage(
                        f"png animated colour {colour} depth {depth} dispose {dispose}"
                        f" blend {blend} {'with' if first else 'without'} first",
                        data,
                        "either",
                        shown(samples, colour, depth),
                    )
    samples, pixels = _plain()
    control = chunk(b"acTL", struct.pack(">II", 1, 0))
    for name, before in {
        "acTL alone": control,
        "acTL of no frames": chunk(b"acTL", bytes(8)),
        "acTL cut": chunk(b"acTL", bytes(3)),
        "fcTL alone": frame_control(0, 15, 22),
        "two acTL": control + control + frame_control(0, 15, 22),
        "frame beyond": control + frame_control(0, 15, 22, 100, 100),
        "smaller first frame": control + frame_control(0, 5, 7, 1, 1),
    }.items():
        yield OddImage(f"png {name}", png(samples, RGB, 8, before=before), "either", pixels)


def frame_control(
    number: int, height: int, width: int, y: int = 0, x: int = 0, dispose: int = 0, blend: int = 0
) -> bytes:
    """An fcTL chunk."""
    body = struct.pack(">IIIIIHHBB", number, width, height, x, y, 1, 10, dispose, blend)
    return chunk(b"fcTL", body)


def apng(
    samples: Samples, colour: int, depth: int, dispose: int, blend: int, *, first: bool
) -> bytes:
    """Two frames at an offset behind the default image, which is the first frame or is not."""
    height, width = samples.shape[:2]
    small = samples_of(height // 2, width // 2, colour, depth, seed=9)
    number = 0
    before = chunk(b"acTL", struct.pack(">II", 2 + first, 0))
    if first:
        before += frame_control(0, height, width, dispose=dispose, blend=blend)
        number = 1
    behind = b""
    for y, x in ((height // 2, 3), (1, width // 2)):
        behind += frame_control(number, small.shape[0], small.shape[1], y, x, dispose, blend)
        rows = zlib.compress(stream(small, depth))
        behind += chunk(b"fdAT", struct.pack(">I", number + 1) + rows)
        number += 2
    return png(samples, colour, depth, before=before, behind=behind)


def refused() -> Iterator[OddImage]:
    """Files without one right answer."""
    samples, pixels = _plain()
    good = png(samples, RGB, 8)
    start, rest = good[:8], good[33:]
    data = zlib.compress(stream(samples, 8))

    def of(name: str, file: bytes, duty: Duty = "refuse") -> OddImage:
        return OddImage(f"png {name}", file, duty, pixels if duty == "either" else None)

    for colour, depth, interlace in (
        (5, 8, 0),
        (2, 4, 0),
        (3, 16, 0),
        (0, 3, 0),
        (2, 8, 2),
        (6, 1, 0),
    ):
        file = start + header(15, 22, colour, depth, interlace) + rest
        yield of(f"bad header {colour} {depth} {interlace}", file)
    yield of("compression 1", start + header(15, 22, RGB, 8, 0, 1, 0) + rest)
    yield of("filter method 64", start + header(15, 22, RGB, 8, 0, 0, 64) + rest)
    yield of("no width", start + header(15, 0, RGB, 8) + rest)
    yield of("no pixels at all", start + header(0, 0, RGB, 8) + rest)
    yield of("no palette", start + header(15, 22, PALETTE, 8) + rest)
    yield of("no IDAT", good[:33] + chunk(b"IEND"))
    yield of("no IEND", good[:-12])
    yield of("no IHDR", start + rest)
    yield of("filter 5", png(samples, RGB, 8, filters=(5,)))
    yield of("filter 200 in the last row", png(samples, RGB, 8, filters=(0,) * 14 + (200,)))
    yield of(
        "half of the rows", png(samples, RGB, 8, idat=[zlib.compress(stream(samples, 8)[:400])])
    )
    yield of("a zlib stream that is cut", png(samples, RGB, 8, idat=[data[: len(data) // 2]]))
    yield of("no zlib", png(samples, RGB, 8, idat=[b"abc" * 30]))
    yield of("a preset dictionary", png(samples, RGB, 8, idat=[b"\x78\xbb" + data[2:]]))
    yield of("wrong crc of IDAT", good.replace(chunk(b"IDAT", data), chunk(b"IDAT", data, crc=7)))
    yield of("wrong crc of IHDR", start + good[8:29] + b"abcd" + rest)
    yield of("an unknown critical chunk", png(samples, RGB, 8, before=chunk(b"ABCD", b"x")))
    yield of("two IHDR", png(samples, RGB, 8, before=header(15, 22, RGB, 8)))
    yield of("another IHDR", png(samples, RGB, 8, before=header(30, 44, RGB, 8)))
    for cut in (9, 20, 32, 40, 60):
        yield of(f"{cut} bytes", good[:cut])
    yield of("text ending lines", good.replace(b"\r\n", b"\n", 1))
    split = png(samples, RGB, 8, idat=[data[:30]])[:-12] + chunk(b"tEXt", b"a\0b")
    yield of("IDAT not in one piece", split + chunk(b"IDAT", data[30:]) + chunk(b"IEND"), "either")
    short = chunk(b"PLTE", palette_of(8).tobytes()[:30])
    deep = samples_of(9, 14, PALETTE, 8)
    whole = png(deep, PALETTE, 8).replace(chunk(b"PLTE", palette_of(8).tobytes()), short)
    # Pixels beyond the palette have no right answer: libpng shows one, Pillow another.
    yield OddImage("png palette too short", whole, "either", None)
    odd = chunk(b"PLTE", palette_of(8).tobytes()[:31])
    file = png(deep, PALETTE, 8).replace(chunk(b"PLTE", palette_of(8).tobytes()), odd)
    yield of("palette of 31 bytes", file)


def all_pngs() -> Iterator[OddImage]:
    """The whole corpus of this format."""
    for part in (kinds, filters, streams, ancillary, orientations, animations, refused):
        yield from part()
