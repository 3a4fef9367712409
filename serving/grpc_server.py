"""gRPC: ``segserve.v1.Segmenter`` and the Open Inference Protocol, thin converters both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
from google.protobuf.message import Message
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from serving import mask
from serving.dataplane import Dataplane, InferRequest
from serving.errors import InvalidRequest, SegserveError
from serving.protocol import SERVER_NAME, SERVER_VERSION, TIMEOUT_PARAMETER, parse_version
from serving.requests import SegmentOptions, SegmentRequest
from serving.service import Segmenter
from serving.settings import Settings
from serving.tensors import Tensor, read_tensor

Context: TypeAlias = grpc.aio.ServicerContext


async def answer(context: Context, work: Awaitable[Message]) -> Message:
    """Awaits ``work``; an error of ours ends the call with its code and text."""
    try:
        return await work
    except SegserveError as error:
        await context.abort(error.grpc_code, str(error), (("segserve-code", error.code),))
        raise


class SegmenterServicer(segserve_pb2_grpc.SegmenterServicer):
    """``segserve.v1.Segmenter``."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> Message:  # noqa: N802
        return await answer(context, self._segment(request, context.time_remaining()))

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> Message:  # noqa: N802
        return await answer(context, self._describe(request))

    async def _segment(self, request: pb.SegmentRequest, timeout_s: float | None) -> Message:
        options = SegmentOptions(
            format=request.format or "png",
            size="model" if request.size == pb.SIZE_MODEL else "original",
            smooth=request.smooth if request.HasField("smooth") else None,
            confidence=request.confidence,
            classes=tuple(request.classes),
        )
        result = await self.segmenter.segment(
            SegmentRequest(
                request.model, request.image, options, request.version or None, timeout_s
            ),
            "grpc",
        )
        return pb.SegmentResponse(
            body=result.body,
            media_type=result.media_type,
            model=result.model,
            version=result.version,
            image_height=result.image_size.height,
            image_width=result.image_size.width,
            mask_height=result.answer_size.height,
            mask_width=result.answer_size.width,
            stage_seconds=result.timings.seconds,
        )

    async def _describe(self, request: pb.DescribeRequest) -> Message:
        model = self.segmenter.registry.get(request.model, request.version or None)
        labels = model.labels
        return pb.DescribeResponse(
            model=model.name,
            version=model.version,
            classes=[
                pb.Class(id=index, name=name, color=color[0] << 16 | color[1] << 8 | color[2])
                for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))
            ],
            ignore_label=labels.ignore_label,
            height=model.spec.size.height,
            width=model.spec.size.width,
            has_logits=model.spec.logits_size is not None,
            formats=list(mask.FORMATS),
        )


class InferenceServicer(oip_grpc.GRPCInferenceServiceServicer):
    """``inference.GRPCInferenceService``."""

    def __init__(self, dataplane: Dataplane, is_ready: Callable[[], bool]) -> None:
        self.dataplane = dataplane
        self.is_ready = is_ready

    async def ServerLive(self, request: Message, context: Context) -> Message:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Message, context: Context) -> Message:  # noqa: N802
        return oip.ServerReadyResponse(ready=self.is_ready())

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: Context
    ) -> Message:
        ready = self.dataplane.is_loaded(request.name, request.version)
        return oip.ModelReadyResponse(ready=ready and self.is_ready())

    async def ServerMetadata(self, request: Message, context: Context) -> Message:  # noqa: N802
        return oip.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION)

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> Message:
        return await answer(context, self._metadata(request))

    async def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: Context
    ) -> Message:
        return await answer(context, self._config(request))

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> Message:  # noqa: N802
        return await answer(context, self._infer(request, context.time_remaining()))

    async def _metadata(self, request: oip.ModelMetadataRequest) -> Message:
        found = self.dataplane.metadata(request.name, parse_version(request.version))
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=found.name,
            versions=found.versions,
            platform=found.platform,
            inputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in found.inputs],
            outputs=[
                tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in found.outputs
            ],
        )

    async def _config(self, request: oip.ModelConfigRequest) -> Message:
        config = self.dataplane.config(request.name, parse_version(request.version))
        return oip.ModelConfigResponse(config=config)

    async def _infer(self, request: oip.ModelInferRequest, time_left_s: float | None) -> Message:
        timeout_s = time_left_s
        if TIMEOUT_PARAMETER in request.parameters:
            asked = request.parameters[TIMEOUT_PARAMETER].int64_param / 1e6
            timeout_s = asked if timeout_s is None else min(asked, timeout_s)
        response = await self.dataplane.infer(
            InferRequest(
                model=request.model_name,
                version=parse_version(request.model_version),
                id=request.id,
                inputs=read_inputs(request),
                outputs=tuple(output.name for output in request.outputs),
                timeout_s=timeout_s,
            ),
            "grpc",
        )
        tensor = oip.ModelInferResponse.InferOutputTensor
        return oip.ModelInferResponse(
            model_name=response.model,
            model_version=str(response.version),
            id=response.id,
            outputs=[
                tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in response.outputs
            ],
            raw_output_contents=[t.to_bytes() for t in response.outputs],
        )


def read_inputs(request: oip.ModelInferRequest) -> tuple[Tensor, ...]:
    """Tensors from ``raw_input_contents``, or from ``contents`` where there are none.

    Raises:
        InvalidRequest: both or too few, or data that does not fit.
    """
    raw = request.raw_input_contents
    if not raw:
        return tuple(_read_contents(tensor) for tensor in request.inputs)
    if len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"{len(request.inputs)} inputs but {len(raw)} entries of raw_input_contents"
        )
    return tuple(
        read_tensor(tensor.name, tensor.datatype, tuple(tensor.shape), content)
        for tensor, content in zip(request.inputs, raw, strict=True)
    )


def _read_contents(tensor: oip.ModelInferRequest.InferInputTensor) -> Tensor:
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        packed = Tensor(tensor.name, "BYTES", shape, tuple(tensor.contents.bytes_contents))
        return read_tensor(tensor.name, "BYTES", shape, packed.to_bytes())
    values = tensor.contents.uint_contents
    if any(value > 255 for value in values):
        raise InvalidRequest(f"input {tensor.name!r}: a value is above 255, the largest UINT8")
    return read_tensor(tensor.name, tensor.datatype, shape, bytes(values))


def build_grpc_server(
    segmenter: Segmenter, dataplane: Dataplane, settings: Settings, is_ready: Callable[[], bool]
) -> tuple[grpc.aio.Server, int]:
    """A server bound to ``settings.grpc_port`` and not started, with the port it got.

    Raises:
        OSError: the port is taken.
    """
    server = grpc.aio.server(
        options=(
            # A second server on the port would silently take half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_request_bytes),
            ("grpc.max_send_message_length", -1),
        )
    )
    segserve_pb2_grpc.add_SegmenterServicer_to_server(SegmenterServicer(segmenter), server)
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(dataplane, is_ready), server
    )
    address = f"{settings.host}:{settings.grpc_port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    return server, port
