"""``segment`` over HTTP: options from the query or a form, the answer in one form or several."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from time import perf_counter
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving.errors import InvalidImage, SegserveError, UnsupportedImageFormat
from serving.forms.arrays import NPZ
from serving.forms.mask_view import Encoded
from serving.http.body import BodyReader
from serving.http.disconnect import while_connected
from serving.http.multipart import join_parts
from serving.http.options import MULTIPART, OPTIONS, merge_options, read_options, read_query
from serving.http.timeouts import TIMEOUT_HEADER, parse_timeout, seconds_left
from serving.http.upload_hints import find_hint
from serving.mask import FORMATS
from serving.oip.protocol import parse_version
from serving.requests import SegmentRequest, SegmentResult
from serving.service import Segmenter

# Printable ASCII stands for itself in a header, but for the sign that begins an encoded byte.
HEADER_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
ANSWERS: Mapping[int | str, dict[str, object]] = {
    200: {
        "description": "the label map, in the form asked for; several forms as parts of one body",
        "content": {
            media_type: {}
            for media_type in (
                *dict.fromkeys(m for format in FORMATS.values() for m in format.media_types),
                NPZ,
                MULTIPART,
            )
        },
    }
}


def add_segment(app: FastAPI, segmenter: Segmenter, bodies: BodyReader) -> None:
    """An image in, a label map out."""
    route = partial(app.post, tags=["segment"], response_class=Response, responses=dict(ANSWERS))

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
        segmenter.metrics.count_ignored("form", form.ignored)
        left_s = seconds_left(timeout_s, began)
        asked = SegmentRequest(model, form.image, options, version, left_s)
        try:
            result = await while_connected(request, segmenter.segment(asked, "http"))
        except (InvalidImage, UnsupportedImageFormat) as error:
            raise _explain(error, form.image, request.headers.get("content-type", "")) from None
        encoded = await join(result, segmenter)
        return Response(
            encoded.body,
            media_type=encoded.media_type,
            headers={
                "X-Model-Name": quote_header(result.model),
                "X-Model-Version": str(result.version),
                "X-Image-Size": str(result.image_size),
                "X-Mask-Size": str(result.answer_size),
                "Server-Timing": result.timings.server_timing,
            },
        )


def quote_header(text: str) -> str:
    """Returns ``text`` as a header's value: what is not printable ASCII as percent-encoded UTF-8,
    as in a URL, and ``%`` too, so that decoding is always right."""
    return quote(text, safe=HEADER_SAFE, errors="replace")


async def join(result: SegmentResult, segmenter: Segmenter) -> Encoded:
    """Returns the answer itself where there is one, else a body of several parts."""
    if len(result.parts) == 1:
        return result.only
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(segmenter.pool, join_parts, result.parts)


def _explain(error: SegserveError, data: bytes, content_type: str) -> SegserveError:
    """The error, and what to do where the body is something that people send for an image."""
    hint = find_hint(data, content_type)
    return type(error)(f"{error}; {hint}", reason=error.reason) if hint else error
