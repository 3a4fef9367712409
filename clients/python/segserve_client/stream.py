"""One stream of frames: requests out; results, and errors in their place, back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc

from segserve_client.channel import Metadata
from segserve_client.errors import SegserveError, from_rpc_error
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub
from segserve_client.result import Result


def send_frames(
    stub: SegmenterStub,
    requests: Iterator[pb.SegmentRequest],
    read: Callable[[pb.SegmentResponse], Result],
    address: str,
    metadata: Metadata,
) -> Iterator[Result | SegserveError]:
    """One answer a request. ``requests`` is read on a thread of gRPC's, as the server takes them.

    Raises:
        SegserveError: the stream itself ended: no server, or it stops.
        Exception: what ``requests`` raised, once what came before is answered.
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
