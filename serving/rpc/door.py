"""What a gRPC message tells of the inference that it asks for, found without parsing it.

A message is in memory before anybody is asked; parsing it copies its tensors once more.
"""

from __future__ import annotations

from google.protobuf.message import Message
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.door import Announced
from serving.errors import InvalidRequest
from serving.oip.protocol import parse_version
from serving.rpc.wire import LENGTH, VARINT, Fields, Key

SEGMENT = "/segserve.v1.Segmenter/Segment"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def _find(message: type[Message], **kinds: int) -> tuple[Key, ...]:
    fields = message.DESCRIPTOR.fields_by_name
    return tuple((fields[name].number, kind) for name, kind in kinds.items())


_SEGMENT = _find(pb.SegmentRequest, model=LENGTH, version=VARINT, format=LENGTH)
_INFER = _find(oip.ModelInferRequest, model_name=LENGTH, model_version=LENGTH)


_WANTED = {SEGMENT: _SEGMENT, INFER: _INFER}


def list_wanted(method: str) -> tuple[Key, ...]:
    """Returns the fields that :func:`read_announced` needs of a method's messages."""
    return _WANTED.get(method, ())


def read_announced(
    method: str, fields: Fields, timeout_s: float | None, size: int
) -> Announced | None:
    """Returns the inference that a message of ``size`` bytes asks for; None where the call is none,
    or not one that can be answered."""
    try:
        if method == SEGMENT:
            return _read_segment(fields, timeout_s, size)
        if method == INFER:
            return _read_infer(fields, timeout_s, size)
    except (ValueError, InvalidRequest):
        pass
    return None


def _read_segment(fields: Fields, timeout_s: float | None, size: int) -> Announced:
    model, version, format = (fields.get(key) for key in _SEGMENT)
    formats = tuple(_text(format).split(",")) if format else ("png",)
    number = version if isinstance(version, int) and version else None
    return Announced(_text(model), number, timeout_s, 0, formats, size, is_certain=True)


def _read_infer(fields: Fields, timeout_s: float | None, size: int) -> Announced:
    model, version = (_text(fields.get(key)) for key in _INFER)
    number = parse_version(version)
    return Announced(model, number, timeout_s, request_bytes=size, is_certain=True)


def _text(value: bytes | int | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""
