"""What a gRPC message tells of the inference that it asks for, found without parsing it.

A message is in memory before anybody is asked; parsing it copies its tensors once more.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

from google.protobuf.message import Message
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.door import Announced
from serving.errors import InvalidRequest
from serving.oip.protocol import parse_version

SEGMENT = "/segserve.v1.Segmenter/Segment"
INFER = "/inference.GRPCInferenceService/ModelInfer"
# A request has a dozen at the top level; what has far more is parsed.
MAX_FIELDS = 64
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}

# Number and kind of a field: one of another kind is unknown to a parser.
Key: TypeAlias = tuple[int, int]
Fields: TypeAlias = Mapping[Key, bytes | int]


def _find(message: type[Message], **kinds: int) -> tuple[Key, ...]:
    fields = message.DESCRIPTOR.fields_by_name
    return tuple((fields[name].number, kind) for name, kind in kinds.items())


_SEGMENT = _find(pb.SegmentRequest, model=LENGTH, version=VARINT, format=LENGTH)
_INFER = _find(oip.ModelInferRequest, model_name=LENGTH, model_version=LENGTH)


def read_announced(method: str, data: bytes, timeout_s: float | None) -> Announced | None:
    """The inference; None where the call is none, or not one that can be answered."""
    try:
        if method == SEGMENT:
            return _read_segment(scan_fields(data, _SEGMENT), timeout_s, len(data))
        if method == INFER:
            return _read_infer(scan_fields(data, _INFER), timeout_s, len(data))
    except (ValueError, InvalidRequest):
        pass
    return None


def _read_segment(fields: Fields, timeout_s: float | None, size: int) -> Announced:
    model, version, format = (fields.get(key) for key in _SEGMENT)
    formats = tuple(_text(format).split(",")) if format else ("png",)
    number = version if isinstance(version, int) and version else None
    return Announced(_text(model), number, timeout_s, 0, formats, size)


def _read_infer(fields: Fields, timeout_s: float | None, size: int) -> Announced:
    model, version = (_text(fields.get(key)) for key in _INFER)
    return Announced(model, parse_version(version), timeout_s, request_bytes=size)


def _text(value: bytes | int | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def scan_fields(data: bytes, wanted: Collection[Key]) -> Fields:
    """Fields of the top level; of one that is repeated, the last.

    Raises:
        ValueError: no well-formed message, or one of more than ``MAX_FIELDS``.
    """
    found: dict[Key, bytes | int] = {}
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(data):
            return found
        tag, at = _read_varint(data, at)
        key = (tag >> 3, tag & 7)
        if key[1] == VARINT:
            value, at = _read_varint(data, at)
            if key in wanted:
                found[key] = value
            continue
        size = FIXED_BYTES.get(key[1])
        if key[1] == LENGTH:
            size, at = _read_varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError(f"no field of kind {key[1]} at byte {at}")
        if key in wanted:
            found[key] = data[at : at + size]
        at += size
    raise ValueError(f"more than {MAX_FIELDS} fields")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, not negative, and where it ends."""
    value = 0
    for shift in range(0, 63, 7):
        if at == len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")
