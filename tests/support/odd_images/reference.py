"""What an independent decoder makes of a file, and whether an answer is right."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from tests.support.odd_images.item import OddImage, Pixels, turned


def by_pillow(data: bytes, orientation: int = 1) -> Pixels | None:
    """Pillow's RGB of the first frame, alpha dropped, upright; None where it refuses the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            image.info.pop("transparency", None)
            if image.mode.startswith("I"):
                deep = np.asarray(image).astype(float)
                pixels = np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2)
            else:
                pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None
    return turned(pixels, orientation)


def right_answer(item: OddImage) -> Pixels | None:
    """The pixels that are known, else Pillow's."""
    if item.pixels is not None:
        return item.pixels
    return by_pillow(item.like or item.data, item.orientation)


def largest_difference(found: Pixels, expected: Pixels) -> int:
    """Of any sample; 256 where the shapes differ."""
    if found.shape != expected.shape:
        return 256
    return int(np.abs(found.astype(int) - expected.astype(int)).max(initial=0))
