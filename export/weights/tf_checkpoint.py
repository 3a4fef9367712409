"""Reads a TensorFlow checkpoint (``PREFIX.index``, ``PREFIX.data-00000-of-00001``), no TensorFlow.

The index is a table from a variable's name to a ``BundleEntryProto``: type, shape, shard, offset,
size and checksum of its bytes in a data file; the empty name's entry is the header. Every length is
checked against its file before anything is read.

The table is LevelDB's, as far as checkpoints need it: a footer of 48 bytes points at an index
block, whose values point at data blocks. A block holds entries (shared key length, own key length,
value length, key, value), then restart offsets and their number; a type byte (0: not compressed)
and a masked CRC-32C (Castagnoli) follow it.

Sources: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/util/tensor_bundle,
tensorflow/core/lib/io/table.cc; LevelDB doc/table_format.md, util/crc32c.h; RFC 3720, appendix B.4.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.errors import WeightsError
from serving.imaging.jit import compiled

INDEX_ENDING = ".index"
# tensorflow/core/framework/types.proto: those that weights and counters have.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 6: "|i1", 9: "<i8", 10: "|b1", 19: "<f2"}
MAX_DIMENSIONS = 16
MAX_SHARDS = 1000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Entry:
    """The place of a variable's bytes."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


def read_bundle(
    prefix: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, npt.NDArray[np.generic]]:
    """Returns the variables whose names are ``wanted``, by name.

    Args:
        prefix: ``model.ckpt``, or its ``.index`` file.

    Raises:
        WeightsError: a file is missing, damaged, or holds what this cannot read; it is named.
    """
    base = prefix.with_suffix("") if prefix.suffix == INDEX_ENDING else prefix
    index = base.with_name(base.name + INDEX_ENDING)
    content = _map(index)
    shards, entries = 0, []
    for key, value in read_table(content, str(index)):
        if not key:
            shards = _read_header(value, str(index))
            continue
        entry = _read_entry(key, value, str(index))
        if wanted(entry.name):
            entries.append(entry)
    if not 1 <= shards <= MAX_SHARDS:
        raise WeightsError(f"{index}: {shards} data files; the header is missing or damaged")
    data: dict[int, tuple[Path, memoryview]] = {}
    found = {}
    for entry in entries:
        if not 0 <= entry.shard < shards:
            raise WeightsError(f"{index}: {entry.name} is in data file {entry.shard} of {shards}")
        if entry.shard not in data:
            path = base.with_name(f"{base.name}.data-{entry.shard:05}-of-{shards:05}")
            data[entry.shard] = path, _map(path)
        found[entry.name] = _read_array(entry, *data[entry.shard])
    return found


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error


def _read_array(entry: _Entry, path: Path, content: memoryview) -> npt.NDArray[np.generic]:
    dtype = np.dtype(DTYPES[entry.dtype]) if entry.dtype in DTYPES else None
    if dtype is None or entry.sliced:
        raise WeightsError(
            f"{path}: {entry.name} is "
            + ("stored in slices" if entry.sliced else f"of TensorFlow's type {entry.dtype}")
            + ", which is not read here"
        )
    wanted = math.prod(entry.shape) * dtype.itemsize
    if entry.size != wanted or entry.offset + entry.size > len(content):
        raise WeightsError(
            f"{path}: {entry.name} {entry.shape} needs {wanted} bytes; its entry says {entry.size} "
            f"at {entry.offset} of {len(content)}"
        )
    raw = content[entry.offset : entry.offset + entry.size]
    if masked(crc32c(raw)) != entry.checksum:
        raise WeightsError(f"{path}: damaged (the checksum of {entry.name} is another)")
    return np.frombuffer(raw, dtype).reshape(entry.shape)


def _read_header(value: bytes, source: str) -> int:
    """Returns the number of data files. Raises WeightsError for big-endian data."""
    shards = 0
    for number, content in _fields(value, source):
        if number == 1 and isinstance(content, int):
            shards = content
        if number == 2 and content != 0:
            raise WeightsError(f"{source}: its data are big-endian, which is not read here")
    return shards


def _read_entry(key: bytes, value: bytes, source: str) -> _Entry:
    try:
        name = key.decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{source}: a name in it is not UTF-8") from error
    # Fields that are 0 are not stored.
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    sliced = False
    for number, content in _fields(value, source):
        if number == 2 and isinstance(content, bytes):
            shape = _read_shape(content, source, name)
        elif number == 7:
            sliced = True
        elif number in numbers and isinstance(content, int):
            numbers[number] = content
    dtype, shard, offset, size, checksum = numbers.values()
    return _Entry(name, dtype, shape, shard, offset, size, checksum, sliced)


def _read_shape(value: bytes, source: str, name: str) -> tuple[int, ...]:
    shape = []
    for number, content in _fields(value, source):
        if number == 2 and isinstance(content, bytes):
            sizes = [size for field, size in _fields(content, source) if field == 1]
            shape.append(sizes[-1] if sizes and isinstance(sizes[-1], int) else 0)
    if len(shape) > MAX_DIMENSIONS or any(size >= 2**62 for size in shape):
        raise WeightsError(f"{source}: {name} has an impossible shape")
    return tuple(shape)


def _fields(value: bytes, source: str) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, content) of a protobuf message's fields, in the file's order."""
    content, position = memoryview(value), 0
    while position < len(content):
        tag, position = read_varint(content, position, source)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            varint, position = read_varint(content, position, source)
            yield number, varint
            continue
        if kind == BYTES:
            length, position = read_varint(content, position, source)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise WeightsError(f"{source}: an entry of it is not a valid message")
        if position + length > len(content):
            raise WeightsError(f"{source}: an entry of it is cut off")
        raw = bytes(content[position : position + length])
        position += length
        yield number, raw if kind == BYTES else int.from_bytes(raw, "little")


FOOTER_BYTES = 48
TRAILER_BYTES = 5
MAGIC = 0xDB4775248B80FB57
# More than any checkpoint's names need; a hostile table cannot grow beyond its file by much.
MAX_KEY_BYTES = 4096


def read_table(content: memoryview, source: str) -> Iterator[tuple[bytes, bytes]]:
    """Yields (key, value) of every entry. Raises WeightsError naming ``source``."""
    if len(content) < FOOTER_BYTES:
        raise WeightsError(f"{source}: too short for a table ({len(content)} bytes)")
    footer = content[-FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise WeightsError(
            f"{source}: not a valid checkpoint index: expected the ending of a TensorFlow table"
        )
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
    """Returns the number at ``position``, and where it ends. Raises WeightsError."""
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
        raise WeightsError(f"{source}: a block of {length} bytes at {start} is outside the file")
    kind, stored = struct.unpack_from("<BI", content, start + length)
    if masked(crc32c(content[start : start + length + 1])) != stored:
        raise WeightsError(f"{source}: damaged (the checksum of the block at {start} is another)")
    if kind != 0:
        raise WeightsError(
            f"{source}: its blocks are compressed (type {kind}): expected none, as TensorFlow"
            " writes them"
        )
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


POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8


def _make_table() -> npt.NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


_TABLE = _make_table()


@compiled
def _update(
    data: npt.NDArray[np.uint8], table: npt.NDArray[np.uint32], crc: np.uint32
) -> np.uint32:
    for index in range(data.size):
        crc = table[(crc ^ data[index]) & 0xFF] ^ (crc >> 8)
    return crc


def crc32c(data: memoryview | bytes) -> int:
    """Returns the checksum of all bytes."""
    values = np.frombuffer(data, np.uint8)
    return int(_update(values, _TABLE, np.uint32(0xFFFFFFFF))) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """Returns a checksum as it is stored beside data that may hold checksums itself."""
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF
