"""TLS to a server: whom to believe, and the certificate to show where it asks for one."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class Tls:
    """PEM files; ``Tls()`` alone believes the authorities that come with gRPC or the system.

    Attributes:
        ca: the authorities that may have signed the server's certificate, and no others.
        certificate: the client's own, and its chain, for mutual TLS.
        key: of that certificate, unencrypted; None: it is in the certificate's file.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def open_context(tls: Tls) -> ssl.SSLContext:
    """For HTTPS: TLS 1.2 or later, the server's name is checked.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not what it should be, or a key without certificate.
    """
    if tls.certificate is None and tls.key is not None:
        raise ValueError(f"the key {tls.key} needs its certificate beside it")
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
                f"{tls.certificate} and {tls.key or 'itself'} are no PEM certificate and its "
                f"unencrypted key ({error.reason or error})"
            ) from None
    return context


def open_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """For gRPC, of the same files; the errors are those of :func:`open_context`."""
    open_context(tls)  # gRPC itself would only fail at the first call, without a reason
    authorities = None if tls.ca is None else tls.ca.read_bytes()
    if tls.certificate is None:
        return grpc.ssl_channel_credentials(authorities)
    certificate = tls.certificate.read_bytes()
    key = certificate if tls.key is None else tls.key.read_bytes()
    return grpc.ssl_channel_credentials(authorities, key, certificate)
