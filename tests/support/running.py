"""A real server on the test's own event loop, and clients of it that do not block the loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from serving.models.loader import OpenEngine
from serving.server import Server
from tests.support.band_model import free_ports


@asynccontextmanager
async def running(
    repository: Path, open_engine: OpenEngine, **settings: object
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """The server, and an HTTP client of it."""
    chosen = free_ports(repository).model_copy(update=settings)
    server = Server(chosen, open_engine)
    await server.start()
    try:
        address = f"http://127.0.0.1:{server.ports.http}"
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits) as http:
            yield server, http
    finally:
        await server.stop()
