"""gRPC calls of bytes, as a stranger may send them, and every method that the server has."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from segserve_client.proto import segserve_pb2
from tritonclient.grpc import service_pb2 as oip

FILES = (segserve_pb2, oip, health_pb2, reflection_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
SEGMENT = "/segserve.v1.Segmenter/Segment"
SEGMENT_STREAM = "/segserve.v1.Segmenter/SegmentStream"
DESCRIBE = "/segserve.v1.Segmenter/Describe"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
INDEX = "/inference.GRPCInferenceService/RepositoryIndex"
READY = "/inference.GRPCInferenceService/ServerReady"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
# Of a channel that shares its connection with no other.
OWN = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    code: str
    text: str = ""
    trailing: dict[str, str] = field(default_factory=dict)
    answers: tuple[bytes, ...] = ()


def open_channel(address: str, *options: tuple[str, int]) -> grpc.Channel:
    return grpc.insecure_channel(address, (*OWN, *options))


def call(
    channel: grpc.Channel,
    method: str,
    *messages: bytes,
    timeout: float | None = 60.0,
    metadata: Iterable[tuple[str, str]] = (),
    compression: grpc.Compression | None = None,
) -> Ended:
    """Sends messages, however many the method has; returns how the call ended."""
    stream = channel.stream_stream(method)(
        iter(messages), timeout=timeout, metadata=tuple(metadata), compression=compression
    )
    return drain(stream)


def drain(stream: grpc.Call, limit: int | None = None) -> Ended:
    """Reads what is left of a call, or ``limit`` answers of it."""
    answers: list[bytes] = []
    try:
        for answer in stream:
            answers.append(answer)
            if len(answers) == limit:
                stream.cancel()
                break
    except grpc.RpcError as error:
        # The error is the call: with its frames it would keep the message that was sent.
        error.__traceback__ = None
        trailing = dict(error.trailing_metadata() or ())
        return Ended(error.code().name, error.details(), trailing, tuple(answers))
    return Ended("OK", answers=tuple(answers))


class Messages(Iterator[bytes]):
    """The messages of an open stream: those that are given to it, and no end before ``close``."""

    def __init__(self, *first: bytes) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        for message in first:
            self._queue.put(message)

    def send(self, message: bytes) -> None:
        self._queue.put(message)

    def close(self) -> None:
        self._queue.put(None)

    def __next__(self) -> bytes:
        message = self._queue.get()
        if message is None:
            raise StopIteration
        return message


def tag(number: int, kind: int) -> bytes:
    """A field's tag: its number and wire type."""
    return varint(number << 3 | kind)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def part(number: int, body: bytes) -> bytes:
    """A length-delimited field."""
    return tag(number, 2) + varint(len(body)) + body


def number_of(message: type[Message], name: str) -> int:
    """A field's number."""
    return int(message.DESCRIPTOR.fields_by_name[name].number)
