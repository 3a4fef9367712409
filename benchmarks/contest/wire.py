"""Counts the bytes between a client and a server, by a relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

CHUNK = 1 << 18


@dataclass
class Wire:
    """Counts of TCP payload bytes, HTTP headers and gRPC framing included.

    Attributes:
        port: where the relay listens, on 127.0.0.1.
        sent: from the client to the server.
        received: the other way.
    """

    port: int
    sent: int = 0
    received: int = 0


@asynccontextmanager
async def count_bytes(port: int) -> AsyncIterator[Wire]:
    """Relays to 127.0.0.1:``port``; connections that are still open at the end are closed."""
    relays: set[asyncio.Task[None]] = set()
    pumps: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        with suppress(OSError):
            while chunk := await source.read(CHUNK):
                setattr(wire, way, getattr(wire, way) + len(chunk))
                sink.write(chunk)
                await sink.drain()
        sink.close()

    async def relay(down: asyncio.StreamReader, down_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.add(task)
        up, up_out = await asyncio.open_connection("127.0.0.1", port)
        own = {
            asyncio.create_task(pump(down, up_out, "sent")),
            asyncio.create_task(pump(up, down_out, "received")),
        }
        pumps.update(own)
        await asyncio.gather(*own, return_exceptions=True)
        for writer in (up_out, down_out):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(relay, "127.0.0.1", 0, limit=CHUNK)
    wire = Wire(server.sockets[0].getsockname()[1])
    try:
        yield wire
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
