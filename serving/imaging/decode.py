"""Decodes images to RGB pixels, with the format, the size and the work checked by their headers.

8-bit RGB comes out of every legal file: 16-bit samples are divided by 257 and rounded to the
nearest, gray is repeated, alpha is dropped (not blended), CMYK and palettes are converted, EXIF
orientation is applied. Of an animation the first frame is read. A truncated file is an error.

:func:`decode` decodes in its caller's process, for files that are trusted. The server decodes what
strangers send in other processes: see :mod:`serving.imaging.decoder_pool`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidImage, TooLarge, UnsupportedImageFormat
from serving.imaging import bmp
from serving.imaging.codecs import decode_still
from serving.imaging.containers import walk_jpeg, walk_png, walk_webp
from serving.imaging.still import MAX_PASSES, BrokenImage, StillImage
from serving.settings import IMAGE_FORMATS

DEFAULT_FORMATS = IMAGE_FORMATS

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


_WALKS: dict[str, Callable[[memoryview], StillImage]] = {
    "JPEG": walk_jpeg,
    "PNG": walk_png,
    "BMP": bmp.walk,
    "WEBP": walk_webp,
}


@dataclass(frozen=True)
class ImageHeader:
    """The facts in an image's headers.

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
    return describe(read_still(data, formats))


def read_still(
    data: bytes | bytearray | memoryview, formats: frozenset[str] = DEFAULT_FORMATS
) -> StillImage:
    """Finds the still image in a file, and all that decoding it may cost.

    ``data`` must not change while the result is used: it holds views of it.

    Raises:
        InvalidImage, UnsupportedImageFormat, ValueError: as :func:`probe`.
    """
    if not formats <= DEFAULT_FORMATS:
        unknown = ", ".join(sorted(formats - DEFAULT_FORMATS))
        raise ValueError(f"{unknown} cannot be decoded; {_listed(DEFAULT_FORMATS)} can")
    name = _detect(bytes(data[:64]), formats)
    if name not in formats:
        raise UnsupportedImageFormat(f"{name} images are not accepted; send {_listed(formats)}")
    try:
        still = _WALKS[name](memoryview(data))
    except (struct.error, EOFError):
        raise InvalidImage(f"the {name} image is truncated: it ends in its header") from None
    except BrokenImage as error:
        raise InvalidImage(f"the {name} image {error}") from None
    if still.width < 1 or still.height < 1:
        raise InvalidImage(f"the {name} image is broken: it says it has no pixels")
    return still


def describe(still: StillImage) -> ImageHeader:
    """Returns what callers are to know of an image: its size is that of the upright one."""
    width, height = still.width, still.height
    if still.orientation >= 5:
        width, height = height, width
    return ImageHeader(still.format, width, height, still.orientation, still.complete)


def decode(
    data: bytes | bytearray | memoryview,
    *,
    max_megapixels: float,
    formats: frozenset[str] = DEFAULT_FORMATS,
) -> npt.NDArray[np.uint8]:
    """Decodes an image file to RGB, uint8 ``[H,W,3]``, contiguous, upright by its EXIF orientation.

    Args:
        data: the whole file.
        max_megapixels: the largest size in millions of pixels.
        formats: the allowed ones among :data:`DEFAULT_FORMATS`.

    Raises:
        InvalidImage: empty, no image, truncated or broken.
        UnsupportedImageFormat: an image of a format outside ``formats``.
        TooLarge: more than ``max_megapixels``, or too many scans over them; nothing was decoded.
    """
    still = read_still(data, formats)
    check_still(still, max_megapixels)
    return decode_here(still)


def decode_here(still: StillImage) -> npt.NDArray[np.uint8]:
    """Decodes in this process what :func:`check_still` has found good.

    Raises:
        InvalidImage: the decoder refuses it.
        TooLarge: there is not enough memory.
    """
    header = describe(still)
    stream = still.parts[0] if len(still.parts) == 1 else memoryview(b"".join(still.parts))
    try:
        pixels = np.zeros((header.height, header.width, 3), np.uint8)
        decode_still(still, memoryview(stream), pixels)
    except BrokenImage as error:
        raise InvalidImage(f"the {still.format} image {error}") from None
    except MemoryError:
        raise needs_memory(still) from None
    return pixels


def check_size(header: ImageHeader, max_megapixels: float) -> None:
    """Raises TooLarge above ``max_megapixels`` millions of pixels."""
    if header.width * header.height > max_megapixels * 1e6:
        raise TooLarge(
            f"the image has {header.height}x{header.width} pixels, more than"
            f" max_image_megapixels = {max_megapixels:g} allows; send a smaller one",
            reason="image_megapixels",
        )


def check_still(still: StillImage, max_megapixels: float) -> None:
    """Checks that a decoder may be given the image: whole, and within the limits of work.

    Raises:
        TooLarge: too many pixels, or too many scans over them.
        InvalidImage: truncated or broken.
    """
    check_size(describe(still), max_megapixels)
    if still.scans > 1 and still.scans * still.pixels > MAX_PASSES * max_megapixels * 1e6:
        raise TooLarge(
            f"the image has {still.scans} scans over {still.pixels / 1e6:.1f} megapixels;"
            f" scans x megapixels may be {MAX_PASSES} x max_image_megapixels ="
            f" {MAX_PASSES * max_megapixels:g}; send a smaller one, or one of fewer scans",
            reason="image_megapixels",
        )
    if not still.complete:
        raise InvalidImage(f"the {still.format} image is truncated: its end is missing")
    if still.fault:
        raise InvalidImage(f"the {still.format} image {still.fault}")


def needs_memory(still: StillImage) -> TooLarge:
    """Returns the error for an image that takes more memory than a decoder may have."""
    return TooLarge(
        f"decoding the {still.format} image takes over {still.memory_bytes >> 20} MiB, more than"
        " its pixels account for; send it in another format, or encoded anew",
        reason="image_memory",
    )


def _listed(formats: frozenset[str]) -> str:
    return ", ".join(sorted(formats))


def _detect(start: bytes, formats: frozenset[str]) -> str:
    if not start:
        raise InvalidImage("the image is empty: zero bytes arrived")
    for name, magic in _MAGIC:
        if magic.match(start):
            return name
    raise InvalidImage(f"the bytes are not a known image: expected {_listed(formats)}")
