"""The gRPC channel, plain or TLS, and the metadata that every call on it carries."""

from __future__ import annotations

import grpc

from segserve_client.tls import Tls, open_credentials

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own backoff grows to two minutes, far beyond a server's start.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
Metadata = tuple[tuple[str, str], ...]


def open_channel(address: str, tls: Tls | None) -> grpc.Channel:
    """Connects at the first call.

    Raises:
        OSError, ValueError: a file of ``tls`` is missing or broken.
    """
    if tls is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(address, open_credentials(tls), options=CHANNEL_OPTIONS)


def call_metadata(api_key: str | None) -> Metadata:
    """The key as the server reads it; empty for none. The names are HTTP headers too.

    Raises:
        ValueError: no call could carry it; the message does not quote it, as gRPC's would.
    """
    if api_key is None:
        return ()
    if not api_key or not all("!" <= letter <= "~" for letter in api_key):
        raise ValueError(
            "the API key is empty, or has a space, line end or non-ASCII character in it"
        )
    return (("authorization", f"Bearer {api_key}"),)
