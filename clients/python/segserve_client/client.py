"""The client: images in, label maps out, over one gRPC channel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Literal

import grpc

from segserve_client import description
from segserve_client.description import Description
from segserve_client.errors import SegserveError, from_rpc_error
from segserve_client.image import ImageSource, read_image
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub
from segserve_client.result import Result, decode_map

OutputSize = Literal["original", "model"]
SIZES: dict[str, pb.Size] = {"original": pb.SIZE_ORIGINAL, "model": pb.SIZE_MODEL}

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own backoff grows to two minutes, far beyond a server's start.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
# Open Inference Protocol; both messages are small enough to read without its stubs.
SERVER_READY = "/inference.GRPCInferenceService/ServerReady"
READY = b"\x08\x01"


class Client:
    """A connection to one server; threads may share it.

    ::

        with Client("localhost:8001", model="icnet") as client:
            client.segment("street.jpg").save("street.png")

    Args:
        address: host and gRPC port.
        model: used where a call names none.
        timeout_s: the longest that one call may take.
    """

    def __init__(
        self, address: str = "localhost:8001", model: str | None = None, timeout_s: float = 30.0
    ) -> None:
        if address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r}: give host:port of the gRPC port, as localhost:8001")
        self.address = address
        self.model = model
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = SegmenterStub(self._channel)  # type: ignore[no-untyped-call]
        self._described: dict[tuple[str, int], Description] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls after it raise ValueError."""
        self._channel.close()

    def segment(
        self,
        image: ImageSource,
        model: str | None = None,
        version: int | None = None,
        size: OutputSize = "original",
        smooth: bool | None = None,
        classes: Sequence[str | int] = (),
        confidence: bool = False,
    ) -> Result:
        """Segments one image.

        Args:
            image: a path, an encoded image, or uint8 ``[H,W,3]`` RGB or ``[H,W]`` gray.
            version: the highest that is served unless given.
            size: of the mask: the image's own, or the network's.
            smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
            classes: names or ids to keep; other pixels become the ignore label. Empty: all.
            confidence: also fetch the confidence of each pixel, by a second request.

        Raises:
            SegserveError: the server refuses, or cannot be reached.
            OSError, ValueError: the image, or an option, is wrong on this side already.
        """
        request = self._request(image, model, version, "png", size, smooth, classes)
        answer = self._send(request)
        model_of_answer = self._described.get((answer.model, answer.version))
        if model_of_answer is None:
            model_of_answer = self.describe(answer.model, answer.version)
        result = Result(
            mask=decode_map(answer.body),
            classes=model_of_answer.classes,
            palette=model_of_answer.palette,
            timings=dict(answer.stage_seconds),
            model=answer.model,
            version=answer.version,
            image_size=(answer.image_height, answer.image_width),
            ignore_label=model_of_answer.ignore_label,
        )
        if not confidence:
            return result
        request.format = "confidence"
        request.model, request.version = answer.model, answer.version
        return replace(result, confidence=decode_map(self._send(request).body))

    def encode(
        self,
        image: ImageSource,
        format: str = "overlay",
        model: str | None = None,
        version: int | None = None,
        size: OutputSize = "original",
        smooth: bool | None = None,
        classes: Sequence[str | int] = (),
        confidence: bool = False,
    ) -> bytes:
        """Segments one image; the answer is the file that the server writes.

        Args:
            format: one of ``describe().formats``: png, overlay, confidence, npy, raw, stats.
            confidence: adds each class's mean to ``stats``.

        The other arguments and the errors are those of :meth:`segment`.
        """
        request = self._request(image, model, version, format, size, smooth, classes)
        request.confidence = confidence
        return self._send(request).body

    def describe(self, model: str | None = None, version: int | None = None) -> Description:
        """Classes, colours and sizes of a model; always asks the server.

        Raises:
            SegserveError: no such model or version, or no server.
        """
        request = pb.DescribeRequest(model=self._name(model), version=version or 0)
        try:
            response = self._stub.Describe(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout_s) from None
        found = description.from_response(response)
        self._described[found.model, found.version] = found
        return found

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once the server has loaded its models.

        Raises:
            SegserveError: not within ``timeout_s`` (``DEADLINE_EXCEEDED``).
        """
        ready = self._channel.unary_unary(SERVER_READY)
        deadline = time.monotonic() + timeout_s
        state = "does not answer"
        while (left := deadline - time.monotonic()) > 0:
            try:
                if ready(b"", timeout=left, wait_for_ready=True) == READY:
                    return
                state = "is still loading"
            except grpc.RpcError as error:
                if error.code() not in (
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.UNAVAILABLE,
                ):
                    raise from_rpc_error(error, self.address, timeout_s) from None
            time.sleep(max(0.0, min(0.1, deadline - time.monotonic())))
        raise SegserveError(
            f"the server at {self.address} {state} after {timeout_s:g} s", "DEADLINE_EXCEEDED"
        )

    def _request(
        self,
        image: ImageSource,
        model: str | None,
        version: int | None,
        format: str,
        size: OutputSize,
        smooth: bool | None,
        classes: Sequence[str | int],
    ) -> pb.SegmentRequest:
        if size not in SIZES:
            raise ValueError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
        if isinstance(classes, str):
            raise ValueError(f"classes is a sequence, such as ({classes!r},)")
        request = pb.SegmentRequest(
            model=self._name(model),
            version=version or 0,
            image=read_image(image),
            format=format,
            size=SIZES[size],
            classes=[str(wanted) for wanted in classes],
        )
        if smooth is not None:
            request.smooth = smooth
        return request

    def _send(self, request: pb.SegmentRequest) -> pb.SegmentResponse:
        try:
            response: pb.SegmentResponse = self._stub.Segment(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout_s) from None
        return response

    def _name(self, model: str | None) -> str:
        name = model or self.model
        if not name:
            raise ValueError("name a model: Client(address, model=...) or model=... in the call")
        return name
