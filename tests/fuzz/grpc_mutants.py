"""Mutants of gRPC messages: every method of every service, by descriptors and on the wire."""

from __future__ import annotations

import random
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from mutant_values import (
    HEIGHT,
    IMAGE,
    INTEGERS,
    PIXELS,
    REGION_BYTES,
    REGION_KEY,
    SPARE,
    WIDTH,
    scrambled,
    text,
)
from segserve_client.proto import segserve_pb2
from tritonclient.grpc import service_pb2


@dataclass(frozen=True)
class GrpcMutant:
    """Serialised messages for one method."""

    method: str
    messages: tuple[bytes, ...]
    streams_in: bool
    streams_out: bool


def _services() -> tuple[ServiceDescriptor, ...]:
    files = (segserve_pb2, service_pb2, health_pb2)
    return tuple(service for file in files for service in file.DESCRIPTOR.services_by_name.values())


def _methods() -> tuple[tuple[str, type[Message], bool, bool], ...]:
    found = []
    for service in _services():
        for method in service.methods:
            shape = method.client_streaming, method.server_streaming
            path = f"/{service.full_name}/{method.name}"
            found.append((path, GetMessageClass(method.input_type), *shape))
    return tuple(found)


METHODS = _methods()
INFERENCE = tuple(
    method for method in METHODS if any(word in method[0] for word in ("Infer", "Segment"))
)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def grpc_message(chance: random.Random) -> GrpcMutant:
    """One call of any method of any service."""
    methods = INFERENCE if chance.random() < 0.5 else METHODS
    path, kind, streams_in, streams_out = chance.choice(methods)
    count = chance.choice((0, 1, 1, 2, 4)) if streams_in else 1
    messages = []
    for _ in range(count):
        message = _good(path, kind)
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            _spoil(chance, message)
        # "bands" stays loaded: other mutants and the check between them need it.
        if path.endswith("ModelUnload") and getattr(message, "model_name", "") == "bands":
            message.model_name = SPARE  # type: ignore[attr-defined]
        data = message.SerializeToString(deterministic=True)
        messages.append(_wire_changed(chance, data) if chance.random() < 0.35 else data)
    return GrpcMutant(path, tuple(messages), streams_in, streams_out)


def _good(path: str, kind: type[Message]) -> Message:
    message = kind()
    if "Segmenter/Segment" in path:
        return segserve_pb2.SegmentRequest(model="bands", image=IMAGE, format="raw")
    if path.endswith("Infer"):
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="image", datatype="UINT8", shape=[1, HEIGHT, WIDTH, 3]
        )
        wanted = service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="mask")
        return service_pb2.ModelInferRequest(
            model_name="bands", inputs=[tensor], outputs=[wanted], raw_input_contents=[PIXELS]
        )
    for name in ("model_name", "name"):
        if name in message.DESCRIPTOR.fields_by_name and "Shared" not in path:
            setattr(message, name, SPARE if "Unload" in path else "bands")
    if "SystemSharedMemoryRegister" in path:
        return kind(name="region", key=REGION_KEY, byte_size=REGION_BYTES)
    return message


def _scalar(chance: random.Random, field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.choice((IMAGE, PIXELS, b"", IMAGE[:50], chance.randbytes(40)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return text(chance).encode("utf-8", "replace").decode()
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return chance.choice((0.0, 1.0, 0.5, -1.0, 1e30, float("inf"), float("nan")))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return chance.randrange(6)
    low, high = _RANGES[field.cpp_type]
    return min(max(chance.choice(INTEGERS), low), high)


def _spoil(chance: random.Random, message: Message, depth: int = 0) -> None:
    """Clears, sets or adds to a field of a message, or of those inside it."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = chance.choice(fields)
    inner = getattr(message, field.name)
    if chance.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is None:
        if field.is_repeated:
            one = _scalar(chance, field)
            inner.extend([one] * chance.choice((1, 1, 2, 3, 5000)))
        else:
            setattr(message, field.name, _scalar(chance, field))
    elif depth >= 3:
        return
    elif field.message_type.GetOptions().map_entry:
        key, held = field.message_type.fields
        name = _scalar(chance, key)
        if held.message_type is not None:
            _spoil(chance, inner[name], depth + 1)
        else:
            inner[name] = _scalar(chance, held)
    elif field.is_repeated:
        count = chance.choice((0, 1, 1, 2, 2000))
        for _ in range(count):
            inner.add()
        if inner:
            _spoil(chance, chance.choice((inner[0], inner[-1])), depth + 1)
    else:
        inner.SetInParent()
        _spoil(chance, inner, depth + 1)


def _wire_changed(chance: random.Random, data: bytes) -> bytes:
    """Changes that no library would write: lengths beyond the end, unknown fields, groups."""
    kind = chance.randrange(6)
    if kind == 0:
        return data + chance.choice(
            (b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x0c", b"\x08" + b"\xff" * 11,
             b"\xfa\xff\xff\xff\x0f\x02hi", b"\x00\x00", b"\x0a\x80\x80\x80\x80\x08")
        )  # fmt: skip
    if kind == 1:
        return data * chance.choice((2, 3))
    if kind == 2:
        number, wire = chance.randrange(1, 20), chance.randrange(6)
        return bytes([number << 3 | wire]) + data
    return scrambled(chance, data)
