"""What the service is asked, and what it answers: the same for every transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.geometry import Size
from serving.metrics import Timings

OutputSize = Literal["original", "model"]


@dataclass(frozen=True)
class SegmentOptions:
    """How the answer should look.

    Attributes:
        format: a name of ``serving.mask.FORMATS``.
        size: the photo's own size, or the network's.
        smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
        confidence: add the mean confidence of each class to ``stats``.
        classes: names or ids to keep; other pixels become the ignore label. Empty: all.
    """

    format: str = "png"
    size: OutputSize = "original"
    smooth: bool | None = None
    confidence: bool = False
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentRequest:
    """One encoded image for one model; ``timeout_s`` counts from now."""

    model: str
    data: bytes
    options: SegmentOptions
    version: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class SegmentResult:
    """The encoded answer. ``image_size`` is the photo's own, after EXIF."""

    body: bytes
    media_type: str
    model: str
    version: int
    image_size: Size
    answer_size: Size
    timings: Timings
