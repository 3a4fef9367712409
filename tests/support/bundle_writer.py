"""Writes TensorFlow checkpoints, an index and a data file, as TensorFlow lays them out."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAGIC = 0xDB4775248B80FB57
TYPES = {"float32": 1, "int32": 3, "int64": 9, "float16": 19}
RESTART_INTERVAL = 16
BLOCK_BYTES = 4096


def make_table_of_crc() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


CRC_TABLE = make_table_of_crc()


def crc32c(data: bytes) -> int:
    """In plain Python, apart from the reader's."""
    crc, table = 0xFFFFFFFF, CRC_TABLE
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""


def make_block(entries: list[tuple[bytes, bytes]], interval: int = RESTART_INTERVAL) -> bytes:
    out, restarts, last = bytearray(), [], b""
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    out += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    return bytes(out)


def make_table(entries: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    out, index, group, size = bytearray(), [], [], 0

    def add(block: bytes) -> bytes:
        handle = varint(len(out)) + varint(len(block))
        out.extend(block + bytes([kind]) + struct.pack("<I", mask(crc32c(block + bytes([kind])))))
        return handle

    for key, value in entries:
        group.append((key, value))
        size += len(key) + len(value)
        if size > BLOCK_BYTES:
            index.append((key, add(make_block(group))))
            group, size = [], 0
    if group:
        index.append((group[-1][0], add(make_block(group))))
    meta = add(make_block([]))
    footer = meta + add(make_block(index, 1))
    out += footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    return bytes(out)


def make_entry(array: npt.NDArray[np.generic], offset: int, raw: bytes) -> bytes:
    shape = b"".join(field(2, field(1, int(size)) or b"") for size in array.shape)
    message = field(1, TYPES[str(array.dtype)]) + field(2, shape) + field(4, offset)
    return message + field(5, len(raw)) + varint(6 << 3 | 5) + struct.pack("<I", mask(crc32c(raw)))


def write_bundle(prefix: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    data, entries = bytearray(), [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name in sorted(arrays):
        raw = np.ascontiguousarray(arrays[name]).tobytes()
        entries.append((name.encode(), make_entry(arrays[name], len(data), raw)))
        data += raw
    prefix.with_name(prefix.name + ".index").write_bytes(make_table(entries))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(bytes(data))
