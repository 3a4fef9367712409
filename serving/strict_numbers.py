"""Numbers in strangers' texts: headers, paths, queries, form fields, parameters.

``int`` and ``float`` of Python take more than anybody means: digits of every script, ``1_000``,
``nan``, ``inf``, blanks around, and a text of 5,000 digits raises. ``str.isdigit`` is true for
``²``, which ``int`` refuses. So no such text is given to them before it has matched here.
"""

from __future__ import annotations

import re

from serving.errors import InvalidRequest

_INTEGER = re.compile(r"[0-9]{1,19}", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,17})?|\.[0-9]{1,17}", re.ASCII)


def find_integer(text: str) -> int | None:
    """Returns the number that 1 to 19 ASCII digits say; None where ``text`` is anything else."""
    return int(text) if _INTEGER.fullmatch(text) else None


def read_integer(text: str, what: str, low: int, high: int) -> int:
    """Returns the integer that ``text`` says.

    Raises:
        InvalidRequest: not ASCII digits alone, or outside ``low`` to ``high``; the message begins
            with ``what`` and says the range.
    """
    value = find_integer(text)
    if value is None or not low <= value <= high:
        raise InvalidRequest(
            f"{what}: {text[:64]!r} is not a valid number: expected an integer from {low} to {high}"
        )
    return value


def read_decimal(text: str, what: str, low: float, high: float) -> float:
    """Returns the number that ``text`` says, such as ``1``, ``0.75`` or ``.5``.

    Raises:
        InvalidRequest: anything else (no signs, exponents, ``nan`` or ``inf``), or outside ``low``
            to ``high``; the message begins with ``what`` and says the range.
    """
    value = float(text) if _DECIMAL.fullmatch(text) else None
    if value is None or not low <= value <= high:
        raise InvalidRequest(
            f"{what}: {text[:64]!r} is not a valid number: "
            f"expected a decimal number from {low:g} to {high:g}"
        )
    return value


def read_length(text: str, what: str) -> int:
    """Returns a number of bytes as a header announces it; leading zeros are legal there.

    Raises:
        InvalidRequest: not ASCII digits alone, or more than 19 of them without leading zeros.
    """
    value = find_integer(text.lstrip("0") or text[-1:])
    if value is None:
        raise InvalidRequest(f"{what}: {text[:64]!r} is not a valid number of bytes")
    return value
