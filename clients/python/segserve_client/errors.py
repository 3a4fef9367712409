"""The error of this client, made from a failed call."""

from __future__ import annotations

import grpc

# The server names its own errors in this trailing metadata; gRPC's lack it.
REASON_KEY = "segserve-code"
UNAUTHENTICATED = "UNAUTHENTICATED"


class SegserveError(Exception):
    """Raised when a call fails; the text is the server's own, or says what to do.

    Attributes:
        code: the gRPC status name, e.g. ``NOT_FOUND``; empty for one frame of a stream.
        reason: the server's name for its error, e.g. ``model_not_found``; empty where no
            segserve answered.
    """

    def __init__(self, message: str, code: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def from_rpc_error(error: grpc.RpcError, address: str, timeout_s: float) -> SegserveError:
    """Returns the error of a failed call; where gRPC gave up, it names the address and a remedy."""
    code, text = error.code().name, error.details() or ""
    reason = dict(error.trailing_metadata() or ()).get(REASON_KEY, "")
    if code == UNAUTHENTICATED:
        text = f"{text} (in this client: api_key)"
    elif not reason and code == "UNAVAILABLE" and "handshake failed" in text.lower():
        text = (
            f"TLS with {address} failed ({text}); set the authority that signed its "
            f"certificate (tls: ca), or leave tls out if the server does not use it"
        )
    elif not reason and code == "UNAVAILABLE" and "Socket closed" in text:
        text = (
            f"{address} closed the connection ({text}); if it uses TLS, or requires a client "
            f"certificate, set them (tls: ca, certificate, key)"
        )
    elif not reason and code == "UNAVAILABLE":
        text = (
            f"no segserve answers at {address} ({text}); start one with `segserve serve`, "
            f"or pass the host and gRPC port of another (default port: 8001)"
        )
    elif not reason and code == "DEADLINE_EXCEEDED":
        text = f"no answer from {address} within {timeout_s:g} s; raise timeout_s"
    return SegserveError(text, code, str(reason))
