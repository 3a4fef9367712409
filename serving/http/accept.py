"""The HTTP header ``Accept`` (RFC 9110, section 12.5.1): which form of an answer it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.forms.mask_view import Picture
from serving.http.compression import read_quality
from serving.mask import MaskFormat

PICTURES: Mapping[str, Picture] = {"image/png": "png", "image/jpeg": "jpeg"}
# Browsers send some ten. It is read on the event loop, for every request.
MAX_RANGES = 32


@dataclass(frozen=True)
class Choice:
    """A format and, where its media type says so, what its picture is written as."""

    format: str
    image: Picture | None = None


def choose(accept: str, formats: Sequence[MaskFormat]) -> Choice | None:
    """What the header prefers of ``formats``; None where it takes none of their media types.

    The highest quality wins, then the more specific media range, then the earlier in the header,
    then the earlier format. Where all that an overlay's JPEG won by is its format, it is said.
    Only the first ``MAX_RANGES`` media ranges count.
    """
    ranges = _read_ranges(accept)
    best, best_rank = None, (0.0, 0, 0)
    for format in formats:
        for place, media_type in enumerate(format.media_types):
            rank = _rank(media_type, ranges)
            if rank[0] > 0 and (best is None or rank > best_rank):
                # The first media type is what the format is written as anyway.
                image = PICTURES.get(media_type) if place else None
                best, best_rank = Choice(format.name, image), rank
    return best


def _read_ranges(accept: str) -> dict[str, tuple[float, int]]:
    """Quality and place of every media range; of one that is named twice the first."""
    ranges: dict[str, tuple[float, int]] = {}
    for place, entry in enumerate(accept.split(",", MAX_RANGES)[:MAX_RANGES]):
        media_range, *parameters = entry.split(";", MAX_RANGES)
        ranges.setdefault(media_range.strip().lower(), (_quality(parameters), -place))
    return ranges


def _rank(media_type: str, ranges: Mapping[str, tuple[float, int]]) -> tuple[float, int, int]:
    """Quality, specificity and place of the most specific range that ``media_type`` is in."""
    kind, _, subtype = media_type.partition("/")
    for specificity, name in ((2, f"{kind}/{subtype}"), (1, f"{kind}/*"), (0, "*/*")):
        if name in ranges:
            quality, place = ranges[name]
            return quality, specificity, place
    return 0.0, -1, 0


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.partition("=")[0].strip().lower() == "q":
            return read_quality(parameter)
    return 1.0
