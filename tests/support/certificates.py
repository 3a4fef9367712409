"""PEM files of a test authority."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """PEM files of an authority, of the server, and of a client that the authority knows."""

    ca: Path
    certificate: Path
    key: Path
    client: Path


def write_certificates(folder: Path) -> Files:
    """A new authority's; the server is localhost, the client's file holds its key too."""
    authority = trustme.CA()
    issued, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("me@here")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(folder / "certificate.pem", append=True)
    client.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    return Files(
        folder / "ca.pem", folder / "certificate.pem", folder / "key.pem", folder / "client.pem"
    )
