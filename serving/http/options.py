"""The options of ``segment``, from a query or a form: one table reads, checks and documents them.

They are read on the event loop, so their lengths and counts are bounded before they are split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from serving.errors import InvalidRequest
from serving.formats.label_map import MAX_TOLERANCE_PIXELS, MaskOptions, Picture
from serving.formats.registry import FORMATS, find_format
from serving.http import negotiation as accept
from serving.parsing import read_decimal, read_integer
from serving.requests import OutputSize, SegmentOptions

Json = dict[str, Any]
Texts = Mapping[str, Sequence[str]]
Value = TypeVar("Value")

MULTIPART = "multipart/form-data"
ORIGINAL: OutputSize = "original"
MAX_FIELDS = 64
MAX_TEXT = 4096
# Of a list in one option, before anything is looked up.
MAX_ENTRIES = 256
MAX_AREA_PIXELS = 2**31
FLAGS = {
    **dict.fromkeys(("true", "1", "on", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "off", "no", "f", "n"), False),
}


@dataclass(frozen=True)
class Option:
    """One option of ``segment``.

    Attributes:
        read: its value, from the texts that were given.
        schema: the same as JSON Schema.
    """

    read: Callable[[str, Sequence[str]], object]
    schema: Json
    description: str


def _only(name: str, texts: Sequence[str]) -> str:
    if len(texts) > 1:
        raise InvalidRequest(f"{name} is given {len(texts)} times; expected once")
    return texts[0]


def _list(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Returns a list's items: ``format=png,stats`` and ``format=png&format=stats`` mean the
    same."""
    entries = tuple(entry for text in texts for entry in text.split(","))
    if len(entries) > MAX_ENTRIES:
        raise InvalidRequest(f"{name}: {len(entries)} entries, expected at most {MAX_ENTRIES}")
    return entries


def _formats(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    entries = _list(name, texts)
    for entry in entries:
        find_format(entry)
    return entries


def _flag(name: str, texts: Sequence[str]) -> bool:
    text = _only(name, texts)
    value = FLAGS.get(text.lower())
    if value is None:
        raise InvalidRequest(f"{name}: {text[:64]!r} is not a valid flag: expected true or false")
    return value


def _choice(*known: str) -> Callable[[str, Sequence[str]], str]:
    def read(name: str, texts: Sequence[str]) -> str:
        text = _only(name, texts)
        if text not in known:
            raise InvalidRequest(
                f"{name}: {text[:64]!r} is not a valid choice: expected {' or '.join(known)}"
            )
        return text

    return read


def _integer(low: int, high: int) -> Callable[[str, Sequence[str]], int]:
    return lambda name, texts: read_integer(_only(name, texts), name, low, high)


def _decimal(low: float, high: float) -> Callable[[str, Sequence[str]], float]:
    return lambda name, texts: read_decimal(_only(name, texts), name, low, high)


OPTIONS: Mapping[str, Option] = {
    "format": Option(
        _formats,
        {"type": "array", "items": {"enum": list(FORMATS)}, "uniqueItems": True, "minItems": 1},
        f"beats Accept; several, by comma, are answered as {MULTIPART}",
    ),
    "size": Option(
        _choice("original", "model"),
        {"enum": ["original", "model"], "default": "original"},
        "of the answer",
    ),
    "smooth": Option(_flag, {"type": "boolean"}, "interpolate logits, not ids"),
    "confidence": Option(
        _flag,
        {"type": "boolean", "default": False},
        "adds it to npy (then npz), stats, rle and polygons",
    ),
    "classes": Option(
        _list, {"type": "string", "examples": ["0,2"]}, "names or ids, comma-separated"
    ),
    "tta": Option(
        _list,
        {"type": "string", "examples": ["flip,0.75,1.25"]},
        "test-time augmentation: flip and scales",
    ),
    "image": Option(
        _choice("png", "jpeg"), {"enum": ["png", "jpeg"]}, "of an overlay; beats Accept"
    ),
    "quality": Option(
        _integer(1, 100),
        {"type": "integer", "minimum": 1, "maximum": 100},
        "of an overlay as JPEG; 90",
    ),
    "opacity": Option(
        _decimal(0.0, 1.0),
        {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
        "of an overlay's colours; 0.5",
    ),
    "legend": Option(
        _flag, {"type": "boolean", "default": False}, "below an overlay: names and colours"
    ),
    "tolerance": Option(
        _decimal(0.0, MAX_TOLERANCE_PIXELS),
        {"type": "number", "minimum": 0, "maximum": MAX_TOLERANCE_PIXELS, "multipleOf": 0.01},
        "of polygons, in pixels; 0",
    ),
    "min_area": Option(
        _integer(0, MAX_AREA_PIXELS),
        {"type": "integer", "minimum": 0, "maximum": MAX_AREA_PIXELS},
        "of polygons, in pixels",
    ),
}


def read_query(query: bytes) -> dict[str, list[str]]:
    """Returns the texts of a query string by option.

    Raises:
        InvalidRequest: an unknown option, or too many; the message lists the known ones.
    """
    found: dict[str, list[str]] = {}
    for name, text in _pairs(query):
        found.setdefault(name, []).append(text)
    unknown = sorted(name for name in found if name not in OPTIONS)
    if unknown:
        named = ", ".join(name[:64] for name in unknown[:4])
        raise InvalidRequest(f"unknown option {named}; known: {', '.join(OPTIONS)}")
    return found


def _pairs(query: bytes) -> list[tuple[str, str]]:
    # What is not percent-encoded is UTF-8 as well: curl sends a URL as it was typed.
    text = query.decode("utf-8", "replace")
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise InvalidRequest(f"the query has more than {MAX_FIELDS} options") from None


def read_options(given: Texts, header: str) -> SegmentOptions:
    """Returns what the answer should look like.

    Args:
        given: texts by option, as from ``read_query``.
        header: ``Accept``, which says what ``format`` and ``image`` leave open.

    Raises:
        InvalidRequest: a value that is not valid; the message says what is expected.
    """
    values: dict[str, object] = {}
    for name, texts in given.items():
        length = sum(map(len, texts))
        if length > MAX_TEXT:
            raise InvalidRequest(f"{name}: {length} characters, expected at most {MAX_TEXT}")
        values[name] = OPTIONS[name].read(name, texts)

    def value(name: str, default: Value) -> Value:
        return cast(Value, values.get(name, default))

    formats: tuple[str, ...] = value("format", ())
    choice = choose(formats, header)
    no_image: Picture | None = None
    return SegmentOptions(
        formats=formats or (choice.format,),
        size=value("size", ORIGINAL),
        smooth=value("smooth", cast("bool | None", None)),
        classes=value("classes", cast("tuple[str, ...]", ())),
        form=MaskOptions(
            confidence=value("confidence", False),
            image=value("image", no_image) or choice.image,
            quality=value("quality", cast("int | None", None)),
            opacity=value("opacity", cast("float | None", None)),
            legend=value("legend", False),
            tolerance=value("tolerance", cast("float | None", None)),
            min_area=value("min_area", cast("int | None", None)),
        ),
        tta=value("tta", cast("tuple[str, ...]", ())),
    )


def merge_options(query: Texts, form: Texts) -> Texts:
    """Returns the options of both.

    Raises:
        InvalidRequest: one is in the query and in the form.
    """
    twice = sorted(set(query) & set(form))
    if twice:
        raise InvalidRequest(f"{', '.join(twice)}: given in the query and in the form; leave one")
    return {**query, **form}


def read_formats(query: bytes, header: str) -> tuple[str, ...]:
    """Returns the formats that a request's head asks for.

    Raises:
        InvalidRequest: one that is unknown.
    """
    texts = [text for name, text in _pairs(query) if name == "format"]
    if sum(map(len, texts)) > MAX_TEXT:
        raise InvalidRequest(f"format: more than {MAX_TEXT} characters")
    return _formats("format", texts) or (choose((), header).format,)


# Callers of one kind send the same; the strings are theirs, so only a few are kept.
@lru_cache(maxsize=64)
def choose(formats: tuple[str, ...], header: str) -> accept.Choice:
    """Returns what ``Accept`` says: of the formats asked for only how, if none was asked for also
    which."""
    found = accept.choose(header, [FORMATS[name] for name in formats or FORMATS])
    return found or accept.Choice("png")
