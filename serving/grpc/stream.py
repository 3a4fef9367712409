"""Bidirectional streams: several requests at work, answers in the order of the requests.

At most ``limit`` requests are between being read and their answer being written. A slow client
therefore keeps the next request from being read, and HTTP/2's flow control then stops its sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from serving.errors import NotReady

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request],
    work: Callable[[int, Request], Awaitable[Response]],
    limit: int,
    stopping: asyncio.Event,
) -> AsyncGenerator[Response, None]:
    """Answers ``work(index, request)`` for each request.

    Raises:
        NotReady: ``stopping`` was set; what had been read is answered before.
    """
    slots = asyncio.Semaphore(limit)
    begun: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()

    async def read() -> None:
        index = 0
        try:
            await slots.acquire()
            async for request in requests:
                begun.put_nowait(asyncio.ensure_future(work(index, request)))
                # Of a stream that goes quiet nothing is to stay in memory.
                del request
                index += 1
                await slots.acquire()
        finally:
            begun.put_nowait(None)

    async def stop() -> None:
        await stopping.wait()
        reader.cancel()

    reader = asyncio.ensure_future(read())
    stopper = asyncio.ensure_future(stop())
    try:
        while (answer := await begun.get()) is not None:
            yield await answer
            del answer
            slots.release()
        with suppress(asyncio.CancelledError):
            await reader
        if stopping.is_set():
            raise NotReady("the server is stopping; open the stream again")
    finally:
        reader.cancel()
        stopper.cancel()
        while not begun.empty():
            if (left := begun.get_nowait()) is not None:
                left.cancel()
