"""TLS of the HTTP and gRPC ports, from PEM files that are checked before anything is bound.

With ``tls_client_ca`` it is mutual: a client without a certificate of those authorities cannot
connect. The metrics port stays plain: it is for the network that the scraper is in.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from serving.errors import InvalidSetting
from serving.settings import Settings


def open_http_tls(settings: Settings) -> ssl.SSLContext | None:
    """Returns the context of the HTTP port: TLS 1.2 or later; None without certificate.

    Raises:
        InvalidSetting: a file is missing or broken, or does not belong to the others.
    """
    if settings.tls_certificate is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(settings, name) is not None:
                raise InvalidSetting(f"setting {name} needs tls_certificate beside it")
        return None
    if settings.tls_key is None:
        raise InvalidSetting("setting tls_certificate needs tls_key beside it")
    _read("tls_certificate", settings.tls_certificate)
    _read("tls_key", settings.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _check_certificate(settings.tls_certificate)
    try:
        # The empty password keeps OpenSSL from asking at the terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except ssl.SSLError as error:
        raise InvalidSetting(
            f"setting tls_key: {settings.tls_key} is not the unencrypted PEM key of the "
            f"certificate {settings.tls_certificate} ({error.reason or error})"
        ) from None
    if settings.tls_client_ca is not None:
        _read("tls_client_ca", settings.tls_client_ca)
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except ssl.SSLError as error:
            raise InvalidSetting(
                f"setting tls_client_ca: {settings.tls_client_ca} holds no PEM certificates "
                f"({error.reason or error})"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def open_grpc_tls(settings: Settings) -> grpc.ServerCredentials | None:
    """Returns the credentials of the gRPC port, of the same files; None without certificate.

    Raises:
        InvalidSetting: as :func:`open_http_tls`.
    """
    if open_http_tls(settings) is None:
        return None
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    pair = (
        _read("tls_key", settings.tls_key),
        _read("tls_certificate", settings.tls_certificate),
    )
    if settings.tls_client_ca is None:
        return grpc.ssl_server_credentials([pair])
    authorities = _read("tls_client_ca", settings.tls_client_ca)
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=True)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"setting {name}: cannot read {path} ({error.strerror})") from None


def _check_certificate(path: Path) -> None:
    """Checks the certificate alone first, so that an error of the pair is the key's."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise InvalidSetting(
            f"setting tls_certificate: {path} holds no PEM certificate ({error.reason or error})"
        ) from None
