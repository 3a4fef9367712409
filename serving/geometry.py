"""How an image reaches the model's size and where its pixels lie in the logits: pure arithmetic.

Images are resized with half-pixel centres, the networks' logits with aligned corners. Pixel x0 of
the original therefore lies at ``x = (x0 + 0.5) * model / original - 0.5`` in the model's input and
at ``x * (logits - 1) / (model - 1)`` in the logits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

RESIZES = ("stretch",)
PLANNED_RESIZES = ("letterbox", "tile")


@dataclass(frozen=True)
class Size:
    """Height and width in pixels, written HEIGHTxWIDTH."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a size has at least one pixel each way, not {self}")

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads ``"352x480"`` as height 352, width 480.

        Raises:
            ValueError: anything else.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text.strip().lower())
        if match is None:
            raise ValueError(f"{text!r} is no size; write HEIGHTxWIDTH, for example 352x480")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Plan:
    """How one image is brought to the model: the whole image, stretched to the model's size."""

    original: Size
    model: Size


def plan(original: Size, model: Size, resize: str = "stretch") -> Plan:
    """The plan for an image of size ``original`` (after EXIF) and a model of size ``model``.

    Raises:
        ValueError: ``resize`` is not ``stretch``.
    """
    if resize in PLANNED_RESIZES:
        raise ValueError(f"resize {resize!r} is not supported yet; use stretch")
    if resize not in RESIZES:
        known = ", ".join((*RESIZES, *PLANNED_RESIZES))
        raise ValueError(f"unknown resize {resize!r}; the ways are {known}")
    return Plan(original, model)


def prepare(
    image: npt.NDArray[np.uint8], plan: Plan, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Resizes ``image`` (uint8 ``[H0,W0,3]``) to the model's size, bilinear, half-pixel centres.

    Returns ``out`` (uint8 ``[H,W,3]``, a slot of a batch) when it is given, ``image`` itself when
    the sizes are equal, else a new array.

    Raises:
        ValueError: ``image`` or ``out`` is not of the plan's size.
    """
    original, model = plan.original, plan.model
    if image.shape != (original.height, original.width, 3):
        raise ValueError(f"the plan is for {original} RGB pixels, the image is {image.shape}")
    if out is not None and out.shape != (model.height, model.width, 3):
        raise ValueError(f"the model takes {model} RGB pixels, out is {out.shape}")
    if original == model:
        if out is None:
            return image
        np.copyto(out, image)
        return out
    size = (model.width, model.height)
    if out is not None and out.flags.c_contiguous:
        cv2.resize(image, size, dst=out, interpolation=cv2.INTER_LINEAR)
        return out
    resized = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    if out is None:
        return resized
    np.copyto(out, resized)
    return out


def source_positions(original: int, model: int, logits: int) -> npt.NDArray[np.float64]:
    """Where each of ``original`` pixels along one axis lies among ``logits`` positions.

    ``model`` is the length of the same axis at the model's input. Returns float64 ``[original]``,
    ascending, within ``[0, logits - 1]``.
    """
    if logits == 1 or model == 1:
        return np.zeros(original, np.float64)
    centres = (np.arange(original, dtype=np.float64) + 0.5) * model / original - 0.5
    return np.clip(centres * (logits - 1) / (model - 1), 0.0, logits - 1.0)
