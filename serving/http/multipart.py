"""Several forms of one answer in one body: ``multipart/form-data`` (RFC 7578).

Chosen over ``multipart/mixed`` because its parts have names, and because browsers read it with
``Response.formData()``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from serving.forms.mask_view import Encoded

SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
    "application/octet-stream": "raw",
    "application/json": "json",
    "application/geo+json": "geojson",
}


def join_parts(parts: Mapping[str, Encoded]) -> Encoded:
    """One part a form, in order: its name, a file name, its media type and its bytes."""
    boundary = _boundary([part.body for part in parts.values()])
    pieces: list[bytes] = []
    for name, part in parts.items():
        disposition = f'form-data; name="{name}"; filename="{name}.{SUFFIXES[part.media_type]}"'
        head = (
            f"--{boundary}\r\nContent-Disposition: {disposition}\r\n"
            f"Content-Type: {part.media_type}\r\n\r\n"
        )
        pieces += [head.encode(), part.body, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return Encoded(b"".join(pieces), f"multipart/form-data; boundary={boundary}")


def _boundary(bodies: Sequence[bytes]) -> str:
    """A line that no body holds."""
    while True:
        boundary = f"segserve-{secrets.token_hex(16)}"
        if not any(boundary.encode() in body for body in bodies):
            return boundary
