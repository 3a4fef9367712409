"""Waits for a server: there, and its models loaded."""

from __future__ import annotations

import time

import grpc

from segserve_client.channel import Metadata
from segserve_client.errors import SegserveError, from_rpc_error

# Open Inference Protocol; both messages are small enough to read without its stubs.
SERVER_READY = "/inference.GRPCInferenceService/ServerReady"
READY = b"\x08\x01"


def wait(channel: grpc.Channel, address: str, timeout_s: float, metadata: Metadata) -> None:
    """Returns once the server at the end of ``channel`` says that it is ready.

    Raises:
        SegserveError: not within ``timeout_s`` (``DEADLINE_EXCEEDED``).
    """
    ready = channel.unary_unary(SERVER_READY)
    deadline = time.monotonic() + timeout_s
    state = "does not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            if ready(b"", timeout=left, metadata=metadata, wait_for_ready=True) == READY:
                return
            state = "is still loading"
        except grpc.RpcError as error:
            if error.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            ):
                raise from_rpc_error(error, address, timeout_s) from None
        time.sleep(max(0.0, min(0.1, deadline - time.monotonic())))
    raise SegserveError(
        f"the server at {address} {state} after {timeout_s:g} s", "DEADLINE_EXCEEDED"
    )
