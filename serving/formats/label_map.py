"""Holds what every output format is written from; writes the label map as an array or bare
bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.palette import Color, LabelMap

Picture = Literal["png", "jpeg"]

# Beyond it a simplified region says nothing any more, and sums of squares stay exact.
MAX_TOLERANCE_PIXELS = 1000.0


@dataclass(frozen=True)
class MaskView:
    """Everything that an output format may show of one segmented image.

    ``labels`` are the class ids, uint8 ``[H,W]``, with more than 255 classes uint16; ``names[i]``
    and ``colors[i]`` (RGB) belong to id i. ``image``, RGB uint8 ``[H,W,3]``, and ``confidence``,
    uint8 ``[H,W]`` with 255 for certain, are there if a format needs them or the caller asked for
    them.
    """

    labels: LabelMap
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_label: int = 255
    image: npt.NDArray[np.uint8] | None = None
    confidence: npt.NDArray[np.uint8] | None = None

    def certain(self) -> npt.NDArray[np.uint8]:
        """Returns the confidence.

        Raises:
            ValueError: there is none, or it has another size than the labels.
        """
        if self.confidence is None or self.confidence.shape != self.labels.shape:
            raise ValueError("this format needs the confidence, in the size of the labels")
        return self.confidence


@dataclass(frozen=True)
class MaskOptions:
    """The options of the output formats; None, or False, where the caller did not say.

    Attributes:
        confidence: adds the network's confidence to the formats that can hold it.
        image: what an overlay is written as; PNG unless given.
        quality: of a JPEG, 1 to 100; 90 unless given.
        opacity: of the colours in an overlay, 0 to 1; 0.5 unless given.
        legend: adds a strip with the names and colours below an overlay.
        tolerance: how far, in pixels, a simplified polygon may be from the mask; 0 unless given.
        min_area: regions of fewer pixels get no polygon; 1 unless given.
        max_polygons: more regions than that are refused.

    Raises:
        InvalidRequest: a value out of range; the message names the option and the range.
    """

    confidence: bool = False
    image: Picture | None = None
    quality: int | None = None
    opacity: float | None = None
    legend: bool = False
    tolerance: float | None = None
    min_area: int | None = None
    max_polygons: int = 100_000

    def __post_init__(self) -> None:
        if self.image not in (None, "png", "jpeg"):
            raise InvalidRequest(f"image is {self.image!r}; known: png, jpeg")
        _check("quality", self.quality, 1, 100)
        _check("opacity", self.opacity, 0, 1)
        _check("tolerance", self.tolerance, 0, MAX_TOLERANCE_PIXELS)
        _check("min_area", self.min_area, 0, 2**31)

    def given(self) -> tuple[str, ...]:
        """Returns the names of the options that the caller set."""
        asked = {
            "confidence": self.confidence,
            "image": self.image is not None,
            "quality": self.quality is not None,
            "opacity": self.opacity is not None,
            "legend": self.legend,
            "tolerance": self.tolerance is not None,
            "min_area": self.min_area is not None,
        }
        return tuple(name for name, is_given in asked.items() if is_given)


@dataclass(frozen=True)
class Encoded:
    """An answer in one output format: its bytes and their media type."""

    body: bytes
    media_type: str


def _check(name: str, value: float | None, least: float, most: float) -> None:
    # Written so that NaN is refused.
    if value is not None and not least <= value <= most:
        raise InvalidRequest(f"{name} is {value:g}, expected {least:g} to {most:g}")


NPY, NPZ, RAW = "application/x-npy", "application/x-npz", "application/octet-stream"


def write_npy(view: MaskView, options: MaskOptions) -> Encoded:
    """Class ids, ``[H,W]``; with ``confidence`` an npz that holds ``mask`` and it."""
    buffer = io.BytesIO()
    labels = np.ascontiguousarray(view.labels)
    if options.confidence:
        np.savez(buffer, mask=labels, confidence=view.certain())
        return Encoded(buffer.getvalue(), NPZ)
    np.save(buffer, labels, allow_pickle=False)
    return Encoded(buffer.getvalue(), NPY)


def write_raw(view: MaskView, options: MaskOptions) -> Encoded:
    """Writes the class ids and nothing else, row by row: a byte each, or two, the lower first."""
    kind = view.labels.dtype.newbyteorder("<")
    return Encoded(view.labels.astype(kind, copy=False).tobytes(), RAW)
