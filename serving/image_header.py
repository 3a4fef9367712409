"""Format, size and orientation of an encoded image, read from its headers: no pixel is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from serving.errors import InvalidImage, UnsupportedImageFormat

DEFAULT_FORMATS = frozenset({"JPEG", "PNG", "BMP", "WEBP"})

_MAGIC = (
    ("JPEG", re.compile(rb"\xff\xd8\xff", re.DOTALL)),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n", re.DOTALL)),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    # Images as well, though none that is decoded here.
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("AVIF", re.compile(rb"....ftypavi[fs]", re.DOTALL)),
    ("HEIF", re.compile(rb"....ftyp(he[iv].|mif1|msf1)", re.DOTALL)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("JPEG XL", re.compile(rb"\0\0\0\x0cJXL |\xff\x0a")),
    ("PSD", re.compile(rb"8BPS")),
    ("ICO", re.compile(rb"\0\0\x01\0[^\0]\0")),
    ("OpenEXR", re.compile(rb"\x76\x2f\x31\x01")),
    ("Radiance HDR", re.compile(rb"#\?RADIANCE")),
    ("DDS", re.compile(rb"DDS \x7c")),
    ("QOI", re.compile(rb"qoif")),
    ("PNM", re.compile(rb"P[1-7]\s+[#0-9W]")),
)


# A file of nothing but tiny segments would otherwise hold the GIL for seconds.
MAX_SEGMENTS = 100_000

# A marker with a length after it; fill bytes and restart markers have none.
_JPEG_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)


@dataclass(frozen=True)
class ImageHeader:
    """What the headers of an image say.

    ``width`` and ``height`` are in pixels, of the upright image: after ``orientation``, EXIF's 1
    to 8, is applied. ``complete`` is false for a file that ends too early.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    complete: bool = True


def probe(
    data: bytes | bytearray | memoryview, formats: frozenset[str] = DEFAULT_FORMATS
) -> ImageHeader:
    """Reads the headers of an image file.

    Raises:
        InvalidImage: empty, no image, or headers that are broken or cut off.
        UnsupportedImageFormat: an image of a format outside ``formats``; the message lists those.
        ValueError: ``formats`` holds one that is not among :data:`DEFAULT_FORMATS`.
    """
    if not formats <= DEFAULT_FORMATS:
        unknown = ", ".join(sorted(formats - DEFAULT_FORMATS))
        raise ValueError(f"{unknown} cannot be decoded; {_listed(DEFAULT_FORMATS)} can")
    name = _detect(bytes(data[:64]), formats)
    if name not in formats:
        raise UnsupportedImageFormat(f"{name} images are not accepted; send {_listed(formats)}")
    try:
        header = _READERS[name](bytes(data))
    except (struct.error, EOFError):
        raise InvalidImage(f"the {name} image is truncated: it ends in its header") from None
    if header.width < 1 or header.height < 1:
        raise InvalidImage(f"the {name} image is broken: it says it has no pixels")
    return header


def _listed(formats: frozenset[str]) -> str:
    return ", ".join(sorted(formats))


def _detect(start: bytes, formats: frozenset[str]) -> str:
    if not start:
        raise InvalidImage("the image is empty: zero bytes arrived")
    for name, magic in _MAGIC:
        if magic.match(start):
            return name
    raise InvalidImage(f"the bytes are no image that is known here; send {_listed(formats)}")


def _too_many(format: str) -> InvalidImage:
    return InvalidImage(f"the {format} image is broken: over {MAX_SEGMENTS} segments")


def _header(
    format: str, width: int, height: int, exif: bytes | None, complete: bool
) -> ImageHeader:
    orientation = 1 if exif is None else _orientation(exif)
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(format, width, height, orientation, complete)


def _jpeg(data: bytes) -> ImageHeader:
    width = height = 0
    exif = None
    position = 2
    for _ in range(MAX_SEGMENTS):
        found = _JPEG_SEGMENT.search(data, position)
        if found is None:
            raise EOFError
        marker, position = found[1][0], found.end()
        length = struct.unpack_from(">H", data, position)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 3)
        elif marker == 0xE1 and exif is None and data[position + 2 : position + 8] == b"Exif\0\0":
            exif = data[position + 8 : position + length]
        elif marker in (0xDA, 0xD9):
            # Inside a scan FF is always followed by 00 or RSTn, so this is the image's own end.
            complete = marker == 0xD9 or data.rfind(b"\xff\xd9") >= position + length
            return _header("JPEG", width, height, exif, complete)
        position += length
    raise _too_many("JPEG")


def _png(data: bytes) -> ImageHeader:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise InvalidImage("the PNG image is broken: it does not start with IHDR")
    exif = None
    position = 8
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            return _header("PNG", width, height, exif, complete=False)
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            return _header("PNG", width, height, exif, complete=False)
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind == b"IEND":
            return _header("PNG", width, height, exif, complete=True)
        position = end
    raise _too_many("PNG")


def _bmp(data: bytes) -> ImageHeader:
    header_size = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    # A negative height means that the rows run from the top.
    return _header("BMP", width, abs(height), None, complete=True)


def _webp(data: bytes) -> ImageHeader:
    riff_size = struct.unpack_from("<I", data, 4)[0]
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        width, height = 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    else:
        raise InvalidImage("the WEBP image is broken: it does not start with VP8, VP8L or VP8X")
    exif = None
    position = 12
    for _ in range(MAX_SEGMENTS):
        if kind != b"VP8X" or position + 8 > len(data):
            return _header("WEBP", width, height, exif, complete=riff_size + 8 <= len(data))
        length = struct.unpack_from("<I", data, position + 4)[0]
        if data[position : position + 4] == b"EXIF":
            exif = data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
        position += 8 + length + length % 2
    raise _too_many("WEBP")


_READERS: dict[str, Callable[[bytes], ImageHeader]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "BMP": _bmp,
    "WEBP": _webp,
}


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of a TIFF block; 1 where it is absent or broken."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        directory = struct.unpack_from(order + "I", exif, 4)[0]
        entries = struct.unpack_from(order + "H", exif, directory)[0]
        for k in range(entries):
            entry = directory + 2 + 12 * k
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112:
                width = {3: "H", 4: "I"}.get(kind, "B")
                value = int(struct.unpack_from(order + width, exif, entry + 8)[0])
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
