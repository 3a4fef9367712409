"""``segment`` over HTTP: options from the query, the answer in one form or in several parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from time import perf_counter
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Field

from serving.errors import InvalidRequest
from serving.forms.arrays import NPZ
from serving.forms.mask_view import MAX_TOLERANCE_PIXELS, Encoded, MaskOptions, Picture
from serving.http import accept
from serving.http.body import read_image
from serving.http.disconnect import while_connected
from serving.http.multipart import join_parts
from serving.http.timeouts import TIMEOUT_HEADER, parse_timeout, seconds_left
from serving.mask import FORMATS
from serving.oip.protocol import parse_version
from serving.requests import OutputSize, SegmentOptions, SegmentRequest
from serving.service import Segmenter
from serving.settings import Settings

FormatName = Literal["png", "overlay", "confidence", "npy", "raw", "stats", "rle", "polygons"]
OPTIONS = (
    "format", "size", "smooth", "confidence", "classes", "tta",
    "image", "quality", "opacity", "legend", "tolerance", "min_area",
)  # fmt: skip
MULTIPART = "multipart/form-data"
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


def split_formats(entries: Sequence[str]) -> tuple[str, ...]:
    """``format=png,stats`` and ``format=png&format=stats`` mean the same."""
    return tuple(part for entry in entries for part in entry.split(","))


def _split(entries: object) -> object:
    return list(split_formats(entries)) if isinstance(entries, list) else entries


async def read_options(
    request: Request,
    format: Annotated[
        Annotated[list[FormatName], Field(json_schema_extra={"uniqueItems": True})] | None,
        BeforeValidator(_split),
        Query(description=f"beats Accept; several, by comma, are answered as {MULTIPART}"),
    ] = None,
    size: Annotated[OutputSize, Query(description="of the answer")] = "original",
    smooth: Annotated[bool | None, Query(description="interpolate logits, not ids")] = None,
    confidence: Annotated[
        bool, Query(description="adds it to npy (then npz), stats, rle and polygons")
    ] = False,
    classes: Annotated[
        str | None, Query(description="names or ids, comma-separated", examples=["0,2"])
    ] = None,
    tta: Annotated[
        str | None,
        Query(description="test-time augmentation: flip and scales", examples=["flip,0.75,1.25"]),
    ] = None,
    image: Annotated[Picture | None, Query(description="of an overlay; beats Accept")] = None,
    quality: Annotated[
        int | None, Query(ge=1, le=100, description="of an overlay as JPEG; 90")
    ] = None,
    opacity: Annotated[
        float | None, Query(ge=0, le=1, description="of an overlay's colours; 0.5")
    ] = None,
    legend: Annotated[bool, Query(description="below an overlay: names and colours")] = False,
    tolerance: Annotated[
        float | None,
        Query(ge=0, le=MAX_TOLERANCE_PIXELS, description="of polygons, in pixels; 0"),
    ] = None,
    min_area: Annotated[
        int | None, Query(ge=0, le=2**31, description="of polygons, in pixels")
    ] = None,
) -> SegmentOptions:
    """The query's options; async, or FastAPI would hand it to a thread.

    Raises:
        InvalidRequest: an unknown one; the message lists the known.
    """
    unknown = sorted(set(request.query_params) - set(OPTIONS))
    if unknown:
        raise InvalidRequest(f"unknown option {', '.join(unknown)}; known: {', '.join(OPTIONS)}")
    choice = choose(tuple(format or ()), request.headers.get("accept", ""))
    return SegmentOptions(
        formats=tuple(format) if format else (choice.format,),
        size=size,
        smooth=smooth,
        classes=tuple(classes.split(",")) if classes is not None else (),
        form=MaskOptions(
            confidence=confidence,
            image=image or choice.image,
            quality=quality,
            opacity=opacity,
            legend=legend,
            tolerance=tolerance,
            min_area=min_area,
        ),
        tta=tuple(tta.split(",")) if tta is not None else (),
    )


Options = Annotated[SegmentOptions, Depends(read_options)]


def add_segment(app: FastAPI, segmenter: Segmenter, settings: Settings) -> None:
    """An image in, a label map out."""
    route = partial(app.post, tags=["segment"], response_class=Response, responses=dict(ANSWERS))

    @route("/v2/models/{model}/segment")
    async def segment(request: Request, model: str, options: Options) -> Response:
        """Segments the image in the body (`curl --data-binary @street.jpg`)."""
        return await answer(request, model, None, options)

    @route("/v2/models/{model}/versions/{version}/segment")
    async def segment_by_version(
        request: Request, model: str, version: str, options: Options
    ) -> Response:
        """The same by one version of the model."""
        return await answer(request, model, parse_version(version), options)

    async def answer(
        request: Request, model: str, version: int | None, options: SegmentOptions
    ) -> Response:
        timeout_s, began = parse_timeout(request.headers.get(TIMEOUT_HEADER)), perf_counter()
        data = await read_image(request, settings)
        left_s = seconds_left(timeout_s, began)
        asked = SegmentRequest(model, data, options, version, left_s)
        result = await while_connected(request, segmenter.segment(asked, "http"))
        encoded = join(result.parts)
        return Response(
            encoded.body,
            media_type=encoded.media_type,
            headers={
                "X-Model-Name": result.model,
                "X-Model-Version": str(result.version),
                "X-Image-Size": str(result.image_size),
                "X-Mask-Size": str(result.answer_size),
                "Server-Timing": result.timings.server_timing,
            },
        )


# Callers of one kind send the same; the strings are theirs, so only a few are kept.
@lru_cache(maxsize=64)
def choose(formats: tuple[str, ...], header: str) -> accept.Choice:
    """What ``Accept`` says: of the formats asked for only how, if none was asked for also which."""
    found = accept.choose(header, [FORMATS[name] for name in formats or FORMATS])
    return found or accept.Choice("png")


def join(parts: Mapping[str, Encoded]) -> Encoded:
    """The answer itself where there is one, else a body of several parts."""
    return next(iter(parts.values())) if len(parts) == 1 else join_parts(parts)
