"""gRPC's health service: serving while the server is ready.

Source: grpc.health.v1 (grpc/doc/health-checking.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from serving.errors import ServiceNotFound
from serving.grpc.status import Context

# How soon a watcher hears of a change.
WATCH_SECONDS = 0.2


class HealthServicer(health_pb2_grpc.HealthServicer):
    """``grpc.health.v1.Health`` for the server (the empty name) and each of its services."""

    def __init__(
        self, services: tuple[str, ...], is_ready: Callable[[], bool], stopping: asyncio.Event
    ) -> None:
        self.services = ("", *services)
        self.is_ready = is_ready
        self.stopping = stopping

    async def Check(  # noqa: N802
        self, request: pb.HealthCheckRequest, context: Context
    ) -> pb.HealthCheckResponse:
        if request.service not in self.services:
            raise ServiceNotFound(
                f"unknown service {request.service!r}; known: {', '.join(self.services[1:])}"
            )
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: pb.HealthCheckRequest, context: Context
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        reported = None
        while True:
            # Before the status: a stop that comes while that is sent is still to be seen.
            is_last = self.stopping.is_set()
            status = self._status(request.service)
            if status != reported:
                yield pb.HealthCheckResponse(status=status)
                reported = status
            if is_last:
                return
            await asyncio.sleep(WATCH_SECONDS)

    def _status(self, service: str) -> int:
        known = pb.HealthCheckResponse
        if service not in self.services:
            return int(known.SERVICE_UNKNOWN)
        ready = self.is_ready() and not self.stopping.is_set()
        return int(known.SERVING if ready else known.NOT_SERVING)
