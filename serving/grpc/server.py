"""The gRPC server: its limits, its port, and the services on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from segserve_client.proto import segserve_pb2, segserve_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from serving.admission.admission import Admission
from serving.grpc.health import HealthServicer
from serving.grpc.interceptor import CallInterceptor
from serving.grpc.oip import InferenceServicer
from serving.grpc.open_calls import OpenCalls
from serving.grpc.segmenter import SegmenterServicer
from serving.observability.middleware import RequestContexts
from serving.oip.dataplane import Dataplane
from serving.security.tls import open_grpc_tls
from serving.service import Segmenter
from serving.settings import Settings, join_address

SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((segserve_pb2, "Segmenter"), (oip, "GRPCInferenceService"))
)
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
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
    admission: Admission,
    contexts: RequestContexts,
    pool: Executor,
    settings: Settings,
    is_ready: Callable[[], bool],
    stopping: asyncio.Event,
) -> tuple[grpc.aio.Server, int]:
    """Returns a server bound to ``settings.grpc_port`` and not started, with the port it got.

    ``stopping`` ends streams, which may otherwise stay open for ever.

    Raises:
        OSError: the port is taken.
        InvalidSetting: a file of the TLS settings is wrong.
    """
    open_calls = OpenCalls(settings)
    server = grpc.aio.server(
        options=(
            # A second server on the port would silently take half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", OWN_LIMITS * settings.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", OWN_LIMITS * settings.max_header_bytes),
            ("grpc.absolute_max_metadata_size", OWN_LIMITS * settings.max_header_bytes),
            ("grpc.max_allowed_incoming_connections", settings.max_grpc_connections),
            # A client that keeps to it waits by itself; one that does not loses its connection.
            ("grpc.max_concurrent_streams", OWN_LIMITS * open_calls.limit),
            ("grpc.server_handshake_timeout_ms", int(settings.header_timeout_s * 1000)),
            ("grpc.max_connection_idle_ms", int(settings.grpc_connection_idle_s * 1000)),
            *_list_keepalive_options(settings),
        ),
        interceptors=(CallInterceptor(contexts, settings, admission, pool, open_calls),),
        maximum_concurrent_rpcs=OWN_LIMITS * open_calls.limit,
        compression=COMPRESSION[settings.grpc_compression],
    )
    segserve_pb2_grpc.add_SegmenterServicer_to_server(
        SegmenterServicer(segmenter, pool, settings, stopping), server
    )
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(dataplane, pool, settings, is_ready, stopping), server
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


def _list_keepalive_options(settings: Settings) -> Iterator[tuple[str, int]]:
    """Pings find clients that are gone without a word; clients ping for the same reason, and gRPC
    would close the connection of one that pings more often than every five minutes."""
    interval = settings.grpc_http2_min_recv_ping_interval_without_data_ms
    yield "grpc.keepalive_time_ms", settings.grpc_keepalive_time_ms
    yield "grpc.keepalive_timeout_ms", settings.grpc_keepalive_timeout_ms
    yield "grpc.keepalive_permit_without_calls", int(settings.grpc_keepalive_permit_without_calls)
    yield "grpc.http2.max_pings_without_data", settings.grpc_http2_max_pings_without_data
    yield "grpc.http2.min_recv_ping_interval_without_data_ms", interval
    # An older name of the same, which gRPC reads first where it is set.
    yield "grpc.http2.min_ping_interval_without_data_ms", interval
    yield "grpc.http2.max_ping_strikes", settings.grpc_http2_max_ping_strikes
