"""Reads what people and strangers write: text files, and numbers in headers, paths and parameters.

Editors on Windows put a byte order mark in front and end lines with CRLF; neither is part of the
first word or of a line's last. What is not UTF-8 is an error that names the file and the byte.

Python's ``int`` and ``float`` take more than anybody means: digits of every script, ``1_000``,
``nan``, ``inf``, blanks around, and a text of 5,000 digits raises. ``str.isdigit`` is true for
``²``, which ``int`` refuses. So no such text is given to them before it has matched here.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

from serving.errors import InvalidRequest

# A configuration with the names and colours of 255 classes has some 20 kB.
MAX_BYTES = 4 << 20

# What else editors write; each starts in a way in which no text in UTF-8 does. UTF-32 comes first,
# as its mark starts with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def read_text(path: Path, *, max_bytes: int = MAX_BYTES, regular: bool = False) -> str:
    """Returns the file's text without a byte order mark, its lines ended by ``\\n`` alone.

    Args:
        max_bytes: a longer file is refused before it is in memory.
        regular: whether pipes and devices, which could block or never end, are refused too.

    Raises:
        OSError: the file cannot be read.
        ValueError: not UTF-8, too long, a folder or not a regular file; the message names the file.
    """
    # Without O_NONBLOCK opening a pipe that nobody writes to would block before it can be seen
    # that it is one.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if regular else 0))
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise ValueError(f"{path} is a folder; expected a text file")
        if regular and not stat.S_ISREG(kind):
            raise ValueError(f"{path} is not a regular file; expected a text file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise ValueError(f"{path} is longer than {max_bytes} bytes; expected a short text file")
    return decode_text(data, str(path))


def decode_text(data: bytes, where: str) -> str:
    """Returns the text of a file's bytes, as :func:`read_text` does.

    Raises:
        ValueError: not UTF-8; the message starts with ``where``.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{where} is {encoding}; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{where} holds a zero byte; expected a text file in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


def parse_version(text: str) -> int | None:
    """Returns a version from a path or message; None for the empty string.

    Raises:
        InvalidRequest: not a positive integer without leading zeros.
    """
    if not text:
        return None
    if not _VERSION.fullmatch(text):
        raise InvalidRequest(
            f"version {text[:64]!r} is not a valid version: expected a positive integer "
            f"(1 to {10**9 - 1}, ASCII digits, no leading zeros)"
        )
    return int(text)
