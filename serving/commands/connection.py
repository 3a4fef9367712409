"""Options of the commands that call a server: the API key and TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from segserve_client import SegserveError, Tls
from segserve_client.errors import UNAUTHENTICATED

KEY_REMEDY = "give a key that the server knows with --api-key or in SEGSERVE_API_KEY"

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SEGSERVE_API_KEY",
        show_default=False,
        help="sent with every call; in the environment no list of processes shows it",
    ),
]
TlsAuthority = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="PEM of who signed the server's certificate; turns TLS on"),
]
TlsCertificate = Annotated[
    Path | None, typer.Option("--tls-certificate", help="PEM to show to the server (mutual TLS)")
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM key of it, unless in the same file")
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
