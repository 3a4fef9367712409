"""Clients of the compared servers: each sends a photo (JPEG) and gets a coloured mask (PNG)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferResult

from benchmarks.contest.cases import MODEL
from benchmarks.contest.services.network import read_photo, write_mask
from benchmarks.loadgen.targets import Outcome
from serving.imaging.geometry import Size

# Longer than any queue here.
PATIENCE_S = 3600.0


class Client(Protocol):
    """A caller of one server; its calls run concurrently on one event loop."""

    async def ask(self, photo: bytes) -> bytes:
        """Returns the mask as a PNG, in colour and at the photo's own size.

        Raises:
            Exception: the server's, or the transport's.
        """
        ...

    async def close(self) -> None:
        """Closes its connections."""
        ...


class HttpClient:
    """Sends the photo as the body or as a form's file; the response is the picture."""

    def __init__(self, url: str, *, form: bool) -> None:
        self.url = url
        self.form = form
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, photo: bytes) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
                raise_for_status=True,
            )
        data: bytes | aiohttp.FormData = photo
        if self.form:
            data = aiohttp.FormData()
            data.add_field("image", photo, filename="photo.jpg", content_type="image/jpeg")
        async with self._session.post(self.url, data=data) as answer:
            return await answer.read()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class TritonClient:
    """Sends pixels and receives class ids: decoding, colouring and encoding happen here."""

    def __init__(self, address: str, size: Size, colors: bytes) -> None:
        self.size = size
        self.colors = colors
        self._client = triton.InferenceServerClient(address)

    async def ask(self, photo: bytes) -> bytes:
        pixels, own = await asyncio.to_thread(read_photo, photo, self.size.height, self.size.width)
        item = triton.InferInput("image", list(pixels.shape), "UINT8")
        item.set_data_from_numpy(pixels)
        wanted = [triton.InferRequestedOutput("mask")]
        result: InferResult = await self._client.infer(MODEL, [item], outputs=wanted)
        labels = result.as_numpy("mask")[0]
        return await asyncio.to_thread(write_mask, labels, self.colors, own)

    async def close(self) -> None:
        await self._client.close()


class BytesClient:
    """Sends and receives BYTES tensors of the Open Inference Protocol over gRPC."""

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address)

    async def ask(self, photo: bytes) -> bytes:
        item = triton.InferInput("photo", [1], "BYTES")
        item.set_data_from_numpy(np.array([photo], np.object_))
        result: InferResult = await self._client.infer(MODEL, [item])
        return bytes(result.as_numpy("picture").item())

    async def close(self) -> None:
        await self._client.close()


class ContestTarget:
    """Makes a client a target of the load generator."""

    def __init__(self, title: str, client: Client) -> None:
        self.title = title
        self.client = client

    async def send(self, image: bytes) -> Outcome:
        try:
            mask = await self.client.ask(image)
        except Exception as error:
            return Outcome("error", f"{type(error).__name__}: {error}"[:200])
        return Outcome("ok", response_bytes=len(mask))

    async def close(self) -> None:
        await self.client.close()


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
