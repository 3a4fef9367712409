"""Reads the body of an HTTP request within limits of size and time.

The event loop only collects what arrives: unpacking and cutting happen on a pool thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from concurrent.futures import Executor
from dataclasses import dataclass
from io import BytesIO

from starlette.requests import ClientDisconnect, Request

from serving.errors import InvalidRequest, TooLarge, UploadTimeout
from serving.http.compression import decompress, read_encoding
from serving.http.form import Form, is_form, read_form
from serving.settings import Settings
from serving.strict_numbers import read_length

LENGTH = "Content-Length"


@dataclass(frozen=True)
class BodyLimit:
    """How many bytes a body may have, as sent and unpacked, and which setting says so."""

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
    """Reads the bodies of one server; ``pool`` does what takes time."""

    settings: Settings
    pool: Executor

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
            TooLarge: more than ``limit``, announced or sent.
            UploadTimeout: not complete after ``upload_timeout_s``.
            Unsupported: compressed otherwise than by gzip or deflate.
            InvalidRequest: compressed, and broken.
        """
        encoding = read_encoding(request.headers.getlist("content-encoding"))
        announced = request.headers.get(LENGTH)
        if announced is not None:
            limit.check(read_length(announced.strip(), LENGTH))
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
