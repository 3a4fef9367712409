"""Targets of a load: servers that take an encoded image and return its label map."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Literal, Protocol

import aiohttp
import grpc
from segserve_client.channel import CHANNEL_OPTIONS
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

# rejected: the server said no for want of capacity or time. error: anything else but an answer.
Status = Literal["ok", "rejected", "error"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request; ``reason`` is the server's code of a refusal or an error."""

    status: Status
    reason: str = ""
    response_bytes: int = 0


class Target(Protocol):
    """One server behind one protocol; its calls run concurrently on one event loop."""

    @property
    def title(self) -> str:
        """Returns its name in reports."""
        ...

    async def send(self, image: bytes) -> Outcome:
        """Sends one encoded image and waits for the end of it; failures are outcomes, not raised.

        A target that has a deadline sends it along.
        """
        ...

    async def close(self) -> None:
        """Closes its connections."""
        ...


# Refusals for want of capacity or time; other statuses are errors.
HTTP_REFUSALS = frozenset({408, 429, 503, 504})


class HttpTarget:
    """The ``segment`` call of this server over HTTP, a connection for each request under way.

    Args:
        address: as ``http://127.0.0.1:8000``.
        deadline_s: sent along as ``X-Timeout-Ms``.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        output_format: str = "png",
        deadline_s: float | None = None,
        give_up_s: float = 60.0,
    ) -> None:
        self.url = f"{address}/v2/models/{model}/segment?format={output_format}"
        self.headers = {} if deadline_s is None else {"X-Timeout-Ms": f"{deadline_s * 1000:.0f}"}
        self.give_up = aiohttp.ClientTimeout(total=give_up_s)
        self._session: aiohttp.ClientSession | None = None

    @property
    def title(self) -> str:
        return "segserve HTTP"

    async def send(self, image: bytes) -> Outcome:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=self.give_up
            )
        try:
            async with self._session.post(self.url, data=image, headers=self.headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return Outcome("error", type(error).__name__)
        if answer.status == 200:
            return Outcome("ok", response_bytes=len(body))
        code = read_code(body) or str(answer.status)
        return Outcome("rejected" if answer.status in HTTP_REFUSALS else "error", code, len(body))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def read_code(body: bytes) -> str:
    """Returns the ``code`` of an error's JSON; "" where there is none."""
    try:
        return str(json.loads(body).get("code", ""))
    except (ValueError, AttributeError):
        return ""


GRPC_REFUSALS = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
)


class GrpcTarget:
    """The ``segserve.v1.Segmenter.Segment`` call of this server over gRPC, on one channel.

    Args:
        address: as ``127.0.0.1:8001``.
        deadline_s: the calls' own.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        output_format: str = "png",
        deadline_s: float | None = None,
        give_up_s: float = 60.0,
    ) -> None:
        self.address = address
        self.model = model
        self.output_format = output_format
        self.timeout_s = deadline_s or give_up_s
        self._channel: grpc.aio.Channel | None = None

    @property
    def title(self) -> str:
        return "segserve gRPC"

    async def send(self, image: bytes) -> Outcome:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        request = pb.SegmentRequest(model=self.model, image=image, format=self.output_format)
        # The generated stub has no types.
        stub = SegmenterStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.Segment(request, timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            metadata = dict(error.trailing_metadata() or ())
            code = str(metadata.get("segserve-code", error.code().name.lower()))
            return Outcome("rejected" if error.code() in GRPC_REFUSALS else "error", code)
        return Outcome("ok", response_bytes=len(answer.body))

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
