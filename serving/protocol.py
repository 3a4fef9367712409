"""Small facts of the Open Inference Protocol that both transports need."""

from __future__ import annotations

from importlib.metadata import version

from serving.errors import InvalidRequest

SERVER_NAME = "segserve"
SERVER_VERSION = version("segserve")
# Microseconds that a request may wait; Triton's name for it.
TIMEOUT_PARAMETER = "timeout"


def parse_version(text: str) -> int | None:
    """A version from a path or message; None for the empty string.

    Raises:
        InvalidRequest: not a positive integer.
    """
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InvalidRequest(f"version {text!r} is not a positive integer")
    return int(text)
