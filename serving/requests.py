"""What the service is asked, and what it answers: the same for every transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from serving.forms.mask_view import Encoded, MaskOptions
from serving.geometry import Size
from serving.metrics import Timings

OutputSize = Literal["original", "model"]


@dataclass(frozen=True)
class SegmentOptions:
    """How the answer should look.

    Attributes:
        formats: names of ``serving.mask.FORMATS``, one or several.
        size: the photo's own size, or the network's.
        smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
        classes: names or ids to keep; other pixels become the ignore label. Empty: all.
        form: how the formats are written.
        tta: test-time augmentation: ``flip``, and scales as text (``0.75``). Empty: none.
    """

    formats: tuple[str, ...] = ("png",)
    size: OutputSize = "original"
    smooth: bool | None = None
    classes: tuple[str, ...] = ()
    form: MaskOptions = field(default_factory=MaskOptions)
    tta: tuple[str, ...] = ()


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
    """The encoded answer, each form by its name. ``image_size`` is the photo's own, after EXIF."""

    parts: Mapping[str, Encoded]
    model: str
    version: int
    image_size: Size
    answer_size: Size
    timings: Timings

    @property
    def only(self) -> Encoded:
        """The answer where one form was asked for; the first of several."""
        return next(iter(self.parts.values()))
