"""Reads the body of an HTTP request within limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from serving.errors import InvalidRequest, TooLarge, UploadTimeout
from serving.http import form
from serving.http.compression import check_encoding, decompress
from serving.settings import Settings


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body.

    Raises:
        TooLarge: more than ``max_request_bytes``, announced or sent.
        UploadTimeout: not complete after ``upload_timeout_s``.
        Unsupported: compressed otherwise than by gzip or deflate.
        InvalidRequest: compressed, and broken.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        check_encoding(encoding)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        check_length(int(announced), settings)
    try:
        body = await asyncio.wait_for(_collect(request, settings), settings.upload_timeout_s)
    except asyncio.TimeoutError:
        raise UploadTimeout(
            f"the body was not complete after {settings.upload_timeout_s:g} s "
            f"(setting upload_timeout_s)",
            reason="upload_timeout",
        ) from None
    except ClientDisconnect:
        raise InvalidRequest("the client closed the connection while sending") from None
    if encoding == "identity":
        return body
    return await asyncio.to_thread(decompress, body, encoding, settings.max_request_bytes)


async def read_image(request: Request, settings: Settings) -> bytes:
    """The image: the body itself, or the one file of a multipart form.

    Raises:
        InvalidRequest: no form where there should be one.
        InvalidImage: a form without exactly one file.
    """
    body = await read_body(request, settings)
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith(form.MEDIA_TYPE):
        return body
    return await asyncio.to_thread(form.cut_file, body, content_type)


def check_length(length: int, settings: Settings) -> None:
    """Raises TooLarge above ``max_request_bytes``."""
    if length > settings.max_request_bytes:
        raise TooLarge(
            f"the body has {length} bytes or more, the limit is {settings.max_request_bytes} "
            f"(setting max_request_bytes)",
            reason="request_bytes",
        )


async def _collect(request: Request, settings: Settings) -> bytes:
    chunks, total = [], 0
    async for chunk in request.stream():
        total += len(chunk)
        check_length(total, settings)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
