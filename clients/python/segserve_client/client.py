"""The client: images in, label maps out, over one gRPC channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal

import grpc
import numpy as np

from segserve_client import description, readiness
from segserve_client.channel import call_metadata, open_channel
from segserve_client.description import Description
from segserve_client.errors import SegserveError, from_rpc_error
from segserve_client.form import File, Form
from segserve_client.image import ImageSource, read_image
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub
from segserve_client.result import Result, decode_map
from segserve_client.stream import send_frames
from segserve_client.tls import Tls

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
        model: used where a call names none.
        timeout_s: the longest that one call may take.
        api_key: sent with every call, readable on the way unless there is ``tls``.
        tls: certificates; None: a plain connection.

    Raises:
        OSError, ValueError: an address, a key, or a file of ``tls`` that cannot be used.
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
            raise ValueError(f"{address!r}: give host:port of the gRPC port, as localhost:8001")
        self.address = address
        self.model = model
        self.timeout_s = timeout_s
        self._metadata = call_metadata(api_key)
        self._channel = open_channel(address, tls)
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
        tta: Sequence[str | float] = (),
    ) -> Result:
        """Segments one image.

        Args:
            image: a path, an encoded image, or uint8 ``[H,W,3]`` RGB or ``[H,W]`` gray.
            version: the highest that is served unless given.
            size: of the mask: the image's own, or the network's.
            smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
            classes: names or ids to keep; other pixels become the ignore label. Empty: all.
            confidence: also fetch the confidence of each pixel.
            tta: test-time augmentation: ``"flip"``, and scales as ``0.75``.

        Raises:
            SegserveError: the server refuses, or cannot be reached.
            OSError, ValueError: the image, or an option, is wrong on this side already.
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
        """Segments frames as they come: one answer a frame, in the order of the frames.

        A frame that the server refuses has the SegserveError in its place (not raised; its
        ``code`` is empty, ``reason`` is there), and the stream goes on. ``frames`` is read on
        another thread, as fast as the server takes them; ``timeout_s`` does not apply.

        The options are those of :meth:`segment`.

        Raises:
            SegserveError: the stream itself ended: no server, or it stops.
            OSError, ValueError: a frame, or an option, is wrong on this side already; the frames
                before it are answered first.
        """
        formats = ("png", "confidence") if confidence else ("png",)
        requests = (
            self._request(frame, model, version, formats, size, smooth, classes, tta)
            for frame in frames
        )
        return send_frames(
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
        """Segments one image; the answer is the file that the server writes.

        Args:
            format: one of ``describe().formats``: png, overlay, confidence, npy, raw, stats, rle,
                polygons.
            confidence: adds it to npy (which becomes npz), stats, rle and polygons.
            form: how the file is written.

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
        """Segments one image once; the answer is one file a format.

        The arguments and the errors are those of :meth:`encode`.
        """
        request = self._request(image, model, version, formats, size, smooth, classes, tta)
        request.confidence = confidence
        form.write(request)
        return _files(self._send(request), formats)

    def describe(self, model: str | None = None, version: int | None = None) -> Description:
        """Classes, colours and sizes of a model; always asks the server.

        Raises:
            SegserveError: no such model or version, or no server.
        """
        request = pb.DescribeRequest(model=self._name(model), version=version or 0)
        try:
            response = self._stub.Describe(request, timeout=self.timeout_s, metadata=self._metadata)
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
        readiness.wait(self._channel, self.address, timeout_s, self._metadata)

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
            raise ValueError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
        for name, several in (("classes", classes), ("formats", formats), ("tta", tta)):
            if isinstance(several, str):
                raise ValueError(f"{name} is a sequence, such as ({several!r},)")
        if not formats or any("," in format for format in formats):
            raise ValueError("name one format, or several as encode_all(image, ('png', 'stats'))")
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
            raise ValueError("name a model: Client(address, model=...) or model=... in the call")
        return name


def _files(answer: pb.SegmentResponse, formats: Sequence[str]) -> dict[str, File]:
    """The files by format, whether there are several or one."""
    if len(formats) == 1:
        return {formats[0]: File(answer.body, answer.media_type)}
    return {part.name: File(part.body, part.media_type) for part in answer.parts}
