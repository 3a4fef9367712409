"""Opens the gRPC channel, plain or TLS, and waits until a server is ready."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from segserve_client.errors import SegserveError, from_rpc_error

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own backoff grows to two minutes, far beyond a server's start.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
Metadata = tuple[tuple[str, str], ...]


def open_channel(address: str, tls: Tls | None) -> grpc.Channel:
    """Returns a channel, which connects at the first call.

    Raises:
        OSError, ValueError: a file of ``tls`` is missing or broken.
    """
    if tls is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(address, open_credentials(tls), options=CHANNEL_OPTIONS)


def call_metadata(api_key: str | None) -> Metadata:
    """Returns the API key as metadata of a call, under its HTTP header's name; empty without a key.

    Raises:
        ValueError: no call could carry the key; unlike gRPC's, the message does not quote it.
    """
    if api_key is None:
        return ()
    if not api_key or not all("!" <= letter <= "~" for letter in api_key):
        raise ValueError(
            "the API key is not valid: expected printable ASCII characters without spaces"
        )
    return (("authorization", f"Bearer {api_key}"),)


@dataclass(frozen=True)
class Tls:
    """PEM files; ``Tls()`` alone trusts the authorities that come with gRPC or the system.

    Attributes:
        ca: the only authorities that may have signed the server's certificate.
        certificate: the client's own certificate and its chain, for mutual TLS.
        key: its unencrypted key; None if it is in the certificate's file.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def open_context(tls: Tls) -> ssl.SSLContext:
    """Returns a context for HTTPS: TLS 1.2 or later, the server's name is checked.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file has other contents, or there is a key without a certificate.
    """
    if tls.certificate is None and tls.key is not None:
        raise ValueError(f"the key {tls.key} has no certificate: set certificate as well")
    for path in (tls.ca, tls.certificate, tls.key):
        if path is not None:
            # ssl's own error would not name the file.
            path.read_bytes()
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except ssl.SSLError as error:
        raise ValueError(f"{tls.ca} holds no PEM certificates ({error.reason or error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate is not None:
        try:
            # The empty password keeps OpenSSL from asking at the terminal.
            context.load_cert_chain(tls.certificate, tls.key, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{tls.certificate} and {tls.key or 'itself'} are not a PEM certificate and its "
                f"unencrypted key ({error.reason or error})"
            ) from None
    return context


def open_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Returns credentials for gRPC; the errors are those of :func:`open_context`."""
    open_context(tls)  # gRPC itself would only fail at the first call, without a reason
    authorities = None if tls.ca is None else tls.ca.read_bytes()
    if tls.certificate is None:
        return grpc.ssl_channel_credentials(authorities)
    certificate = tls.certificate.read_bytes()
    key = certificate if tls.key is None else tls.key.read_bytes()
    return grpc.ssl_channel_credentials(authorities, key, certificate)


# Open Inference Protocol; both messages are small enough to read without its stubs.
SERVER_READY = "/inference.GRPCInferenceService/ServerReady"
READY = b"\x08\x01"


def wait_until_ready(
    channel: grpc.Channel, address: str, timeout_s: float, metadata: Metadata
) -> None:
    """Returns once the server at the end of ``channel`` reports that it is ready.

    Raises:
        SegserveError: it is not ready within ``timeout_s`` (``DEADLINE_EXCEEDED``).
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
