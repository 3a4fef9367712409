"""Tensors of the Open Inference Protocol, between the wire and NumPy.

Binary layout: little endian, C order; ``BYTES`` elements are a uint32 length and the bytes.

Source: Open Inference Protocol v2; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.palette import LabelMap

Buffer: TypeAlias = bytes | memoryview
# How the image files begin that are sent without their length.
_FILES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Tensor:
    """A named tensor; ``data`` is an array of the datatype, or for BYTES one item an element."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: LabelMap | npt.NDArray[np.float32] | tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the data alone."""
        if isinstance(self.data, tuple):
            return sum(len(item) for item in self.data)
        return self.data.nbytes

    def to_buffer(self) -> Buffer:
        """Returns the protocol's binary form: of an array its own memory, not a copy."""
        if isinstance(self.data, tuple):
            return b"".join(struct.pack("<I", len(item)) + item for item in self.data)
        return np.ascontiguousarray(self.data).data.cast("B")

    def to_bytes(self) -> bytes:
        """Returns the same as bytes."""
        return bytes(self.to_buffer())


DATATYPES_HINT = "expected UINT8 (pixels) or BYTES (encoded images)"


def read_tensor(
    name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview
) -> Tensor:
    """Returns a tensor from its binary form.

    Raises:
        InvalidRequest: another datatype, or a length that does not fit the shape.
    """
    elements = _count_elements(name, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _split_bytes(name, elements, raw))
    if datatype != "UINT8":
        raise InvalidRequest(
            f"input {name!r}: datatype {datatype} is not supported: {DATATYPES_HINT}"
        )
    if len(raw) != elements:
        raise InvalidRequest(
            f"input {name!r}: UINT8 {list(shape)} takes {elements} bytes, got {len(raw)}"
        )
    return Tensor(name, datatype, shape, np.frombuffer(raw, np.uint8).reshape(shape))


def bytes_tensor(name: str, shape: tuple[int, ...], items: Sequence[bytes]) -> Tensor:
    """Returns a BYTES tensor of items that are apart already.

    Raises:
        InvalidRequest: another count than the shape's.
    """
    elements = _count_elements(name, shape)
    if len(items) != elements:
        raise InvalidRequest(
            f"input {name!r}: the shape says {elements} elements, the data holds {len(items)}"
        )
    return Tensor(name, "BYTES", shape, tuple(items))


def _count_elements(name: str, shape: tuple[int, ...]) -> int:
    if any(size < 1 for size in shape):
        raise InvalidRequest(f"input {name!r}: shape {list(shape)} has an empty dimension")
    return math.prod(shape)


def _split_bytes(name: str, elements: int, raw: bytes | memoryview) -> tuple[bytes, ...]:
    items: list[bytes] = []
    offset = 0
    while offset < len(raw):
        if len(items) == elements:
            raise InvalidRequest(
                f"input {name!r}: the shape says {elements} elements, the data holds more: "
                f"{len(raw) - offset} bytes are left"
            )
        if offset + 4 > len(raw):
            raise InvalidRequest(
                f"input {name!r}: BYTES ends inside a length, at byte {offset}{_hint(raw)}"
            )
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise InvalidRequest(
                f"input {name!r}: BYTES element of {length} bytes goes beyond the end{_hint(raw)}"
            )
        items.append(bytes(raw[offset : offset + length]))
        offset += length
    if len(items) != elements:
        raise InvalidRequest(
            f"input {name!r}: the shape says {elements} elements, the data holds {len(items)}"
        )
    return tuple(items)


def _hint(raw: bytes | memoryview) -> str:
    """Returns what is to be done where the data is a file itself, without the length before it."""
    if not bytes(raw[:12]).startswith(_FILES):
        return ""
    return (
        "; the data begins as an image file: each element needs its length before it "
        f"(4 bytes, little endian; here {len(raw)} if it is one file)"
    )
