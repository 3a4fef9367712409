"""A photo to pixels and a label map to a picture, as one does it with Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def read_photo(data: bytes, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 ``[1,height,width,3]`` RGB, and the photo's own (width, height)."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    own = photo.size
    if own != (width, height):
        photo = photo.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(photo)[None], own


def write_mask(labels: np.ndarray, colors: bytes, own: tuple[int, int]) -> bytes:
    """An indexed PNG of class ids, uint8 ``[h,w]``, in colour and at the photo's own size."""
    mask = Image.fromarray(labels)
    if own != mask.size:
        mask = mask.resize(own, Image.Resampling.NEAREST)
    mask.putpalette(colors)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()
