"""Compressed bodies are unpacked in pieces: whole, and no byte beyond the limit."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from serving.errors import InvalidRequest, TooLarge
from serving.http.negotiation import PIECE_BYTES, decompress

SIZES = (1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["zeros", "noise", "text"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_content_of_every_size(size: int, kind: str, encoding: str) -> None:
    content = {
        "zeros": lambda: bytes(size),
        "noise": lambda: random.Random(size).randbytes(size),
        "text": lambda: (b"a class of pixels; " * (size // 19 + 1))[:size],
    }[kind]()
    body = gzip.compress(content, 6) if encoding == "gzip" else zlib.compress(content)
    assert decompress(body, encoding, size) == content
    with pytest.raises(InvalidRequest, match=f"{encoding}: "):
        decompress(body[:-1], encoding, size)
    with pytest.raises(TooLarge, match="max_request_bytes"):
        decompress(body, encoding, size - 1)
    if encoding == "gzip":
        assert decompress(body + gzip.compress(b"more"), encoding, size + 4) == content + b"more"
