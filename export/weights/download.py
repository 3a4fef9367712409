"""Downloads that continue where they broke off, and the hash of a file."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

BLOCK = 1 << 20
TIMEOUT_SECONDS = 60
PARTIAL = 206
RANGE_NOT_SATISFIABLE = 416

Progress = Callable[[int, int], None]
"""Called with the bytes so far, and the bytes in all (0: not known)."""


class ArchiveError(ValueError):
    """Raised for an archive that cannot be fetched, is not the published one, or leaves its
    folder."""


def download(url: str, part: Path, progress: Progress) -> None:
    """Fetches ``url`` into ``part``, from where an earlier attempt ended.

    Raises:
        ArchiveError: no answer, or one that broke off; the message says where the file may be put.
    """
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            if answer.status != PARTIAL:
                # The server sends the whole file, whatever range was requested.
                start = 0
            total = start + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if start else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    progress(file.tell(), total)
        if part.stat().st_size < total:
            raise ArchiveError(
                f"{url} broke off after {part.stat().st_size} of {total} bytes; "
                f"the same command continues from there"
            )
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise ArchiveError(f"{url}: {error}") from error
        # Nothing was left to send: the part is whole.
    except (OSError, HTTPException) as error:
        raise ArchiveError(
            f"{url} cannot be fetched ({error}); the same command continues where it stopped, or"
            " put "
            f"the file at {part.with_suffix('')}"
        ) from error


def sha1_of(path: Path) -> str:
    """Returns the SHA-1 of a file, in hexadecimal."""
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
