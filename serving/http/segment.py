"""Serves ``segment`` over HTTP: options from the query or a form, one output format or several."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Executor
from functools import partial
from time import perf_counter
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving.errors import InvalidImage, SegserveError, UnsupportedImageFormat
from serving.formats.label_map import NPZ, Encoded
from serving.formats.registry import FORMATS
from serving.http.body import (
    TIMEOUT_HEADER,
    BodyReader,
    parse_timeout,
    seconds_left,
    while_connected,
)
from serving.http.multipart import join_parts
from serving.http.openapi import BINARY, TIMEOUT, WORK, Responses, describe_body, list_errors
from serving.http.options import MULTIPART, OPTIONS, merge_options, read_options, read_query
from serving.parsing import parse_version
from serving.requests import SegmentRequest, SegmentResult
from serving.service import Segmenter

# Printable ASCII stands for itself in a header, but for the sign that begins an encoded byte.
HEADER_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
IMAGE_BODY = {
    **{f"image/{kind}": BINARY for kind in ("jpeg", "png", "bmp", "webp")},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": {"type": "string", "format": "binary"}},
            "required": ["image"],
            # Fields may be options; an image's part and the option ``image`` share a name.
            "additionalProperties": {"type": "string"},
        }
    },
}
ANSWERS: Responses = {
    **list_errors(*WORK),
    200: {
        "description": "the label map in the format asked for; several are parts of one body",
        "content": {
            media_type: {}
            for media_type in (
                *dict.fromkeys(m for format in FORMATS.values() for m in format.media_types),
                NPZ,
                MULTIPART,
            )
        },
    },
}


def add_segment(app: FastAPI, segmenter: Segmenter, bodies: BodyReader) -> None:
    """Adds ``segment``: an image in, a label map out."""
    query = (
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": option.description,
            "schema": option.schema,
        }
        for name, option in OPTIONS.items()
    )
    route = partial(
        app.post,
        tags=["segment"],
        response_class=Response,
        responses=ANSWERS,
        openapi_extra=describe_body(IMAGE_BODY, *query, TIMEOUT),
    )

    @route("/v2/models/{model}/segment")
    async def segment(request: Request, model: str) -> Response:
        """Segments the image in the body (`curl --data-binary @street.jpg`)."""
        return await answer(request, model, None)

    @route("/v2/models/{model}/versions/{version}/segment")
    async def segment_by_version(request: Request, model: str, version: str) -> Response:
        """The same by one version of the model."""
        return await answer(request, model, parse_version(version))

    async def answer(request: Request, model: str, version: int | None) -> Response:
        accepted = request.headers.get("accept", "")
        query = read_query(request.scope["query_string"])
        # What is wrong already is refused before the body is read.
        options = read_options(query, accepted)
        timeout_s, began = parse_timeout(request.headers.get(TIMEOUT_HEADER)), perf_counter()
        form = await bodies.read_image(request, OPTIONS)
        if form.options:
            options = read_options(merge_options(query, form.options), accepted)
        bodies.count_ignored("form", form.ignored)
        left_s = seconds_left(timeout_s, began)
        asked = SegmentRequest(model, form.image, options, version, left_s)
        try:
            result = await while_connected(request, segmenter.segment(asked, "http"))
        except (InvalidImage, UnsupportedImageFormat) as error:
            raise _explain(error, form.image, request.headers.get("content-type", "")) from None
        encoded = await join(result, bodies.pool)
        return Response(
            encoded.body,
            media_type=encoded.media_type,
            headers={
                "X-Model-Name": quote_header(result.model),
                "X-Model-Version": str(result.version),
                "X-Image-Size": str(result.image_size),
                "X-Mask-Size": str(result.answer_size),
                # An answer that was kept has none.
                **({"Server-Timing": times} if (times := result.timings.server_timing) else {}),
            },
        )


def quote_header(text: str) -> str:
    """Returns ``text`` as a header's value: what is not printable ASCII as percent-encoded UTF-8,
    as in a URL, and ``%`` too, so that decoding is always right."""
    return quote(text, safe=HEADER_SAFE, errors="replace")


async def join(result: SegmentResult, pool: Executor) -> Encoded:
    """Returns the answer itself where there is one, else a body of several parts."""
    if len(result.parts) == 1:
        return result.only
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pool, join_parts, result.parts)


def _explain(error: SegserveError, data: bytes, content_type: str) -> SegserveError:
    """Returns the error, and what to do where the body is something that people send for an
    image."""
    hint = find_hint(data, content_type)
    return type(error)(f"{error}; {hint}", reason=error.reason) if hint else error


# The magic bytes of the image formats that are decoded, and how their base64 begins.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")
_BASE64 = re.compile(rb'\s*"?(/9j/|iVBORw0KGgo|UklGR|Qk)[A-Za-z0-9+/\s\\]', re.ASCII)
_DATA_URL = re.compile(rb'\s*"?(?:[\w-]+=)?data:[\w.+-]*/?[\w.+-]*[;,]', re.ASCII | re.IGNORECASE)
_URL = re.compile(rb'\s*"?(?:[\w-]+=)?(?:https?|ftp|s3|gs|file)://', re.ASCII | re.IGNORECASE)
_JSON = re.compile(rb"\s*(?:\{\s*[\"}]|\[)", re.ASCII)
_FILE_NAME = re.compile(rb"\s*@?[\w./\\: -]{1,255}\.(?:jpe?g|png|bmp|webp)\s*", re.ASCII | re.I)
_FORM = re.compile(rb"(?:\r\n)?--[\x21-\x7e]{1,256}\r\n", re.ASCII)
_FORM_FIELD = re.compile(rb"[\w.-]{1,64}=", re.ASCII)
# What `curl -d @file` leaves out, besides zero bytes.
_LINE_END = re.compile(rb"[\r\n]")
BEGINNING = 512
URL_ENCODED = "application/x-www-form-urlencoded"


def find_hint(data: bytes, content_type: str) -> str:
    """Returns what to send instead of a body that could not be decoded; empty where nothing is
    known of it."""
    head = data[:BEGINNING]
    kind = content_type.partition(";")[0].strip().lower()
    if not data:
        return "the body is empty: send the image's bytes (curl --data-binary @street.jpg)"
    if _DATA_URL.match(head):
        return "the body is a data: URL: decode its base64 and send the bytes"
    if _URL.match(head):
        return "the body is a URL, which the server does not fetch: send the image's bytes"
    if _BASE64.match(head):
        return "the body is base64 text: decode it and send the bytes"
    if _JSON.match(head):
        return "the body is JSON: send the image's bytes here, JSON tensors to .../infer"
    if _FORM.match(head):
        return "the body is a form: send its Content-Type with it (multipart/form-data; boundary=)"
    if len(data) <= 260 and _FILE_NAME.fullmatch(data):
        return "the body is the name of a file: send its bytes (curl --data-binary @street.jpg)"
    # `curl --data-binary` has that Content-Type too, and keeps every byte.
    if kind == URL_ENCODED and (
        _FORM_FIELD.match(head) or (head.startswith(_IMAGES) and not _LINE_END.search(data))
    ):
        return (
            "its Content-Type is that of `curl -d`, which leaves out line ends and so breaks the "
            "bytes: send them with `curl --data-binary @street.jpg`, or -T, or -F image=@street.jpg"
        )
    return ""
