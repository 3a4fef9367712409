"""The client: sends images over one gRPC channel, and returns label maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal

import grpc
import numpy as np

from segserve_client.channel import (
    Metadata,
    Tls,
    call_metadata,
    open_channel,
    wait_until_ready,
)
from segserve_client.errors import SegserveError, from_rpc_error
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub
from segserve_client.request import Form, ImageSource, read_image
from segserve_client.result import Description, File, Result, decode_map, read_description

OutputSize = Literal["original", "model"]
SIZES: dict[str, pb.Size] = {"original": pb.SIZE_ORIGINAL, "model": pb.SIZE_MODEL}
NO_FORM = Form()


class Client:
    """A connection to one server; threads may share it.

    ::

        with Client("localhost:8001", model="icnet") as client:
            client.segment("street.jpg").save("street.png")

    Args:
        address: host and gRPC port.
        model: default of calls that name none.
        timeout_s: longest time of one call.
        api_key: sent with every call; without ``tls`` anybody on the way can read it.
        tls: certificates; None makes a plain connection.

    Raises:
        OSError, ValueError: the address, the key, or a file of ``tls`` cannot be used.
    """

    def __init__(
        self,
        address: str = "localhost:8001",
        model: str | None = None,
        timeout_s: float = 30.0,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        if address.startswith(("http://", "https://")):
            raise ValueError(
                f"{address!r} is not a gRPC address: expected HOST:PORT, for example localhost:8001"
            )
        self.address = address
        self.model = model
        self.timeout_s = timeout_s
        self._metadata = call_metadata(api_key)
        self._channel = open_channel(address, tls)
        # The generated stub has no types.
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
        """Closes the connection; later calls raise ValueError."""
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
        tta: Sequence[str | float] = (),
    ) -> Result:
        """Segments one image.

        Args:
            image: a path, an encoded image, or uint8 ``[H,W,3]`` RGB or ``[H,W]`` gray.
            version: default: the highest that is served.
            size: of the mask: the image's own, or the network's.
            smooth: interpolate logits (True) or take nearest ids (False); None: the model's best.
            classes: names or ids to keep; other pixels get the ignore label. Empty keeps all.
            confidence: also fetch the confidence of each pixel.
            tta: test-time augmentation: ``"flip"``, and scales such as ``0.75``.

        Raises:
            SegserveError: the server refused, or cannot be reached.
            OSError, ValueError: the image or an option is invalid, found before anything is sent.
        """
        formats = ("png", "confidence") if confidence else ("png",)
        request = self._request(image, model, version, formats, size, smooth, classes, tta)
        return self._result(self._send(request), formats)

    def segment_stream(
        self,
        frames: Iterable[ImageSource],
        model: str | None = None,
        version: int | None = None,
        size: OutputSize = "original",
        smooth: bool | None = None,
        classes: Sequence[str | int] = (),
        confidence: bool = False,
        tta: Sequence[str | float] = (),
    ) -> Iterator[Result | SegserveError]:
        """Segments frames as they arrive, and yields one result for each, in the frames' order.

        For a frame that the server refuses, a SegserveError is yielded, not raised (its ``code`` is
        empty, its ``reason`` is set), and the stream continues. ``frames`` is read on another
        thread, as fast as the server accepts them; ``timeout_s`` does not apply.

        The options are those of :meth:`segment`.

        Raises:
            SegserveError: the stream itself ended: no server, or it is stopping.
            OSError, ValueError: a frame or an option is invalid, found before it is sent; the
                results of earlier frames are yielded first.
        """
        formats = ("png", "confidence") if confidence else ("png",)
        requests = (
            self._request(frame, model, version, formats, size, smooth, classes, tta)
            for frame in frames
        )
        return _send_frames(
            self._stub,
            requests,
            lambda answer: self._result(answer, formats),
            self.address,
            self._metadata,
        )

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
        tta: Sequence[str | float] = (),
        form: Form = NO_FORM,
    ) -> bytes:
        """Segments one image, and returns the file that the server writes.

        Args:
            format: one of ``describe().formats``: png, overlay, confidence, npy, raw, stats, rle,
                polygons.
            confidence: adds the confidence to npy (which becomes npz), stats, rle and polygons.
            form: options of the output format.

        The other arguments and the errors are those of :meth:`segment`.
        """
        files = self.encode_all(
            image, (format,), model, version, size, smooth, classes, confidence, tta, form
        )
        return files[format].body

    def encode_all(
        self,
        image: ImageSource,
        formats: Sequence[str],
        model: str | None = None,
        version: int | None = None,
        size: OutputSize = "original",
        smooth: bool | None = None,
        classes: Sequence[str | int] = (),
        confidence: bool = False,
        tta: Sequence[str | float] = (),
        form: Form = NO_FORM,
    ) -> dict[str, File]:
        """Segments one image once, and returns one file for each format.

        The arguments and the errors are those of :meth:`encode`.
        """
        request = self._request(image, model, version, formats, size, smooth, classes, tta)
        request.confidence = confidence
        form.write(request)
        return _files(self._send(request), formats)

    def describe(self, model: str | None = None, version: int | None = None) -> Description:
        """Requests a model's classes, colours and sizes from the server, every time.

        Raises:
            SegserveError: the model or version does not exist, or there is no server.
        """
        request = pb.DescribeRequest(model=self._name(model), version=version or 0)
        try:
            response = self._stub.Describe(request, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout_s) from None
        found = read_description(response)
        self._described[found.model, found.version] = found
        return found

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once the server has loaded its models.

        Raises:
            SegserveError: it is not ready within ``timeout_s`` (``DEADLINE_EXCEEDED``).
        """
        wait_until_ready(self._channel, self.address, timeout_s, self._metadata)

    def _request(
        self,
        image: ImageSource,
        model: str | None,
        version: int | None,
        formats: Sequence[str],
        size: OutputSize,
        smooth: bool | None,
        classes: Sequence[str | int],
        tta: Sequence[str | float],
    ) -> pb.SegmentRequest:
        if size not in SIZES:
            raise ValueError(f"size {size!r} is not valid: expected {' or '.join(SIZES)}")
        for name, several in (("classes", classes), ("formats", formats), ("tta", tta)):
            if isinstance(several, str):
                raise ValueError(
                    f"{name} is a text: expected a sequence, for example ({several!r},)"
                )
        if not formats or any("," in format for format in formats):
            raise ValueError(
                "the format is not valid: expected one name, or several as in"
                " encode_all(image, ('png', 'stats'))"
            )
        request = pb.SegmentRequest(
            model=self._name(model),
            version=version or 0,
            image=read_image(image),
            format=",".join(formats),
            size=SIZES[size],
            classes=[str(wanted) for wanted in classes],
            tta=[str(entry) for entry in tta],
        )
        if smooth is not None:
            request.smooth = smooth
        return request

    def _result(self, answer: pb.SegmentResponse, formats: Sequence[str]) -> Result:
        files = _files(answer, formats)
        described = self._described.get((answer.model, answer.version))
        if described is None:
            described = self.describe(answer.model, answer.version)
        return Result(
            mask=decode_map(files["png"].body),
            classes=described.classes,
            palette=described.palette,
            timings=dict(answer.stage_seconds),
            model=answer.model,
            version=answer.version,
            image_size=(answer.image_height, answer.image_width),
            ignore_label=described.ignore_label,
            confidence=np.asarray(decode_map(files["confidence"].body), np.uint8)
            if "confidence" in files
            else None,
        )

    def _send(self, request: pb.SegmentRequest) -> pb.SegmentResponse:
        try:
            response: pb.SegmentResponse = self._stub.Segment(
                request, timeout=self.timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout_s) from None
        return response

    def _name(self, model: str | None) -> str:
        name = model or self.model
        if not name:
            raise ValueError(
                "no model is given: set Client(address, model=...) or model=... in the call"
            )
        return name


def _files(answer: pb.SegmentResponse, formats: Sequence[str]) -> dict[str, File]:
    """Returns the files by format, whether there are several or one."""
    if len(formats) == 1:
        return {formats[0]: File(answer.body, answer.media_type)}
    return {part.name: File(part.body, part.media_type) for part in answer.parts}


def _send_frames(
    stub: SegmenterStub,
    requests: Iterator[pb.SegmentRequest],
    read: Callable[[pb.SegmentResponse], Result],
    address: str,
    metadata: Metadata,
) -> Iterator[Result | SegserveError]:
    """Yields one result for each request; gRPC reads ``requests`` on a thread of its own.

    Raises:
        SegserveError: the stream itself ended: no server, or it is stopping.
        Exception: what ``requests`` raised, once the requests before it are answered.
    """
    raised: list[Exception] = []

    def guarded() -> Iterator[pb.SegmentRequest]:
        try:
            yield from requests
        except Exception as error:  # gRPC would log it and end the stream without a reason
            raised.append(error)

    call = stub.SegmentStream(guarded(), metadata=metadata)
    try:
        for message in call:
            if message.HasField("error"):
                yield SegserveError(message.error.message, "", message.error.code)
            else:
                yield read(message.response)
    except grpc.RpcError as error:
        raise from_rpc_error(error, address, float("inf")) from None
    finally:
        call.cancel()
    if raised:
        raise raised[0]
