"""Options of the commands that call a server: the API key and TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from segserve_client import SegserveError, Tls
from segserve_client.errors import UNAUTHENTICATED

KEY_REMEDY = "set a valid one with --api-key or SEGSERVE_API_KEY"

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SEGSERVE_API_KEY",
        show_default=False,
        help="API key. Prefer SEGSERVE_API_KEY: command lines are visible in `ps`",
    ),
]
TlsAuthority = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="CA certificate (PEM) used to verify the server; enables TLS"),
]
TlsCertificate = Annotated[
    Path | None, typer.Option("--tls-certificate", help="client certificate (PEM) for mutual TLS")
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        help="private key (PEM) of the client certificate, unless it is in the same file",
    ),
]


def choose_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """Returns the TLS credentials of the given files; None without files: the connection is
    plain."""
    return Tls(ca, certificate, key) if ca or certificate or key else None


def describe(error: Exception) -> str:
    """Returns the error's text, in the words of the command line where the client's own differ."""
    text = str(error)
    if isinstance(error, SegserveError) and error.code == UNAUTHENTICATED:
        return f"{text}; {KEY_REMEDY}"
    return text
