"""The Open Inference Protocol over gRPC: the repository, shared memory, and what is not there.

Source: grpc_service.proto of the Open Inference Protocol; Triton's extension_model_repository.md
and extension_shared_memory.md.
"""

from __future__ import annotations

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from serving.errors import Unsupported
from serving.grpc.status import Context
from serving.oip.dataplane import Dataplane
from serving.oip.messages import CUDA_REFUSED, LOG_REFUSED, TRACE_REFUSED
from serving.oip.shared_memory import check_cuda_region


class ControlServicer(oip_grpc.GRPCInferenceServiceServicer):
    """The calls of ``inference.GRPCInferenceService`` that steer the server."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane = dataplane
        self.memory = dataplane.memory

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> Message:
        refuse_repository(request.repository_name)
        entry = oip.RepositoryIndexResponse.ModelIndex
        states = await self.dataplane.index(ready=request.ready)
        return oip.RepositoryIndexResponse(
            models=[entry(name=s.name, version=s.version, state=s.state, reason=s.reason)
                    for s in states]
        )  # fmt: skip

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> Message:
        refuse_repository(request.repository_name)
        await self.dataplane.load(request.model_name, tuple(request.parameters))
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> Message:
        refuse_repository(request.repository_name)
        await self.dataplane.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(  # noqa: N802
        self, request: oip.SystemSharedMemoryStatusRequest, context: Context
    ) -> Message:
        status = oip.SystemSharedMemoryStatusResponse()
        for region in self.memory.status(request.name):
            shown = status.regions[region.name]
            shown.name, shown.key = region.name, region.key
            shown.offset, shown.byte_size = region.offset, region.size
        return status

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, request: oip.SystemSharedMemoryRegisterRequest, context: Context
    ) -> Message:
        self.memory.register(request.name, request.key, request.offset, request.byte_size)
        return oip.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, request: oip.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> Message:
        self.memory.unregister(request.name)
        return oip.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(  # noqa: N802
        self, request: oip.CudaSharedMemoryStatusRequest, context: Context
    ) -> Message:
        check_cuda_region(request.name)
        return oip.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(self, request: Message, context: Context) -> Message:  # noqa: N802
        raise Unsupported(CUDA_REFUSED)

    async def CudaSharedMemoryUnregister(self, request: Message, context: Context) -> Message:  # noqa: N802
        return oip.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: Message, context: Context) -> Message:  # noqa: N802
        raise Unsupported(TRACE_REFUSED)

    async def LogSettings(self, request: Message, context: Context) -> Message:  # noqa: N802
        raise Unsupported(LOG_REFUSED)


def refuse_repository(name: str) -> None:
    """Raises Unsupported where a repository is named: there is one."""
    if name:
        raise Unsupported("repository_name is not supported: the server has one repository")
