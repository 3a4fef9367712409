"""Where a model comes from: the identity of its files, and of the tool that made it."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()[:16]


def tool_version() -> str:
    """The installed version of this project."""
    try:
        return version("segserve")
    except PackageNotFoundError:
        return "(not installed)"
