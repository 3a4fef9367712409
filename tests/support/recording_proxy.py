"""Stands between a gRPC client and a server, passes every message on, and keeps what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
)


@dataclass
class Recording:
    """Where the proxy listens, the methods that were called, and every inference asked for."""

    address: str = ""
    methods: list[str] = field(default_factory=list)
    inferences: list[service_pb2.ModelInferRequest] = field(default_factory=list)


class _Forward(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, channel: grpc.Channel, recording: Recording) -> None:
        self.channel = channel
        self.recording = recording

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def forward(message: bytes, context: grpc.ServicerContext) -> bytes:
            method = details.method.rpartition("/")[2]
            self.recording.methods.append(method)
            if method == "ModelInfer":
                self.recording.inferences.append(service_pb2.ModelInferRequest.FromString(message))
            try:
                answer: bytes = self.channel.unary_unary(details.method)(message, timeout=60)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)


@contextmanager
def record(target: str) -> Iterator[Recording]:
    """A proxy of ``target`` on a free loopback port."""
    recording = Recording()
    with grpc.insecure_channel(target, OPTIONS) as channel, ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, (_Forward(channel, recording),), options=OPTIONS)
        recording.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield recording
        finally:
            server.stop(None).wait()
