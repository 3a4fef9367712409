"""Work that ends when its client hangs up: its images leave the queue, its tiles are not begun."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request

from serving.errors import ClientGone

Answer = TypeVar("Answer")


async def while_connected(request: Request, work: Coroutine[None, None, Answer]) -> Answer:
    """Awaits ``work``; call it once the request's body has been read.

    Raises:
        ClientGone: the connection closed first; ``work`` was cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("the client closed the connection before it was answered")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """ASGI tells of it by a message, behind those of the body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
