"""LevelDB's table format, as far as TensorFlow's checkpoints need it: all keys and values in order.

A footer of 48 bytes points at an index block, whose values point at data blocks. A block holds
entries (shared key length, own key length, value length, key, value), then restart offsets and
their number; a type byte (0: not compressed) and a masked CRC-32C follow it.

Source: LevelDB doc/table_format.md; tensorflow/core/lib/io/table.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from training.weights.crc32c import crc32c, masked
from training.weights.errors import WeightsError

FOOTER_BYTES = 48
TRAILER_BYTES = 5
MAGIC = 0xDB4775248B80FB57
# More than any checkpoint's names need; a hostile table cannot grow beyond its file by much.
MAX_KEY_BYTES = 4096


def read_table(content: memoryview, source: str) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every entry. Raises WeightsError naming ``source``."""
    if len(content) < FOOTER_BYTES:
        raise WeightsError(f"{source}: too short for a table ({len(content)} bytes)")
    footer = content[-FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise WeightsError(f"{source}: no TensorFlow checkpoint index (it does not end as one)")
    position = 0
    numbers = []
    for _ in range(4):
        number, position = read_varint(footer, position, source)
        numbers.append(number)
    # The first two are the meta index's, which has nothing that is needed here.
    index = _block(content, numbers[2], numbers[3], source)
    for _, handle in _entries(index, source):
        start, position = read_varint(memoryview(handle), 0, source)
        length, _ = read_varint(memoryview(handle), position, source)
        yield from _entries(_block(content, start, length, source), source)


def read_varint(content: memoryview, position: int, source: str) -> tuple[int, int]:
    """The number at ``position``, and where it ends. Raises WeightsError."""
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WeightsError(f"{source}: a number in it does not end")


def _block(content: memoryview, start: int, length: int, source: str) -> memoryview:
    if start + length + TRAILER_BYTES > len(content):
        raise WeightsError(f"{source}: a block of {length} bytes at {start} lies outside of it")
    kind, stored = struct.unpack_from("<BI", content, start + length)
    if masked(crc32c(content[start : start + length + 1])) != stored:
        raise WeightsError(f"{source}: damaged (the checksum of the block at {start} is another)")
    if kind != 0:
        raise WeightsError(f"{source}: its blocks are compressed (type {kind}); TensorFlow's not")
    return content[start : start + length]


def _entries(block: memoryview, source: str) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise WeightsError(f"{source}: a block without an end")
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise WeightsError(f"{source}: a block claims {restarts} restarts")
    key, position = b"", 0
    while position < end:
        shared, position = read_varint(block, position, source)
        own, position = read_varint(block, position, source)
        length, position = read_varint(block, position, source)
        if shared > len(key) or shared + own > MAX_KEY_BYTES or position + own + length > end:
            raise WeightsError(f"{source}: an entry leaves its block")
        key = key[:shared] + bytes(block[position : position + own])
        position += own
        yield key, bytes(block[position : position + length])
        position += length
