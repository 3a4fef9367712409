"""``segserve.v1.Segmenter`` over gRPC: a thin converter over the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from google.protobuf.message import Message
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.errors import InvalidRequest, SegserveError, drop_traceback
from serving.formats import registry as mask
from serving.formats.label_map import MaskOptions, Picture
from serving.grpc.status import INLINE_BYTES, Context, run_sized, time_left
from serving.grpc.stream import answer_in_order
from serving.observability.request_context import count_refusal
from serving.requests import OutputSize, SegmentOptions, SegmentRequest
from serving.service import Segmenter
from serving.settings import Settings

SIZES: dict[int, OutputSize] = {pb.SIZE_ORIGINAL: "original", pb.SIZE_MODEL: "model"}
PICTURES: dict[str, Picture | None] = {"": None, "png": "png", "jpeg": "jpeg"}


class SegmenterServicer(segserve_pb2_grpc.SegmenterServicer):
    """``segserve.v1.Segmenter``."""

    def __init__(
        self, segmenter: Segmenter, pool: Executor, settings: Settings, stopping: asyncio.Event
    ) -> None:
        self.segmenter = segmenter
        self.pool = pool
        self.settings = settings
        self.stopping = stopping

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> Message:  # noqa: N802
        return await self._segment(request, time_left(context))

    def SegmentStream(  # noqa: N802
        self, requests: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[Message]:
        async def work(index: int, request: pb.SegmentRequest) -> Message:
            try:
                response = await self._segment(request, time_left(context))
            except SegserveError as error:
                count_refusal(error, request.model)
                drop_traceback(error)
                failed = pb.FrameError(code=error.code, message=str(error))
                return pb.SegmentStreamResponse(index=index, error=failed)
            return pb.SegmentStreamResponse(index=index, response=response)

        limit = self.settings.max_stream_frames
        return answer_in_order(requests, work, limit, self.stopping)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> Message:  # noqa: N802
        known = self.segmenter.describe(request.model, request.version or None)
        labels = known.labels
        return pb.DescribeResponse(
            model=known.name,
            version=known.version,
            classes=[
                pb.Class(id=index, name=name, color=color[0] << 16 | color[1] << 8 | color[2])
                for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))
            ],
            ignore_label=labels.ignore_label,
            height=known.size.height if known.size else 0,
            width=known.size.width if known.size else 0,
            has_logits=known.has_logits,
            formats=list(mask.FORMATS),
        )

    async def _segment(self, request: pb.SegmentRequest, timeout_s: float | None) -> Message:
        options = read_options(request)
        # A copy: of megabytes, not on the event loop.
        is_small = request.ByteSize() <= INLINE_BYTES
        image: bytes = await run_sized(self.pool, is_small, getattr, request, "image")
        result = await self.segmenter.segment(
            SegmentRequest(request.model, image, options, request.version or None, timeout_s),
            "grpc",
        )
        only = result.only if len(result.parts) == 1 else None
        return pb.SegmentResponse(
            body=only.body if only else b"",
            media_type=only.media_type if only else "",
            model=result.model,
            version=result.version,
            image_height=result.image_size.height,
            image_width=result.image_size.width,
            mask_height=result.answer_size.height,
            mask_width=result.answer_size.width,
            stage_seconds=result.timings.seconds,
            parts=[]
            if only
            else [
                pb.Part(name=name, media_type=part.media_type, body=part.body)
                for name, part in result.parts.items()
            ],
        )


def read_options(request: pb.SegmentRequest) -> SegmentOptions:
    """Returns what the message asks for.

    Raises:
        InvalidRequest: an option of no known value; the message names it.
    """
    if request.size not in SIZES:
        raise InvalidRequest(f"size is {request.size}; known: {', '.join(pb.Size.keys())}")
    if request.image_format not in PICTURES:
        raise InvalidRequest(f"image_format is {request.image_format!r}; known: png, jpeg")
    given = request.HasField
    return SegmentOptions(
        formats=tuple(request.format.split(",")) if request.format else ("png",),
        size=SIZES[request.size],
        smooth=request.smooth if given("smooth") else None,
        classes=tuple(request.classes),
        form=MaskOptions(
            confidence=request.confidence,
            image=PICTURES[request.image_format],
            quality=request.quality if given("quality") else None,
            opacity=request.opacity if given("opacity") else None,
            legend=request.legend,
            tolerance=request.tolerance if given("tolerance") else None,
            min_area=request.min_area if given("min_area") else None,
        ),
        tta=tuple(request.tta),
    )
