"""The HTTP header ``Accept`` (RFC 9110, section 12.5.1): which form of an answer it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.forms.mask_view import Picture
from serving.mask import MaskFormat

PICTURES: Mapping[str, Picture] = {"image/png": "png", "image/jpeg": "jpeg"}


@dataclass(frozen=True)
class Choice:
    """A format and, where its media type says so, what its picture is written as."""

    format: str
    image: Picture | None = None


def choose(accept: str, formats: Sequence[MaskFormat]) -> Choice | None:
    """What the header prefers of ``formats``; None where it takes none of their media types.

    The highest quality wins, then the more specific media range, then the earlier in the header,
    then the earlier format. Where all that an overlay's JPEG won by is its format, it is said.
    """
    best, best_rank = None, (0.0, 0, 0)
    for format in formats:
        for place, media_type in enumerate(format.media_types):
            rank = _rank(media_type, accept)
            if rank[0] > 0 and (best is None or rank > best_rank):
                # The first media type is what the format is written as anyway.
                image = PICTURES.get(media_type) if place else None
                best, best_rank = Choice(format.name, image), rank
    return best


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
