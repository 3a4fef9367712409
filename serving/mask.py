"""A label map as the bytes of an answer: one encoder a format, found by name or media type."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from serving import png
from serving.class_statistics import class_statistics
from serving.errors import InvalidRequest
from serving.jit import compiled, read_only
from serving.palette import Color, format_palette, plte


@dataclass(frozen=True)
class MaskView:
    """Everything that an encoder may show of one segmented image.

    ``labels`` are the class ids, uint8 ``[H,W]``; ``names[i]`` and ``colors[i]`` (RGB) belong to
    id i. ``image``, RGB uint8 ``[H,W,3]``, and ``confidence``, uint8 ``[H,W]`` with 255 for
    certain, are there if the format needs them or the caller asked for them.
    """

    labels: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_label: int = 255
    image: npt.NDArray[np.uint8] | None = None
    confidence: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Encoded:
    """The body of an answer and its media type."""

    body: bytes
    media_type: str


@dataclass(frozen=True)
class MaskFormat:
    """One way to write a :class:`MaskView`, and which of its optional parts that takes."""

    name: str
    media_type: str
    needs_image: bool
    encode: Callable[[MaskView], bytes]
    needs_confidence: bool = False


def encode(view: MaskView, format: str) -> Encoded:
    """Writes ``view`` in the format of that name.

    Raises:
        InvalidRequest: no such format; the message lists the known ones.
        ValueError: ``view`` lacks the image or the confidence that the format needs, or they
            have another size than the labels.
    """
    chosen = FORMATS.get(format)
    if chosen is None:
        raise InvalidRequest(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    return Encoded(chosen.encode(view), chosen.media_type)


def format_for_accept(accept: str) -> str | None:
    """The format that an HTTP ``Accept`` header prefers; None where it takes none of ours.

    The highest quality wins, then the more specific media range, then the earlier in the header.
    Several formats may share a media type; the first of them in :data:`FORMATS` answers.
    """
    best, best_rank = None, (0.0, 0, 0)
    for name, format in FORMATS.items():
        rank = _rank(format.media_type, accept)
        if rank[0] > 0 and (best is None or rank > best_rank):
            best, best_rank = name, rank
    return best


def warm() -> None:
    """Compiles the loop of this module (once), so that no request waits for it."""
    pixel = np.zeros((1, 1), np.uint8)
    _overlay(MaskView(pixel, ("a",), ((0, 0, 0),), image=np.zeros((1, 1, 3), np.uint8)))


def _rank(media_type: str, accept: str) -> tuple[float, int, int]:
    """Quality, specificity and place of the most specific range that ``media_type`` is in."""
    kind, _, subtype = media_type.partition("/")
    ranges = {f"{kind}/{subtype}": 2, f"{kind}/*": 1, "*/*": 0}
    specificity, quality, place = -1, 0.0, 0
    for k, entry in enumerate(accept.split(",")):
        media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
        if ranges.get(media_range, -1) > specificity:
            specificity, quality, place = ranges[media_range], _quality(parameters), -k
    return quality, specificity, place


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _png(view: MaskView) -> bytes:
    return png.indexed(view.labels, plte(view.colors, view.ignore_label))


def _overlay(view: MaskView) -> bytes:
    """The photo with half of each class's colour; pixels of no class stay as they are."""
    if view.image is None or view.image.shape[:2] != view.labels.shape:
        raise ValueError("an overlay needs the image, in the size of the labels")
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(view.colors)] = np.array(view.colors, np.uint8).reshape(-1, 3)
    blended = _blend(
        read_only(view.image), read_only(view.labels), read_only(colors), len(view.colors)
    )
    return png.rgb(blended)


@compiled
def _blend(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    colors: npt.NDArray[np.uint8],
    classes: int,
) -> npt.NDArray[np.uint8]:
    height, width = labels.shape
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label < classes:
                for k in range(3):
                    out[y, x, k] = (np.uint32(image[y, x, k]) + colors[label, k] + 1) >> 1
            else:
                for k in range(3):
                    out[y, x, k] = image[y, x, k]
    return out


def _npy(view: MaskView) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(view.labels), allow_pickle=False)
    return buffer.getvalue()


def _raw(view: MaskView) -> bytes:
    return view.labels.tobytes()


def _confidence(view: MaskView) -> bytes:
    if view.confidence is None or view.confidence.shape != view.labels.shape:
        raise ValueError("this format needs the confidence, in the size of the labels")
    return png.gray(view.confidence)


def _stats(view: MaskView) -> bytes:
    classes: list[dict[str, object]] = []
    for share in class_statistics(view.labels, view.names, view.confidence):
        entry: dict[str, object] = {
            "id": share.id,
            "name": share.name,
            "color": format_palette([view.colors[share.id]]),
            "pixels": share.pixels,
            "share": round(share.share, 6),
        }
        if share.mean_confidence is not None:
            entry["mean_confidence"] = round(share.mean_confidence, 4)
        classes.append(entry)
    height, width = view.labels.shape
    answer = {"height": height, "width": width, "classes": classes}
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


FORMATS: Mapping[str, MaskFormat] = MappingProxyType(
    {
        format.name: format
        for format in (
            MaskFormat("png", "image/png", False, _png),
            MaskFormat("overlay", "image/png", True, _overlay),
            MaskFormat("confidence", "image/png", False, _confidence, needs_confidence=True),
            MaskFormat("npy", "application/x-npy", False, _npy),
            MaskFormat("raw", "application/octet-stream", False, _raw),
            MaskFormat("stats", "application/json", False, _stats),
        )
    }
)
