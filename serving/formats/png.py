"""Writes PNGs: class ids with a palette, confidence as gray, and RGB in 8 bits; more than 255
classes as gray in 16 bits, as palettes end at 256 colours.

Every row is stored as its difference to the row above (PNG's filter Up), which leaves mostly zeros
of a label map; ISA-L deflates those several times faster than zlib.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from serving.formats import png
from serving.formats.label_map import Encoded, MaskOptions, MaskView
from serving.palette import LabelMap, plte

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GRAY, _RGB, _INDEXED = 0, 2, 3
_UP = 2


def indexed(labels: npt.NDArray[np.uint8], plte: bytes) -> bytes:
    """Returns a palette PNG whose pixel values are ``labels``, uint8 ``[H,W]``.

    ``plte`` holds the colours, 3 bytes for each of up to 256 values; every value that occurs must
    have one.

    Raises:
        ValueError: ``labels`` or ``plte`` of another shape.
    """
    if len(plte) % 3 or not 3 <= len(plte) <= 768:
        raise ValueError(f"a palette has 3 bytes for each of 1 to 256 colours, not {len(plte)}")
    if labels.ndim != 2:
        raise ValueError(f"a label map is [H,W], not {labels.shape}")
    return _write(labels, _INDEXED, _chunk(b"PLTE", plte), level=1)


def gray(pixels: LabelMap) -> bytes:
    """Returns a grayscale PNG of ``pixels``, uint8 or uint16 ``[H,W]``, of as many bits.

    Raises:
        ValueError: ``pixels`` of another shape.
    """
    if pixels.ndim != 2:
        raise ValueError(f"a gray image is [H,W], not {pixels.shape}")
    if pixels.dtype == np.uint16:
        apart = pixels.astype(">u2").view(np.uint8).reshape(*pixels.shape, 2)
        return _write(apart, _GRAY, b"", level=1, bits=16)
    return _write(np.asarray(pixels, np.uint8), _GRAY, b"", level=1)


def rgb(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Returns an RGB PNG of ``pixels``, uint8 ``[H,W,3]``.

    Raises:
        ValueError: ``pixels`` of another shape.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an RGB image is [H,W,3], not {pixels.shape}")
    return _write(pixels, _RGB, b"", level=1)


def _write(
    pixels: npt.NDArray[np.uint8], color_type: int, palette: bytes, level: int, bits: int = 8
) -> bytes:
    height, width = pixels.shape[:2]
    if not height or not width:
        raise ValueError(f"a PNG has at least one pixel, not {pixels.shape}")
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    data = isal_zlib.compress(filtered.data, level)
    return b"".join(
        (SIGNATURE, _chunk(b"IHDR", header), palette, _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


MEDIA_TYPE = "image/png"


def write_png(view: MaskView, options: MaskOptions) -> Encoded:
    """Returns an indexed PNG: pixel values are the class ids, PLTE holds the colours. More than
    255 classes are gray in 16 bits, without colours."""
    if view.labels.dtype != np.uint8:
        return Encoded(png.gray(view.labels), MEDIA_TYPE)
    labels = np.asarray(view.labels, np.uint8)
    return Encoded(png.indexed(labels, plte(view.colors, view.ignore_label)), MEDIA_TYPE)


def write_confidence(view: MaskView, options: MaskOptions) -> Encoded:
    """Returns a gray PNG of the confidence, 255 is certain."""
    return Encoded(png.gray(view.certain()), MEDIA_TYPE)
