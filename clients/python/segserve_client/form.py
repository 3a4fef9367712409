"""How the files of an answer are written, and one such file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segserve_client.proto import segserve_pb2 as pb


@dataclass(frozen=True)
class Form:
    """Options of single formats; None: the server's own choice.

    Attributes:
        image: what an overlay is written as: ``png`` or ``jpeg``.
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
        """Puts what is given into ``request``."""
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


@dataclass(frozen=True)
class File:
    """One file of an answer: its bytes and their media type."""

    body: bytes
    media_type: str
