"""``segserve.v1.Segmenter.Segment`` of this server over gRPC."""

from __future__ import annotations

import grpc
from segserve_client.channel import CHANNEL_OPTIONS
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

from benchmarks.loadgen.target import Outcome

REFUSALS = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
)


class GrpcTarget:
    """One channel; HTTP/2 carries all requests.

    Args:
        address: as ``127.0.0.1:8001``.
        deadline_s: the calls' own.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        form: str = "png",
        deadline_s: float | None = None,
        give_up_s: float = 60.0,
    ) -> None:
        self.address = address
        self.model = model
        self.form = form
        self.timeout_s = deadline_s or give_up_s
        self._channel: grpc.aio.Channel | None = None

    @property
    def title(self) -> str:
        return "segserve gRPC"

    async def send(self, image: bytes) -> Outcome:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        request = pb.SegmentRequest(model=self.model, image=image, format=self.form)
        stub = SegmenterStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.Segment(request, timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            metadata = dict(error.trailing_metadata() or ())
            code = str(metadata.get("segserve-code", error.code().name.lower()))
            return Outcome("rejected" if error.code() in REFUSALS else "error", code)
        return Outcome("ok", response_bytes=len(answer.body))

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
