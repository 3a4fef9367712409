"""An image as the bytes that are sent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

ImageSource: TypeAlias = str | Path | bytes | npt.NDArray[np.uint8]


def read_image(image: ImageSource) -> bytes:
    """The bytes of a file, or of an array encoded without loss.

    Args:
        image: a path, an encoded image (JPEG, PNG, BMP or WebP), or uint8 ``[H,W,3]`` RGB or
            ``[H,W]`` gray.

    Raises:
        OSError: the file cannot be read.
        ValueError: an array of another shape or dtype.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    gray, rgb = image.ndim == 2, image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (gray or rgb) or image.size == 0:
        raise ValueError(
            f"an image is uint8 [H,W,3] (RGB) or [H,W] (gray), "
            f"not {image.dtype} {list(image.shape)}"
        )
    buffer = io.BytesIO()
    # Level 1: the network between is seldom slower than zlib.
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
