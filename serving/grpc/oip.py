"""The Open Inference Protocol over gRPC: a thin converter over the dataplane.

Source: grpc_service.proto of the Open Inference Protocol; Triton's extensions of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

from serving.errors import SegserveError, drop_traceback
from serving.grpc.oip_messages import build_infer_message, read_infer_request
from serving.grpc.repository import ControlServicer
from serving.grpc.status import INLINE_BYTES, Context, run_sized, time_left
from serving.grpc.stream import answer_in_order
from serving.models.model import Duration, Model
from serving.models.response_cache import Lookups
from serving.observability.request_context import count_refusal
from serving.oip.dataplane import Dataplane
from serving.oip.messages import SERVER_NAME, SERVER_VERSION, list_extensions
from serving.parsing import parse_version
from serving.settings import Settings


class InferenceServicer(ControlServicer):
    """``inference.GRPCInferenceService``."""

    def __init__(
        self,
        dataplane: Dataplane,
        pool: Executor,
        settings: Settings,
        is_ready: Callable[[], bool],
        stopping: asyncio.Event,
    ) -> None:
        super().__init__(dataplane)
        self.pool = pool
        self.settings = settings
        self.is_ready = is_ready
        self.stopping = stopping

    async def ServerLive(self, request: Message, context: Context) -> Message:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Message, context: Context) -> Message:  # noqa: N802
        return oip.ServerReadyResponse(ready=self.is_ready())

    async def ServerMetadata(self, request: Message, context: Context) -> Message:  # noqa: N802
        extensions = list_extensions(self.settings)
        return oip.ServerMetadataResponse(
            name=SERVER_NAME, version=SERVER_VERSION, extensions=extensions
        )

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: Context
    ) -> Message:
        loaded = self.dataplane.is_loaded(request.name, parse_version(request.version))
        return oip.ModelReadyResponse(ready=loaded and self.is_ready())

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> Message:
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

    async def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: Context
    ) -> Message:
        config = self.dataplane.config(request.name, parse_version(request.version))
        return oip.ModelConfigResponse(config=config)

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> Message:
        found = self.dataplane.statistics(request.name, parse_version(request.version))
        return oip.ModelStatisticsResponse(model_stats=[build_statistics(m) for m in found])

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> Message:  # noqa: N802
        return await self._infer(request, time_left(context))

    def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[Message]:
        async def work(index: int, request: oip.ModelInferRequest) -> Message:
            return await self._infer_in_stream(request, time_left(context))

        limit = self.settings.max_stream_frames
        return answer_in_order(requests, work, limit, self.stopping)

    async def _infer(self, request: oip.ModelInferRequest, time_left_s: float | None) -> Message:
        model = self.dataplane.find(
            request.model_name, parse_version(request.model_version), "grpc"
        )
        # A tensor in shared memory has any size, of which the message says nothing.
        is_small = request.raw_input_contents and request.ByteSize() <= INLINE_BYTES
        asked = await run_sized(
            self.pool, is_small, read_infer_request, request, time_left_s, model, self.memory
        )
        response = await self.dataplane.infer(asked, "grpc")
        size = sum(output.tensor.size for output in response.outputs)
        return await run_sized(self.pool, size <= INLINE_BYTES, build_infer_message, response)

    async def _infer_in_stream(
        self, request: oip.ModelInferRequest, time_left_s: float | None
    ) -> Message:
        try:
            response = await self._infer(request, time_left_s)
        except SegserveError as error:
            count_refusal(error, request.model_name)
            drop_traceback(error)
            failed = oip.ModelInferResponse(id=request.id)
            return oip.ModelStreamInferResponse(error_message=str(error), infer_response=failed)
        # One answer a request: it is always the last one.
        response.parameters["triton_final_response"].bool_param = True
        return oip.ModelStreamInferResponse(infer_response=response)


def build_statistics(model: Model) -> oip.ModelStatistics:
    """Returns the statistics extension's message for one version of a model."""
    counts = model.statistics

    def show(duration: Duration | Lookups) -> oip.StatisticDuration:
        return oip.StatisticDuration(count=duration.count, ns=duration.ns)

    return oip.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counts.last_inference_ms,
        inference_count=counts.inference_count,
        execution_count=counts.execution_count,
        inference_stats=oip.InferStatistics(
            **{name: show(duration) for name, duration in counts.requests.items()},
            cache_hit=show(model.cache.hits if model.cache else Lookups()),
            cache_miss=show(model.cache.misses if model.cache else Lookups()),
        ),
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=size,
                **{name: show(duration) for name, duration in counts.batches[size].items()},
            )
            for size in sorted(counts.batches)
        ],
    )
