"""Odd BMP files: every header, bit fields in all orders, run lengths; right pixels by NumPy."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tests.support.odd_images.item import Duty, OddImage, Pixels, noise, scene

RGB, RLE8, RLE4, BITFIELDS, JPEG, PNG, ALPHABITFIELDS = range(7)
HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
SIZES = ((1, 1), (1, 9), (9, 1), (7, 9), (5, 32))
# Red, green, blue (and alpha) as masks of the little-endian pixel.
MASKS_32 = {
    "BGRX": (0xFF0000, 0xFF00, 0xFF, 0),
    "BGRA": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    "RGBX": (0xFF, 0xFF00, 0xFF0000, 0),
    "RGBA": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    "XRGB": (0xFF00, 0xFF0000, 0xFF000000, 0),
    "ARGB": (0xFF00, 0xFF0000, 0xFF000000, 0xFF),
    "XBGR": (0xFF000000, 0xFF0000, 0xFF00, 0),
    "ABGR": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    "BRGX": (0xFF00, 0xFF, 0xFF0000, 0),
    "GRBX": (0xFF00, 0xFF, 0xFF0000, 0),
    "GBRX": (0xFF0000, 0xFF, 0xFF00, 0),
    "RBGX": (0xFF, 0xFF0000, 0xFF00, 0),
    "10-10-10": (0x3FF00000, 0xFFC00, 0x3FF, 0),
    "2-10-10-10": (0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000),
    "11-11-10": (0xFFE00000, 0x1FFC00, 0x3FF, 0),
    "565 in 32": (0xF800, 0x7E0, 0x1F, 0),
    "4444 in 32": (0xF00, 0xF0, 0xF, 0xF000),
    "1-1-1": (4, 2, 1, 0),
    "16-8-8": (0xFFFF0000, 0xFF00, 0xFF, 0),
}
MASKS_16 = {
    "565": (0xF800, 0x7E0, 0x1F, 0),
    "555": (0x7C00, 0x3E0, 0x1F, 0),
    "1555": (0x7C00, 0x3E0, 0x1F, 0x8000),
    "5551": (0xF800, 0x7C0, 0x3E, 1),
    "BGR 565": (0x1F, 0x7E0, 0xF800, 0),
    "BGR 555": (0x1F, 0x3E0, 0x7C00, 0),
    "4444": (0xF00, 0xF0, 0xF, 0xF000),
    "444": (0xF00, 0xF0, 0xF, 0),
    "BGR 444": (0xF, 0xF0, 0xF00, 0),
    "332": (0xE0, 0x1C, 3, 0),
    "655": (0xFC00, 0x3E0, 0x1F, 0),
    "484": (0xF000, 0xFF0, 0xF, 0),
}
# What Windows, Photoshop, GIMP and phones write.
ORDINARY = {"BGRX", "BGRA", "565", "555"}
# Words of pixels or palette indices, whole numbers of at most 32 bits.
Values: TypeAlias = npt.NDArray[np.integer[Any]]


def rows_of(values: Values, bits: int, *, top_down: bool = False) -> bytes:
    """Rows of pixels ``[H,W]``, each filled to four bytes, from the bottom unless ``top_down``."""
    height, width = values.shape
    if bits < 8:
        places = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        rows = values.astype("<u4").view(np.uint8).reshape(height, width, 4)
        rows = rows[..., : bits // 8].reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    return bytes((rows if top_down else rows[::-1]).tobytes())


def bmp(
    height: int,
    width: int,
    bits: int,
    data: bytes,
    *,
    size: int = 40,
    compression: int = RGB,
    masks: tuple[int, int, int, int] | None = None,
    palette: Pixels | None = None,
    colours: int | None = None,
    gap: int = 0,
    planes: int = 1,
    offset: int | None = None,
) -> bytes:
    """A whole file.

    ``size`` is the header's, ``palette`` RGB ``[N,3]``, ``colours`` what the header says of its
    length, ``gap`` bytes between header and pixels, ``offset`` where the pixels are said to be.
    """
    if size == 12:
        info = struct.pack("<IHHHH", size, width, height, planes, bits)
    else:
        count = len(palette) if palette is not None and colours is None else colours or 0
        info = struct.pack(
            "<IiiHHIIiiII", size, width, height, planes, bits, compression, len(data), 2835, 2835,
            count, 0,
        )  # fmt: skip
        if masks is not None:
            info += struct.pack("<4I", *masks)[: 16 if size != 40 or compression == 6 else 12]
        if size > len(info):
            # sRGB for the two that name a colour space.
            info += bytes(56 - len(info)) if len(info) < 56 <= size else b""
            info += b"BGRs" if size >= 108 else b""
        info = info.ljust(size, b"\0")[: max(size, len(info) if size == 40 else size)]
    table = b""
    if palette is not None:
        stored = palette[:, ::-1]
        if size not in (12,):
            stored = np.pad(stored, ((0, 0), (0, 1)))
        table = stored.astype(np.uint8).tobytes()
    start = 14 + len(info) + len(table) + gap
    place = start if offset is None else offset
    file = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, place)
    return file + info + table + bytes(gap) + data


def palette_of(count: int) -> Pixels:
    """Colours that no sum of the index gives by chance."""
    index = np.arange(count)
    colours = [index * 53 % 256, 250 - index * 7 % 250, index * 91 % 256]
    palette: Pixels = np.stack(colours, 1).astype(np.uint8)
    return palette


def by_masks(values: Values, masks: tuple[int, int, int, int]) -> Pixels:
    """Each colour's bits scaled to 0..255 and rounded."""
    planes = []
    for mask in masks[:3]:
        low = (mask & -mask).bit_length() - 1
        top = mask >> low
        planes.append(np.rint(((values & mask) >> low).astype(float) * 255 / top))
    pixels: Pixels = np.stack(planes, -1).astype(np.uint8)
    return pixels


def of_palette(height: int, width: int, bits: int, seed: int = 3) -> Values:
    return noise((height, width), (1 << bits) - 1, seed).astype(np.uint32)


def headers() -> Iterator[OddImage]:
    """Every header with every depth that it allows, in several sizes and both directions."""
    for size in HEADERS:
        for bits in (1, 4, 8, 24) if size == 12 else (1, 4, 8, 16, 24, 32):
            for height, width in SIZES if size in (12, 40, 124) else SIZES[3:4]:
                for top_down in (False, True) if size >= 40 and size != 64 else (False,):
                    palette = palette_of(1 << bits) if bits <= 8 else None
                    words = noise((height, width, 2), 65535, 4).astype(np.uint32)
                    values: Values = (words[..., 0] | words[..., 1] << 16) & ((1 << bits) - 1)
                    if palette is not None:
                        pixels = palette[values]
                    else:
                        pixels = by_masks(
                            values, MASKS_16["555"] if bits == 16 else MASKS_32["BGRX"]
                        )
                    data = rows_of(values, bits, top_down=top_down)
                    tall = -height if top_down else height
                    file = bmp(tall, width, bits, data, size=size, palette=palette)
                    if size == 16:
                        # The short header of OS/2 ends behind the depth.
                        file = _short(file, palette)
                    direction = "from the top" if top_down else "from the bottom"
                    yield OddImage(
                        f"bmp header {size} depth {bits} {height}x{width} {direction}",
                        file,
                        "decode" if size in (40, 108, 124) else "either",
                        pixels,
                        # Five bits may be shifted up or scaled.
                        tolerance=1 if bits == 16 else 0,
                    )


def _short(file: bytes, palette: Pixels | None) -> bytes:
    head, start = file[:10], struct.unpack_from("<I", file, 10)[0]
    return head + struct.pack("<I", start) + file[14:]


def fields() -> Iterator[OddImage]:
    """Bit fields in every order, behind the short header and inside the longer ones."""
    for bits, masks in ((32, MASKS_32), (16, MASKS_16)):
        words = noise((8, 11, 2), 65535, 6).astype(np.uint32)
        values: Values = words[..., 0] | words[..., 1] << 16
        values[0, 0] = values[-1, -1] = 0xFFFFFFFF
        values[0, 1] = 0
        values = values & ((1 << bits) - 1)
        for name, four in masks.items():
            for size in (40, 52, 56, 108, 124):
                for top_down in (False, True) if size in (40, 124) else (False,):
                    three = four if size != 52 else (*four[:3], 0)
                    data = rows_of(values, bits, top_down=top_down)
                    yield OddImage(
                        f"bmp fields {name} header {size}{' from the top' if top_down else ''}",
                        bmp(
                            -8 if top_down else 8,
                            11,
                            bits,
                            data,
                            size=size,
                            compression=BITFIELDS,
                            masks=three,
                        ),
                        "decode" if name in ORDINARY and size in (40, 124) else "either",
                        by_masks(values, four),
                        tolerance=1,
                    )
        four = MASKS_32["RGBA"] if bits == 32 else MASKS_16["4444"]
        file = bmp(8, 11, bits, rows_of(values, bits), compression=ALPHABITFIELDS, masks=four)
        yield OddImage(f"bmp alpha fields of {bits}", file, "either", by_masks(values, four), 1)


def palettes() -> Iterator[OddImage]:
    """Palettes that are short, long or cut off, and pixels that lie elsewhere."""
    for bits in (1, 4, 8):
        values: Values = of_palette(7, 10, bits) % 2
        for count in (2, 200):
            colours = min(count, 1 << bits)
            file = bmp(7, 10, bits, rows_of(values, bits), palette=palette_of(colours))
            pixels = palette_of(colours)[values]
            yield OddImage(f"bmp {count} colours depth {bits}", file, "decode", pixels)
    values = of_palette(7, 10, 8)
    data = rows_of(values, 8)
    short = np.where(np.arange(256)[:, None] < 20, palette_of(256), 0).astype(np.uint8)
    # An index beyond the palette has no colour: black, as Pillow shows it, or refused.
    file = bmp(7, 10, 8, data, palette=short[:20])
    yield OddImage("bmp index beyond the palette", file, "either", short[values])
    full, pixels = palette_of(256), palette_of(256)[values]
    for name, file in {
        "colours 0 is 256": bmp(7, 10, 8, data, palette=full, colours=0),
        "colours 300": bmp(7, 10, 8, data, palette=full, colours=300),
        "gap": bmp(7, 10, 8, data, palette=full, gap=37),
        "trailing bytes": bmp(7, 10, 8, data, palette=full) + b"more" * 20,
        "file size wrong": _patched(bmp(7, 10, 8, data, palette=full), 2, b"\1\0\0\0"),
        "image size 0": _patched(bmp(7, 10, 8, data, palette=full), 34, bytes(4)),
        "image size wrong": _patched(bmp(7, 10, 8, data, palette=full), 34, b"\xff\xff\xff\x7f"),
        "planes 0": bmp(7, 10, 8, data, palette=full, planes=0),
        "planes 3": bmp(7, 10, 8, data, palette=full, planes=3),
    }.items():
        duty: Duty = "decode" if name in ("gap", "colours 0 is 256") else "either"
        yield OddImage(f"bmp {name}", file, duty, pixels)
    rgb = scene(9, 13)
    packed = (rgb.astype(np.uint32) * (1 << 16, 1 << 8, 1)).sum(-1).astype(np.uint32)
    data = rows_of(packed, 24)
    file = bmp(9, 13, 24, data, palette=palette_of(16))
    yield OddImage("bmp true colour with a palette", file, "decode", rgb)
    yield OddImage("bmp true colour after a gap", bmp(9, 13, 24, data, gap=100), "decode", rgb)


def _patched(file: bytes, place: int, new: bytes) -> bytes:
    return file[:place] + new + file[place + len(new) :]


def run_lengths() -> Iterator[OddImage]:
    """RLE8 and RLE4: runs, absolute runs, deltas, lines and pictures that end early."""
    palette = palette_of(16)
    end_line, end, delta = b"\0\0", b"\0\1", b"\0\2"
    expected = np.zeros((4, 6), np.uint32)

    def of(
        name: str, data: bytes, labels: Values, compression: int, duty: Duty = "either"
    ) -> OddImage:
        bits = 8 if compression == RLE8 else 4
        file = bmp(4, 6, bits, data, compression=compression, palette=palette)
        return OddImage(f"bmp rle{bits} {name}", file, duty, palette[labels])

    # The first line is the lowest.
    expected[3], expected[2, :3], expected[2, 3:] = 5, (1, 2, 3), 7
    expected[1], expected[0] = (8, 8, 9, 9, 9, 10), 11
    rle8 = b"\6\5" + end_line + b"\0\3\1\2\3\0" + b"\3\7" + end_line + b"\2\x08\3\x09\1\x0a"
    rle8 += end_line + b"\6\x0b"
    rle4 = b"\6\x55" + end_line + b"\0\3\x12\x30" + b"\3\x77" + end_line + b"\2\x88\3\x99\1\xa0"
    rle4 += end_line + b"\6\xbb"
    for compression, data in ((RLE8, rle8), (RLE4, rle4)):
        yield of("whole", data + end_line + end, expected, compression)
        yield of("no end of the last line", data + end, expected, compression)
        yield of("no end at all", data, expected, compression)
        yield of("bytes behind the end", data + end + b"\6\1" * 9, expected, compression)
    mixed = np.zeros((4, 6), np.uint32)
    mixed[3] = (1, 2, 1, 2, 1, 0)
    yield of("two colours of a run", b"\5\x12" + end, mixed, RLE4)
    early = np.zeros((4, 6), np.uint32)
    early[3, :2] = 5
    for compression, run in ((RLE8, b"\2\5"), (RLE4, b"\2\x55")):
        yield of("early end", run + end, early, compression)
        yield of("early line ends", run + end_line * 4 + end, early, compression)
        jump = early.copy()
        jump[1, 3:5] = 5
        yield of("delta", run + delta + b"\1\2" + run + end, jump, compression)
        beyond = run + delta + b"\xff\xff" + run + end
        yield OddImage(f"bmp rle{8 if compression == RLE8 else 4} delta beyond",
                       bmp(4, 6, 8 if compression == RLE8 else 4, beyond,
                           compression=compression, palette=palette))  # fmt: skip
    empty = np.zeros((4, 6), np.uint32)
    yield of("nothing", end, empty, RLE8)
    yield of("nothing", end, empty, RLE4)
    long = bmp(4, 6, 8, b"\xff\5" + end, compression=RLE8, palette=palette)
    line = np.zeros((4, 6), np.uint32)
    line[3] = 5
    yield OddImage("bmp rle8 run beyond the line", long, "either", palette[line])
    top = bmp(-4, 6, 8, rle8 + end, compression=RLE8, palette=palette)
    yield OddImage("bmp rle8 from the top", top, "either", palette[expected[::-1]])


def refused() -> Iterator[OddImage]:
    """Files without one right answer."""
    values = of_palette(7, 10, 8)
    good = bmp(7, 10, 8, rows_of(values, 8), palette=palette_of(256))
    data = rows_of(np.zeros((7, 10), np.uint32), 24)
    pixels = rows_of(np.zeros((7, 10), np.uint32), 32)
    overlapping, holed = (0xFF, 0xFF, 0xFF, 0), (0xF0F, 0xF0000, 0xF0, 0)
    for name, file in {
        "a row missing": good[:-12],
        "a pixel missing": good[:-3],
        "header alone": good[:54],
        "half a header": good[:30],
        "negative width": bmp(7, -10, 24, data),
        "no width": bmp(7, 0, 24, data),
        "no height": bmp(0, 10, 24, data),
        "smallest height": bmp(-(2**31), 10, 24, data),
        "depth 0": bmp(7, 10, 0, data),
        "depth 7": bmp(7, 10, 7, data),
        "depth 64": bmp(7, 10, 64, data * 3),
        "as jpeg": bmp(7, 10, 0, b"\xff\xd8\xff\xd9", compression=JPEG),
        "as png": bmp(7, 10, 0, b"\x89PNG", compression=PNG),
        "compression 99": bmp(7, 10, 24, data, compression=99),
        "rle8 of 24 bits": bmp(7, 10, 24, data, compression=RLE8),
        "rle4 of 8 bits": bmp(7, 10, 8, data, compression=RLE4, palette=palette_of(256)),
        "fields of 8 bits": bmp(7, 10, 8, data, masks=(1, 2, 4, 0), compression=BITFIELDS),
        "pixels beyond the file": bmp(7, 10, 24, data, offset=100_000),
        "fields that overlap": bmp(7, 10, 32, pixels, masks=overlapping, compression=BITFIELDS),
        "fields with holes": bmp(7, 10, 32, pixels, masks=holed, compression=BITFIELDS),
        "header size 41": _patched(good, 14, b"\x29"),
        "header size beyond the file": _patched(good, 14, b"\x40\x42\x0f\0"),
    }.items():  # fmt: skip
        yield OddImage(f"bmp {name}", file, "refuse")
    # The bytes that fill the last row up to four are no pixels.
    whole = palette_of(256)[values]
    yield OddImage("bmp without the last filling", good[:-2], "either", whole)
    # Masks of no bits are read as the usual ones, or refused.
    file = bmp(7, 10, 32, pixels, masks=(0, 0, 0, 0), compression=BITFIELDS)
    yield OddImage("bmp no fields", file, "either", np.zeros((7, 10, 3), np.uint8))
    # Pixels inside the header: what they show is nobody's picture, but it is in the file.
    inside = bmp(7, 10, 8, rows_of(values, 8), palette=palette_of(256), offset=20)
    yield OddImage("bmp pixels inside the header", inside)


def all_bmps() -> Iterator[OddImage]:
    """The whole corpus of this format."""
    for part in (headers, fields, palettes, run_lengths, refused):
        yield from part()
