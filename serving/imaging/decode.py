"""Encoded images to RGB pixels, with the format, the size and the work checked first.

8-bit RGB comes out of every legal file: 16-bit samples are divided by 257 and rounded to the
nearest, gray is repeated, alpha is dropped (not blended), CMYK and palettes are converted, EXIF
orientation is applied. Of an animation the first frame is read. A truncated file is an error.

:func:`decode` decodes in its caller's process, for files that are trusted. The server decodes what
strangers send in other processes: see :mod:`serving.imaging.decoder_pool`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidImage, TooLarge
from serving.imaging.codecs import decode_still
from serving.imaging.header import DEFAULT_FORMATS, ImageHeader, describe, probe, read_still
from serving.imaging.still import MAX_PASSES, BrokenImage, StillImage

__all__ = [
    "DEFAULT_FORMATS",
    "ImageHeader",
    "check_size",
    "check_still",
    "decode",
    "decode_here",
    "needs_memory",
    "probe",
    "read_still",
]


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
