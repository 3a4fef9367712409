"""Pixels of a published dataset's files, as they are stored.

EXIF orientation is not applied: published masks belong to the stored pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.imaging.geometry import Size, scale
from training.datasets.base import Sample

Pixels = npt.NDArray[np.uint8]
UNTURNED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_photo(path: Path) -> Pixels:
    """uint8 ``[H,W,3]`` RGB; gray photos are repeated. Raises ValueError, naming the file."""
    image = cv2.imread(str(path), UNTURNED) if path.is_file() else None
    if image is None:
        raise ValueError(f"cannot read {path}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_ids(path: Path) -> Pixels:
    """uint8 ``[H,W]``: the values of an 8-bit gray PNG, or the indices of a coloured one.

    Raises:
        ValueError: no image, or one in true colours; the file is named.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise ValueError(
                    f"{path}: a PNG of mode {image.mode}; masks are indexed or 8-bit gray"
                )
            return np.array(image, np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def resize_pair(image: Pixels, label: Pixels, height: int, width: int) -> Sample:
    """An image linearly, by the server's code, and its label by nearest neighbour.

    The exact one: OpenCV's other takes the pixel before, up to half a pixel beside the image's.
    """
    label = np.ascontiguousarray(label)
    ids = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return scale(np.ascontiguousarray(image), Size(height, width)), np.asarray(ids, np.uint8)


def check_size(image: Pixels, label: Pixels, mask: Path) -> Sample:
    """Both, if they have one size; else ValueError, naming the mask."""
    if label.shape != image.shape[:2]:
        raise ValueError(f"{mask}: shape {label.shape} does not fit image {image.shape}")
    return image, label
