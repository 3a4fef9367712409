"""JSON bodies: decoded into types by msgspec, which stops at the first error and says where.

Fields that no type names are skipped without being built, as Triton does; how many there were is
counted, since a misspelt name is among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeAlias, TypeVar, overload

import msgspec

from serving.errors import InvalidRequest
from serving.oip.parameters import ParameterValue

Body = TypeVar("Body", bound=msgspec.Struct)
Json = TypeVar("Json")
Text: TypeAlias = bytes | memoryview | msgspec.Raw

BOM = b"\xef\xbb\xbf"
# Of a field that is not there; a union with None is not msgspec's to make of raw JSON.
NULL = msgspec.Raw(b"null")
# Nobody sends more; a map of a million small ones is some hundred bytes each.
MAX_PARAMETERS = 64
_OBJECT = dict[str, msgspec.Raw]
_OBJECTS = list[dict[str, msgspec.Raw]] | None
_PLACE = re.compile(r"^(.*) - at `\$\.?(.*)`$", re.DOTALL)


@overload
def decode(text: Text, kind: type[Json], what: str) -> Json: ...


@overload
def decode(text: Text, kind: UnionType, what: str) -> Any: ...


def decode(text: Text, kind: type[Json] | UnionType, what: str) -> Any:
    """Returns ``text`` as a value of that type.

    Args:
        what: the text is, for errors.

    Raises:
        InvalidRequest: not JSON, or a field of another type; the message says where.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{what}: {_describe(error)}") from None


def read_parameters(what: str, given: msgspec.Raw) -> dict[str, ParameterValue]:
    """Returns the protocol's ``parameters``: names, and a text, number or flag each.

    Raises:
        InvalidRequest: another value, which is named, or too many of them.
    """
    found = decode(given, dict[str, msgspec.Raw] | None, f"{what}: parameters") or {}
    if len(found) > MAX_PARAMETERS:
        raise InvalidRequest(f"{what}: {len(found)} parameters, expected at most {MAX_PARAMETERS}")
    return {
        name: decode(value, ParameterValue, f"{what}: parameter {name[:64]!r}")
        for name, value in found.items()
    }


def count_ignored(text: bytes | memoryview, kind: type[msgspec.Struct]) -> int:
    """Returns how many fields of an object, and of objects in its lists, ``kind`` does not name.

    ``text`` must have been decoded as ``kind`` before.

    Raises:
        InvalidRequest: a name that is not UTF-8, which is skipped unread where no type has it.
    """
    return _count(decode(text, _OBJECT, "a field's name"), kind)


def _count(given: Mapping[str, msgspec.Raw], kind: type[msgspec.Struct]) -> int:
    known = _known_fields(kind)
    count = 0
    for name, value in given.items():
        if name not in known:
            count += 1
        elif (inner := known[name]) is not None:
            count += sum(_count(o, inner) for o in decode(value, _OBJECTS, "a field's name") or ())
    return count


@cache
def _known_fields(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Each field's name, and where it is a list of structs (or null), their type."""
    known: dict[str, type[msgspec.Struct] | None] = {}
    for field in msgspec.structs.fields(kind):
        info = msgspec.inspect.type_info(field.type)
        known[field.encode_name] = None
        for option in info.types if isinstance(info, msgspec.inspect.UnionType) else (info,):
            if isinstance(option, msgspec.inspect.ListType) and isinstance(
                option.item_type, msgspec.inspect.StructType
            ):
                known[field.encode_name] = option.item_type.cls
    return known


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error)
    if text == "Input data was truncated":
        return "JSON is malformed: it ends too early"
    found = _PLACE.match(text)
    if found is None:
        return text[:1].lower() + text[1:] if text.startswith("Expected") else text
    place, message = found[2], found[1][:1].lower() + found[1][1:]
    return f"{place}: {message}" if place else message
