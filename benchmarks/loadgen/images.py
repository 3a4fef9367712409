"""Provides the images that are sent: a folder's files, or rendered street scenes."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from serving.errors import SegserveError
from serving.imaging.decode import probe
from training.datasets.synthetic import render_scene

SCENES = 4


def read_folder(folder: Path) -> list[bytes]:
    """Returns every image file of a folder, in the order of their names.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    images = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        data = path.read_bytes() if path.is_file() else b""
        try:
            probe(data)
        except SegserveError:
            continue
        images.append(data)
    if not images:
        raise FileNotFoundError(f"{folder} holds no images: expected JPEG, PNG, BMP or WebP files")
    return images


def render_images(height: int, width: int, count: int = SCENES, seed: int = 7) -> list[bytes]:
    """Renders street scenes as JPEG, the same ones for the same arguments."""
    images = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(render_scene(seed + number, height, width).image).save(
            file, "JPEG", quality=90
        )
        images.append(file.getvalue())
    return images
