"""The header ``X-Timeout-Ms``: a deadline that counts from when the header came."""

from __future__ import annotations

from time import perf_counter

from serving.errors import InvalidRequest

TIMEOUT_HEADER = "X-Timeout-Ms"


def parse_timeout(text: str | None) -> float | None:
    """Seconds from the header's value; None where it is absent.

    Raises:
        InvalidRequest: not a positive number.
    """
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds < 1e9:
        raise InvalidRequest(f"{TIMEOUT_HEADER}: {text!r} is not a positive number")
    return milliseconds / 1000.0


def seconds_left(timeout_s: float | None, began: float) -> float | None:
    """Of a timeout that counts from ``began``, on ``time.perf_counter``: an upload takes time."""
    return None if timeout_s is None else timeout_s - (perf_counter() - began)
