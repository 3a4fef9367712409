"""Reads the body of an HTTP request within limits of size and time, and ends its work with it.

The event loop only collects what arrives: unpacking and cutting happen on a pool thread. The
deadline of ``X-Timeout-Ms`` counts from when the header came. When the client hangs up, its images
leave the queue and its tiles are not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from serving.errors import ClientGone, InvalidRequest, TooLarge, UploadTimeout
from serving.http.multipart import Form, is_form, read_form
from serving.http.negotiation import decompress, read_encoding
from serving.parsing import read_decimal, read_length
from serving.settings import Settings

LENGTH = "Content-Length"


@dataclass(frozen=True)
class BodyLimit:
    """The largest size of a body, as sent and unpacked, and the setting that holds it."""

    size: int
    setting: str

    def check(self, length: int) -> None:
        """Raises TooLarge above it."""
        if length > self.size:
            raise TooLarge(
                f"the body has {length} bytes or more, the limit is {self.size} "
                f"(setting {self.setting})",
                reason="request_bytes",
            )


@dataclass(frozen=True)
class BodyReader:
    """Reads the bodies of one server.

    Attributes:
        pool: runs what takes time.
        count_ignored: of the server's metrics.
    """

    settings: Settings
    pool: Executor
    count_ignored: Callable[[str, int], None]

    async def read(self, request: Request) -> bytes:
        """Returns the whole body of an inference; see ``read_within``."""
        limit = BodyLimit(self.settings.max_request_bytes, "max_request_bytes")
        return await self.read_within(request, limit)

    async def read_control(self, request: Request) -> bytes:
        """Returns the whole body of a request that holds no image; see ``read_within``."""
        limit = BodyLimit(self.settings.max_control_bytes, "max_control_bytes")
        return await self.read_within(request, limit)

    async def read_within(self, request: Request, limit: BodyLimit) -> bytes:
        """Returns the whole body, unpacked.

        Raises:
            TooLarge: more than ``limit``, declared or sent.
            UploadTimeout: not complete after ``upload_timeout_s``.
            Unsupported: compressed otherwise than by gzip or deflate.
            InvalidRequest: compressed, and broken.
        """
        encoding = read_encoding(request.headers.getlist("content-encoding"))
        declared = request.headers.get(LENGTH)
        if declared is not None:
            limit.check(read_length(declared.strip(), LENGTH))
        timeout_s = self.settings.upload_timeout_s
        try:
            body = await asyncio.wait_for(_collect(request, limit), timeout_s)
        except asyncio.TimeoutError:
            raise UploadTimeout(
                f"the body was not complete after {timeout_s:g} s (setting upload_timeout_s)",
                reason="upload_timeout",
            ) from None
        except ClientDisconnect:
            raise InvalidRequest("the client closed the connection while sending") from None
        if encoding is None:
            return body
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self.pool, decompress, body, encoding, limit.size, limit.setting
        )

    async def read_image(self, request: Request, options: Collection[str] = ()) -> Form:
        """Returns the image, which is the body itself or a form's one file, and a form's options.

        Args:
            options: their names.

        Raises:
            InvalidRequest: not a form where there should be one.
            InvalidImage: a form without exactly one file.
            SegserveError: as ``read``.
        """
        body = await self.read(request)
        content_type = request.headers.get("content-type", "")
        if not is_form(content_type):
            return Form(body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, read_form, body, content_type, options)


async def _collect(request: Request, limit: BodyLimit) -> bytes:
    """Grows with what arrives; joining it in the end would hold up the event loop."""
    first, rest, total = b"", None, 0
    async for chunk in request.stream():
        total += len(chunk)
        limit.check(total)
        if rest is not None:
            rest.write(chunk)
        elif not first:
            first = chunk
        elif chunk:
            rest = BytesIO()
            rest.write(first)
            rest.write(chunk)
            first = b""
    return first if rest is None else rest.getvalue()


TIMEOUT_HEADER = "X-Timeout-Ms"


def parse_timeout(text: str | None) -> float | None:
    """Seconds from the header's value; None where it is absent.

    Raises:
        InvalidRequest: not a positive decimal number of milliseconds below 10^9.
    """
    if text is None:
        return None
    milliseconds = read_decimal(text.strip(), TIMEOUT_HEADER, 0.0, 1e9)
    if not 0.0 < milliseconds < 1e9:
        raise InvalidRequest(
            f"{TIMEOUT_HEADER}: {text[:64]!r} is not a valid number of milliseconds: expected one "
            f"above 0 and below 1e9"
        )
    return milliseconds / 1000.0


def seconds_left(timeout_s: float | None, began: float) -> float | None:
    """Returns what is left of a timeout that counts from ``began``, on ``time.perf_counter``."""
    return None if timeout_s is None else timeout_s - (perf_counter() - began)


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
    """Returns once ASGI sends ``http.disconnect``, which follows the messages of the body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
