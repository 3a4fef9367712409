"""One small scene without symmetry as every kind of image file that the server decodes."""

import io
import struct
import zlib
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

HEIGHT, WIDTH = 30, 44
Samples: TypeAlias = npt.NDArray[Any]


def scene(channels: int = 3, dtype: type[np.uint8 | np.uint16] = np.uint8) -> Samples:
    """A gradient with a bright corner: smooth enough for JPEG, and no symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [x * 4, y * 6, 200 - 3 * x, 255 - y * 3][:channels]
    pixels = np.stack(planes, axis=-1)
    pixels[:8, :8] = 250
    if dtype == np.uint16:
        pixels = pixels * 257 + np.arange(WIDTH)[None, :, None] * 3
    samples: Samples = pixels.clip(0, np.iinfo(dtype).max).astype(dtype).squeeze()
    return samples


PHOTO = Image.fromarray(scene())


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


GRAY, INDEXED = PHOTO.convert("L"), PHOTO.quantize(32)
ALPHA = Image.fromarray(scene(channels=4))

LOSSLESS = {
    "png": encoded(PHOTO, "PNG"),
    "png gray": encoded(GRAY, "PNG"),
    "png gray and alpha": encoded(ALPHA.convert("LA"), "PNG"),
    "png alpha": encoded(ALPHA, "PNG"),
    "png palette": encoded(INDEXED, "PNG"),
    "png palette with alpha": encoded(INDEXED, "PNG", transparency=bytes(range(32))),
    "png transparent colour": encoded(PHOTO, "PNG", transparency=(250, 250, 250)),
    "png palette of 4 bits": encoded(PHOTO.quantize(16), "PNG", bits=4),
    "png of 1 bit": encoded(PHOTO.convert("1"), "PNG"),
    "webp lossless": encoded(PHOTO, "WEBP", lossless=True),
    "webp alpha": encoded(ALPHA, "WEBP", lossless=True, exact=True),
    "bmp": encoded(PHOTO, "BMP"),
    "bmp gray": encoded(GRAY, "BMP"),
    "bmp palette": encoded(INDEXED, "BMP"),
    "bmp of 1 bit": encoded(PHOTO.convert("1"), "BMP"),
    "bmp alpha": encoded(ALPHA, "BMP"),
}
LOSSY = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "jpeg 4:4:4": encoded(PHOTO, "JPEG", subsampling=0),
    "jpeg progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg gray": encoded(GRAY, "JPEG"),
    "jpeg rgb": encoded(PHOTO, "JPEG", keep_rgb=True),
    "jpeg cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "webp": encoded(PHOTO, "WEBP"),
}


def interlaced_png() -> bytes:
    """Adam7, written here since Pillow only reads it."""
    coarse = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
    passes = (*coarse, (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes()
        for y, x, down, across in passes
        for row in scene()[y::down, x::across]
        if row.size
    )
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def turned(pixels: Samples, orientation: int) -> Samples:
    """What the EXIF standard says each value means, written as array operations."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]


def sixteen_bit_png(channels: int) -> bytes:
    """The scene in 16 bits a channel: gray, RGB or RGBA."""
    deep = scene(channels, np.uint16)
    stored = deep if channels == 1 else deep[..., [2, 1, 0, 3][:channels]]
    return cv2.imencode(".png", stored)[1].tobytes()
