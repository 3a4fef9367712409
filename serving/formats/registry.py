"""The output formats, by name and by media type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from serving.errors import InvalidRequest
from serving.formats import class_statistics as stats
from serving.formats import label_map as arrays
from serving.formats import overlay, polygons, rle
from serving.formats import png as pictures
from serving.formats.label_map import Encoded, MaskOptions, MaskView

__all__ = ["FORMATS", "Encoded", "MaskOptions", "MaskView", "check_options", "encode", "warm"]

NO_OPTIONS = MaskOptions()


@dataclass(frozen=True)
class MaskFormat:
    """One output format.

    Attributes:
        media_types: by which ``Accept`` asks for it; the first unless the options say otherwise.
        encode: writes it.
        takes: the names of the :class:`MaskOptions` that it heeds.
        needs_image: whether it shows the photo.
        needs_confidence: whether it shows the confidence even where no option asks for it.
    """

    name: str
    media_types: tuple[str, ...]
    encode: Callable[[MaskView, MaskOptions], Encoded]
    takes: frozenset[str] = frozenset()
    needs_image: bool = False
    needs_confidence: bool = False


CONFIDENCE = frozenset({"confidence"})

FORMATS: Mapping[str, MaskFormat] = MappingProxyType(
    {
        format.name: format
        for format in (
            MaskFormat("png", (pictures.MEDIA_TYPE,), pictures.write_png),
            MaskFormat(
                "overlay",
                tuple(overlay.MEDIA_TYPES.values()),
                overlay.write_overlay,
                frozenset({"image", "quality", "opacity", "legend"}),
                needs_image=True,
            ),
            MaskFormat(
                "confidence",
                (pictures.MEDIA_TYPE,),
                pictures.write_confidence,
                CONFIDENCE,
                needs_confidence=True,
            ),
            MaskFormat("npy", (arrays.NPY,), arrays.write_npy, CONFIDENCE),
            MaskFormat("raw", (arrays.RAW,), arrays.write_raw),
            MaskFormat("stats", (stats.MEDIA_TYPE,), stats.write_stats, CONFIDENCE),
            MaskFormat("rle", (rle.MEDIA_TYPE,), rle.write_rle, CONFIDENCE),
            MaskFormat(
                "polygons",
                (polygons.MEDIA_TYPE,),
                polygons.write_polygons,
                CONFIDENCE | {"tolerance", "min_area"},
            ),
        )
    }
)


def encode(view: MaskView, format: str, options: MaskOptions = NO_OPTIONS) -> Encoded:
    """Writes ``view`` in the format of that name.

    Raises:
        InvalidRequest: no such format; the message lists the known ones.
        ValueError: ``view`` lacks the image or the confidence that the format needs, or they
            have another size than the labels.
    """
    return find_format(format).encode(view, options)


def find_format(name: str) -> MaskFormat:
    """Returns the format of that name.

    Raises:
        InvalidRequest: there is none; the message lists the known ones.
    """
    chosen = FORMATS.get(name)
    if chosen is None:
        raise InvalidRequest(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return chosen


def needs_image(formats: Sequence[str]) -> bool:
    """Returns whether one of ``formats`` shows the photo."""
    return any(find_format(name).needs_image for name in formats)


def needs_confidence(formats: Sequence[str], options: MaskOptions) -> bool:
    """Returns whether one of ``formats`` shows the confidence, or the caller asked for it."""
    return options.confidence or any(find_format(name).needs_confidence for name in formats)


def check_options(formats: Sequence[str], options: MaskOptions) -> None:
    """Refuses an option that none of ``formats`` heeds.

    Raises:
        InvalidRequest: naming the option and the formats that heed it; an unknown format, one
            named twice, or none.
    """
    chosen = [find_format(name) for name in formats]
    if not chosen:
        raise InvalidRequest(f"no format; known: {', '.join(FORMATS)}")
    for name in formats:
        if formats.count(name) > 1:
            raise InvalidRequest(f"format {name!r} is named twice")
    for option in options.given():
        if not any(option in format.takes for format in chosen):
            takers = [name for name, format in FORMATS.items() if option in format.takes]
            raise InvalidRequest(
                f"{option} goes with format={' or format='.join(takers)}, "
                f"not with {', '.join(formats)}"
            )
    if options.quality is not None and options.image != "jpeg":
        raise InvalidRequest("quality goes with image=jpeg")


def warm(classes: int = 2) -> None:
    """Compiles the loops of all output formats (once), so that no request waits for them."""
    overlay.warm(classes)
    rle.warm(classes)
    polygons.warm(classes)
