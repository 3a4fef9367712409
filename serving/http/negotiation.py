"""Negotiates content: which output format ``Accept`` asks for, and gzip and deflate of bodies.

Unpacking is bounded in size. ``deflate`` is the zlib format; some clients send it raw (RFC 1951),
which is understood too. A gzip body may have several members.

Source: RFC 9110, sections 8.4.1 and 12.5.1; RFC 1952, section 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from isal import isal_zlib

from serving.errors import InvalidRequest, TooLarge, Unsupported
from serving.formats.label_map import Picture
from serving.formats.registry import MaskFormat

PICTURES: Mapping[str, Picture] = {"image/png": "png", "image/jpeg": "jpeg"}
# Browsers send some ten. It is read on the event loop, for every request.
MAX_RANGES = 32


@dataclass(frozen=True)
class Choice:
    """A format and, where its media type says so, what its picture is written as."""

    format: str
    image: Picture | None = None


def choose(accept: str, formats: Sequence[MaskFormat]) -> Choice | None:
    """Returns what the header prefers of ``formats``; None where it takes none of their media
    types.

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
    """Returns quality and position of every media range; of one that is named twice the first."""
    ranges: dict[str, tuple[float, int]] = {}
    for place, entry in enumerate(accept.split(",", MAX_RANGES)[:MAX_RANGES]):
        media_range, *parameters = entry.split(";", MAX_RANGES)
        ranges.setdefault(media_range.strip().lower(), (_quality(parameters), -place))
    return ranges


def _rank(media_type: str, ranges: Mapping[str, tuple[float, int]]) -> tuple[float, int, int]:
    """Returns quality, specificity and position of the most specific range of ``media_type``."""
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


# The window-bits argument of zlib, which also chooses the format.
WINDOW_BITS = {"gzip": 31, "deflate": 15}
RAW_DEFLATE_BITS = -15
ALIASES = {"x-gzip": "gzip"}
LEVEL = 1
# Of input that is unpacked in one call. What one gzip member leaves over is copied for the next.
WINDOW_BYTES = 1 << 16
# Of content that one call unpacks: joining and copying more would hold the interpreter.
PIECE_BYTES = 1 << 20
# bgzip makes a member of 64 kB; many that are empty would cost time without end.
MAX_MEMBERS = 4096
# More codings than anybody knows.
MAX_CODINGS = 32
_QUALITY = re.compile(r"[qQ]\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.ASCII)


def read_encoding(values: Sequence[str]) -> str | None:
    """Returns the coding that the values of ``Content-Encoding`` name; None where there is none.

    Raises:
        Unsupported: another than gzip or deflate, or several on top of each other.
    """
    named = [part.strip().lower() for part in ",".join(values).split(",", MAX_CODINGS)]
    codings = [ALIASES.get(name, name) for name in named if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in WINDOW_BITS:
        raise Unsupported(
            f"Content-Encoding {', '.join(codings)[:64]!r} is not supported; "
            f"expected one of {', '.join(WINDOW_BITS)}"
        )
    return codings[0]


def decompress(body: bytes, encoding: str, limit: int, setting: str = "max_request_bytes") -> bytes:
    """Returns the content of a compressed body. Runs on a pool thread.

    Args:
        limit: of the content in bytes, which ``setting`` sets.

    Raises:
        TooLarge: it has more; no more than one byte above ``limit`` is unpacked.
        InvalidRequest: broken, incomplete, or followed by other bytes.
    """
    content, written, members, stream = BytesIO(), 0, 0, None
    bits = _window_bits(body, encoding)
    try:
        for start in range(0, len(body), WINDOW_BYTES):
            left = body[start : start + WINDOW_BYTES]
            is_full = False
            while left or is_full:
                if stream is None:
                    # Like gzip itself: zeros may pad what is whole.
                    if members and encoding == "gzip" and not (left := left.lstrip(b"\0")):
                        break
                    members += 1
                    _check_member(members, encoding)
                    stream = isal_zlib.decompressobj(wbits=bits)
                room = min(PIECE_BYTES, limit + 1 - written)
                piece = stream.decompress(left, room)
                content.write(piece)
                written += len(piece)
                if written > limit:
                    raise TooLarge(
                        f"the unpacked body has more than {limit} bytes (setting {setting})",
                        reason="request_bytes",
                    )
                left = stream.unused_data if stream.eof else stream.unconsumed_tail
                # More may be in the stream itself, though it has taken all of its input.
                is_full = len(piece) == room and not stream.eof
                if stream.eof:
                    stream = None
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub does not type it as a class
        raise InvalidRequest(
            f"Content-Encoding {encoding}: the body is not a valid {encoding} stream ({error}); "
            "leave the header out of a request whose body is not compressed"
        ) from None
    if stream is not None or not members:
        raise InvalidRequest(f"Content-Encoding {encoding}: the body is not a whole stream")
    return content.getvalue()


def _window_bits(body: bytes, encoding: str) -> int:
    """Returns zlib's window bits for the body's format, by its header (RFC 1950, section 2.2)."""
    is_zlib = len(body) < 2 or (body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0)
    return WINDOW_BITS[encoding] if encoding == "gzip" or is_zlib else RAW_DEFLATE_BITS


def _check_member(members: int, encoding: str) -> None:
    if members > 1 and encoding != "gzip":
        raise InvalidRequest(f"Content-Encoding {encoding}: other bytes follow the stream")
    if members > MAX_MEMBERS:
        raise InvalidRequest(
            f"Content-Encoding {encoding}: more than {MAX_MEMBERS} members; send fewer, larger ones"
        )


def choose_encoding(accept: str) -> str | None:
    """Returns the coding that an Accept-Encoding header likes best; None to send it plain."""
    best, best_quality = None, 0.0
    for part in accept.split(",", MAX_CODINGS)[:MAX_CODINGS]:
        name, _, rest = part.partition(";")
        name = name.strip().lower()
        name = ALIASES.get(name, name)
        quality = read_quality(rest) if rest.strip() else 1.0
        if name in WINDOW_BITS and quality > best_quality:
            best, best_quality = name, quality
    return best


def read_quality(parameter: str) -> float:
    """Returns the weight that ``q=0.5`` says (RFC 9110, section 12.4.2); 0 for what is none."""
    found = _QUALITY.fullmatch(parameter.strip())
    return float(found[1]) if found else 0.0


def compress(body: bytes, encoding: str) -> bytes:
    """Returns the body in that encoding."""
    packed: bytes = isal_zlib.compress(body, level=LEVEL, wbits=WINDOW_BITS[encoding])
    return packed
