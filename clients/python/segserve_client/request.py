"""Builds what a request carries: the image, and the options of output formats."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from segserve_client.proto import segserve_pb2 as pb

ImageSource: TypeAlias = str | Path | bytes | npt.NDArray[np.uint8]


def read_image(image: ImageSource) -> bytes:
    """Returns the bytes of a file, or of an array encoded without loss.

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
            f"{image.dtype} {list(image.shape)} is not a valid image: expected uint8 [H,W,3]"
            " (RGB) or [H,W] (gray)"
        )
    buffer = io.BytesIO()
    # Level 1: networks are seldom slower than zlib.
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class Form:
    """Options of output formats; None leaves the choice to the server.

    Attributes:
        image: file format of an overlay: ``png`` or ``jpeg``.
        quality: of a JPEG, 1 to 100.
        opacity: of an overlay's colours, 0 to 1.
        legend: names and colours below an overlay.
        tolerance: how many pixels polygons may be off the mask.
        min_area: regions of fewer pixels get no polygon.
    """

    image: Literal["png", "jpeg"] | None = None
    quality: int | None = None
    opacity: float | None = None
    legend: bool = False
    tolerance: float | None = None
    min_area: int | None = None

    def write(self, request: pb.SegmentRequest) -> None:
        """Writes the options that are set into ``request``."""
        request.legend = self.legend
        if self.image is not None:
            request.image_format = self.image
        if self.quality is not None:
            request.quality = self.quality
        if self.opacity is not None:
            request.opacity = self.opacity
        if self.tolerance is not None:
            request.tolerance = self.tolerance
        if self.min_area is not None:
            request.min_area = self.min_area
