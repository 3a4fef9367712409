"""The header ``X-Timeout-Ms``: a deadline that counts from when the header came."""

from __future__ import annotations

from time import perf_counter

from serving.errors import InvalidRequest
from serving.strict_numbers import read_decimal

TIMEOUT_HEADER = "X-Timeout-Ms"


def parse_timeout(text: str | None) -> float | None:
    """Seconds from the header's value; None where it is absent.

    Raises:
        InvalidRequest: not a positive decimal number of milliseconds below 10^9.
    """
    if text is None:
        return None
    milliseconds = read_decimal(text.strip(), TIMEOUT_HEADER, 0.0, 1e9)
    if not 0.0 < milliseconds < 1e9:
        raise InvalidRequest(
            f"{TIMEOUT_HEADER}: {text[:64]!r} is not a valid number of milliseconds: expected one "
            f"above 0 and below 1e9"
        )
    return milliseconds / 1000.0


def seconds_left(timeout_s: float | None, began: float) -> float | None:
    """Of a timeout that counts from ``began``, on ``time.perf_counter``: an upload takes time."""
    return None if timeout_s is None else timeout_s - (perf_counter() - began)
