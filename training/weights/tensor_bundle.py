"""Reads a TensorFlow checkpoint (``PREFIX.index``, ``PREFIX.data-00000-of-00001``), no TensorFlow.

The index is a table from a variable's name to a ``BundleEntryProto``: type, shape, shard, offset,
size and checksum of its bytes in a data file; the empty name's entry is the header. Every length is
checked against its file before anything is read.

Source: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/util/tensor_bundle.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.weights.crc32c import crc32c, masked
from training.weights.errors import WeightsError
from training.weights.sstable import read_table, read_varint

INDEX_ENDING = ".index"
# tensorflow/core/framework/types.proto: those that weights and counters have.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 6: "|i1", 9: "<i8", 10: "|b1", 19: "<f2"}
MAX_DIMENSIONS = 16
MAX_SHARDS = 1000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Entry:
    """Where a variable's bytes lie."""

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
    """The variables whose names are ``wanted``, by name.

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
            raise WeightsError(f"{index}: {entry.name} lies in data file {entry.shard} of {shards}")
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
    """The number of data files. Raises WeightsError for big-endian data."""
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
    """(number, content) of a protobuf message's fields, in the file's order."""
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
            raise WeightsError(f"{source}: an entry of it is no message")
        if position + length > len(content):
            raise WeightsError(f"{source}: an entry of it is cut off")
        raw = bytes(content[position : position + length])
        position += length
        yield number, raw if kind == BYTES else int.from_bytes(raw, "little")
