"""The gRPC server: its limits, its port, and the services on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from segserve_client.proto import segserve_pb2, segserve_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from serving.calls.calls import Calls
from serving.calls.tls import open_grpc_tls
from serving.dataplane import Dataplane
from serving.rpc.calls import CallInterceptor
from serving.rpc.health import HealthServicer
from serving.rpc.inference import InferenceServicer
from serving.rpc.segmenter import SegmenterServicer
from serving.service import Segmenter
from serving.settings import Settings, join_address

SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((segserve_pb2, "Segmenter"), (oip, "GRPCInferenceService"))
)
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
KEEPALIVE_MS = 60_000
# Up to this many times a limit the server answers with the setting's name, and counts; beyond, gRPC
# refuses by itself, before it takes what is too much into memory.
OWN_LIMITS = 2
COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


def build_grpc_server(
    segmenter: Segmenter,
    dataplane: Dataplane,
    settings: Settings,
    calls: Calls,
    is_ready: Callable[[], bool],
    stopping: asyncio.Event,
) -> tuple[grpc.aio.Server, int]:
    """A server bound to ``settings.grpc_port`` and not started, with the port it got.

    ``stopping`` ends streams, which may otherwise stay open for ever.

    Raises:
        OSError: the port is taken.
        InvalidSetting: a file of the TLS settings is wrong.
    """
    server = grpc.aio.server(
        options=(
            # A second server on the port would silently take half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", OWN_LIMITS * settings.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", OWN_LIMITS * settings.max_header_bytes),
            ("grpc.absolute_max_metadata_size", OWN_LIMITS * settings.max_header_bytes),
            ("grpc.max_allowed_incoming_connections", settings.max_grpc_connections),
            ("grpc.server_handshake_timeout_ms", int(settings.header_timeout_s * 1000)),
            # A client that is gone without a word is noticed.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        ),
        interceptors=(CallInterceptor(calls, settings, segmenter.door),),
        maximum_concurrent_rpcs=OWN_LIMITS * settings.max_grpc_calls,
        compression=COMPRESSION[settings.grpc_compression],
    )
    segserve_pb2_grpc.add_SegmenterServicer_to_server(
        SegmenterServicer(segmenter, stopping), server
    )
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(dataplane, is_ready, stopping), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthServicer(SERVICES, is_ready, stopping), server
    )
    reflection.enable_server_reflection((*SERVICES, HEALTH, reflection.SERVICE_NAME), server)
    address = join_address(settings.host, settings.grpc_port)
    tls = open_grpc_tls(settings)
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    return server, port
