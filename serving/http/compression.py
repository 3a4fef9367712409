"""gzip and deflate of HTTP bodies, bounded.

Source: RFC 9110, section 8.4.1 (``deflate`` is the zlib format).
"""

from __future__ import annotations

from isal import isal_zlib

from serving.errors import InvalidRequest, TooLarge, Unsupported

# The window-bits argument of zlib, which also chooses the format.
WINDOW_BITS = {"gzip": 31, "deflate": 15}
LEVEL = 1


def check_encoding(encoding: str) -> None:
    """Raises Unsupported for a Content-Encoding other than these."""
    if encoding not in WINDOW_BITS:
        raise Unsupported(
            f"Content-Encoding {encoding!r} is not supported; known: {', '.join(WINDOW_BITS)}"
        )


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The content of a compressed body.

    Raises:
        TooLarge: it has more than ``limit`` bytes; no more than that is unpacked.
        InvalidRequest: broken, incomplete, or followed by other bytes.
    """
    stream = isal_zlib.decompressobj(wbits=WINDOW_BITS[encoding])
    try:
        content: bytes = stream.decompress(body, limit + 1)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub says it is no class
        raise InvalidRequest(f"Content-Encoding {encoding}: {error}") from None
    if len(content) > limit:
        raise TooLarge(
            f"the unpacked body has more than {limit} bytes (setting max_request_bytes)",
            reason="request_bytes",
        )
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"Content-Encoding {encoding}: the body is not one whole stream")
    return content


def choose_encoding(accept: str) -> str | None:
    """The one of an Accept-Encoding header that is liked best; None to send it plain."""
    best, best_quality = None, 0.0
    for part in accept.split(","):
        name, _, rest = part.partition(";")
        try:
            quality = float(rest.strip().removeprefix("q=")) if rest.strip() else 1.0
        except ValueError:
            continue
        if name.strip().lower() in WINDOW_BITS and quality > best_quality:
            best, best_quality = name.strip().lower(), quality
    return best


def compress(body: bytes, encoding: str) -> bytes:
    """The body in that encoding."""
    packed: bytes = isal_zlib.compress(body, level=LEVEL, wbits=WINDOW_BITS[encoding])
    return packed
