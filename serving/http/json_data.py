"""The ``data`` of JSON tensors, read without making a Python object of each number or text.

A tensor in JSON is millions of numbers of a few bytes: as Python objects they take many times the
body's memory, and any C function that reads them in one go keeps the interpreter's lock, and with
it the event loop, for as long as it runs. So compiled loops without the lock do it. They stop at
the first error, and they write into arrays whose size the tensor's shape has fixed before.

Nested lists are taken in C order whatever their own lengths are, as Triton does.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest, TooLarge
from serving.imaging.jit import compiled, read_only

Text = npt.NDArray[np.uint8]

# Texts up to this length are decoded as they are: at some 100 MB/s nobody notices.
WHOLE_BYTES = 1 << 16
# Shorter arrays stay where they are: of a text's length only so many can be cut out.
CUT_BYTES = 1 << 12
MAX_DEPTH = 16

# What the loops return beside where they stopped.
_DONE, _SYNTAX, _RANGE, _TOO_MANY, _DEPTH = 0, 1, 2, 3, 4

_QUOTE, _BACKSLASH, _COMMA, _SLASH, _EQUALS = 34, 92, 44, 47, 61
_ARRAY, _ARRAY_END, _OBJECT, _OBJECT_END = 91, 93, 123, 125


@dataclass(frozen=True)
class CutJson:
    """A JSON text whose long arrays of tensors are replaced by a marker each.

    The markers hold a random number, so that no text can name one on its own.
    """

    text: bytes | memoryview
    arrays: dict[str, Text]


def cut_data(text: memoryview, limit: int) -> CutJson:
    """Cuts the long arrays of inputs out of an inference request, leaving the rest for a parser.

    Args:
        limit: of the rest, in bytes.

    Raises:
        TooLarge: the rest is longer; nothing was copied then.
    """
    if len(text) <= min(WHOLE_BYTES, limit):
        return CutJson(text, {})
    array = read_only(np.frombuffer(text, np.uint8))
    spans = np.empty((len(text) // CUT_BYTES + 1, 2), np.int64)
    found = spans[: _find_arrays(array, spans)]
    rest = len(text) - int((found[:, 1] - found[:, 0]).sum())
    if rest > limit:
        raise TooLarge(
            f"inference request: its JSON has {rest} bytes beside the data of its inputs, "
            f"the limit is {limit} (setting max_json_bytes); send less, or tensors as binary data",
            reason="json_bytes",
        )
    nonce, arrays, at = secrets.token_hex(16), {}, 0
    pieces: list[bytes | memoryview] = []
    for index, (start, end) in enumerate(found.tolist()):
        marker = f"{nonce}:{index}"
        pieces += [text[at:start], f'"{marker}"'.encode()]
        arrays[marker] = array[start:end]
        at = end
    pieces.append(text[at:])
    return CutJson(b"".join(pieces), arrays)


def read_numbers(name: str, text: Text, elements: int) -> Text:
    """Returns the UINT8 values of a JSON array, flat.

    Args:
        name: of the input, for errors.
        elements: that the shape asks for; more are not read.

    Raises:
        InvalidRequest: not an array of integers from 0 to 255, or of another count.
    """
    values = np.empty(elements, np.uint8)
    code, count, at = _read_numbers(read_only(text), values)
    if code == _DONE and count == elements:
        return values
    raise _explain(name, code, at, count, elements, "an array of integers", text)


def read_files(name: str, text: Text, elements: int) -> tuple[bytes, ...]:
    """Returns the contents of a JSON array of base64 texts.

    Args:
        name: of the input, for errors.
        elements: that the shape asks for; more are not read.

    Raises:
        InvalidRequest: not an array of base64 texts, or of another count.
    """
    content = np.empty(len(text) * 3 // 4 + 3, np.uint8)
    ends = np.zeros(elements + 1, np.int64)
    code, count, at = _read_base64(read_only(text), content, ends)
    if code == _DONE and count == elements:
        return tuple(
            content[start:end].tobytes()
            for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        )
    wanted = "an array of base64 texts (BYTES in JSON must be base64; better send binary data)"
    raise _explain(name, code, at, count, elements, wanted, text)


def _explain(
    name: str, code: int, at: int, count: int, elements: int, wanted: str, text: Text
) -> InvalidRequest:
    """Returns the error that a loop's result stands for."""
    if code in (_DONE, _TOO_MANY):
        more = "more" if code == _TOO_MANY else f"{count}"
        return InvalidRequest(
            f"input {name!r}: the shape says {elements} elements, the data holds {more}"
        )
    if code == _RANGE:
        return InvalidRequest(f"input {name!r}: UINT8 values lie in 0..255, data[{count}] does not")
    if code == _DEPTH:
        return InvalidRequest(f"input {name!r}: data is nested deeper than {MAX_DEPTH} lists")
    found = text[at : at + 16].tobytes().decode("utf-8", "replace")
    return InvalidRequest(
        f"input {name!r}: data is not {wanted}: unexpected {found!r} at data[{count}]"
    )


def warm() -> None:
    """Compiles the loops (once), so that no request waits for it."""
    text = b'{"inputs":[{"data":[1,2]}]}' + b" " * WHOLE_BYTES
    cut_data(memoryview(text), len(text))
    read_numbers("image", np.frombuffer(b"[[1],[2]]", np.uint8), 2)
    read_files("image", np.frombuffer(b'["aGk="]', np.uint8), 1)


@compiled
def _find_arrays(text: Text, spans: npt.NDArray[np.int64]) -> int:
    """Writes where arrays of at least ``CUT_BYTES`` inside ``{"...": [{"...": [`` begin and end.

    Brackets inside texts are none. What is not JSON is found by whoever parses the rest.
    """
    depth, count, begin = 0, 0, -1
    # 1: the outer object, 2: a list in it, 3: an object in that. Deeper down nothing is sought.
    path_depth = 0
    i, n = 0, len(text)
    while i < n:
        c = text[i]
        if c == _QUOTE:
            i += 1
            while i < n and text[i] != _QUOTE:
                i += 2 if text[i] == _BACKSLASH else 1
        elif c in (_ARRAY, _OBJECT):
            if depth == path_depth:
                if depth == 3:
                    if c == _ARRAY and begin < 0:
                        begin = i
                elif (c == _ARRAY) == (depth == 1):
                    path_depth += 1
            depth += 1
        elif c in (_ARRAY_END, _OBJECT_END):
            depth -= 1
            if depth < 0:
                return count
            if depth == 3 and begin >= 0:
                if i + 1 - begin >= CUT_BYTES and count < len(spans):
                    spans[count, 0] = begin
                    spans[count, 1] = i + 1
                    count += 1
                begin = -1
            if depth < path_depth:
                path_depth = depth
        i += 1
    return count


@compiled
def _is_blank(c: int) -> bool:
    return c == 32 or c == 10 or c == 13 or c == 9


@compiled
def _read_numbers(text: Text, values: Text) -> tuple[int, int, int]:
    """Writes the numbers of nested lists; returns a code, how many, and where it stopped."""
    depth, count, i, n = 0, 0, 0, len(text)
    # Whether a value must come (behind a comma), or may (behind an opening bracket).
    must, may = True, True
    while i < n:
        c = text[i]
        if _is_blank(c):
            i += 1
            continue
        if depth == 0 and i > 0 and not may:
            return _SYNTAX, count, i
        if c == _ARRAY and may:
            depth += 1
            if depth > MAX_DEPTH:
                return _DEPTH, count, i
            must = False
            i += 1
        elif c == _ARRAY_END and not must and depth > 0:
            depth -= 1
            may = False
            i += 1
        elif c == _COMMA and not may and depth > 0:
            must, may = True, True
            i += 1
        elif 48 <= c <= 57 and may and depth > 0:
            if count == len(values):
                return _TOO_MANY, count, i
            value, start = 0, i
            while i < n and 48 <= text[i] <= 57:
                value = value * 10 + text[i] - 48
                if value > 255:
                    return _RANGE, count, start
                i += 1
            if i - start > 1 and c == 48:
                return _SYNTAX, count, start
            values[count] = value
            count += 1
            must, may = False, False
        elif c == 45 and may and depth > 0 and i + 1 < n and 48 <= text[i + 1] <= 57:
            return _RANGE, count, i
        else:
            return _SYNTAX, count, i
    if depth > 0 or must:
        return _SYNTAX, count, n
    return _DONE, count, n


@compiled
def _hex_value(c: int) -> int:
    if 48 <= c <= 57:
        return c - 48
    if 65 <= c <= 70:
        return c - 55
    if 97 <= c <= 102:
        return c - 87
    return -1


@compiled
def _base64_value(c: int) -> int:
    if 65 <= c <= 90:
        return c - 65
    if 97 <= c <= 122:
        return c - 71
    if 48 <= c <= 57:
        return c + 4
    if c == 43:
        return 62
    if c == _SLASH:
        return 63
    return -1


@compiled
def _read_base64(text: Text, content: Text, ends: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    """Writes the texts of nested lists, decoded; ``ends[k + 1]`` is where text ``k`` ends.

    Encoders escape ``/``, some also ``+`` and ``=``, and lines may be wrapped.
    """
    depth, count, written, i, n = 0, 0, 0, 0, len(text)
    must, may = True, True
    while i < n:
        c = text[i]
        if _is_blank(c):
            i += 1
            continue
        if depth == 0 and i > 0 and not may:
            return _SYNTAX, count, i
        if c == _ARRAY and may:
            depth += 1
            if depth > MAX_DEPTH:
                return _DEPTH, count, i
            must = False
            i += 1
        elif c == _ARRAY_END and not must and depth > 0:
            depth -= 1
            may = False
            i += 1
        elif c == _COMMA and not may and depth > 0:
            must, may = True, True
            i += 1
        elif c == _QUOTE and may and depth > 0:
            if count + 1 == len(ends):
                return _TOO_MANY, count, i
            start = i
            i += 1
            bits, digits, padding = 0, 0, 0
            while True:
                if i >= n:
                    return _SYNTAX, count, start
                c = int(text[i])
                i += 1
                if c == _QUOTE:
                    break
                if c == _BACKSLASH:
                    if i >= n:
                        return _SYNTAX, count, start
                    c = int(text[i])
                    i += 1
                    if c == 110 or c == 114:  # \n, \r
                        continue
                    if c == 117:  # \uXXXX
                        if i + 4 > n:
                            return _SYNTAX, count, start
                        c = 0
                        for k in range(4):
                            digit = _hex_value(int(text[i + k]))
                            if digit < 0:
                                return _SYNTAX, count, start
                            c = c * 16 + digit
                        i += 4
                    elif c != _SLASH:
                        return _SYNTAX, count, start
                if c == _EQUALS:
                    padding += 1
                    if padding > 2:
                        return _SYNTAX, count, start
                    continue
                value = _base64_value(c)
                if value < 0 or padding > 0:
                    return _SYNTAX, count, start
                bits = (bits << 6 | value) & 0xFFFFFF
                digits += 1
                if digits % 4 == 0:
                    content[written] = bits >> 16
                    content[written + 1] = (bits >> 8) & 255
                    content[written + 2] = bits & 255
                    written += 3
            if (digits + padding) % 4 != 0 or (padding > 0 and digits % 4 == 0):
                return _SYNTAX, count, start
            if digits % 4 == 2:
                content[written] = (bits >> 4) & 255
                written += 1
            elif digits % 4 == 3:
                content[written] = (bits >> 10) & 255
                content[written + 1] = (bits >> 2) & 255
                written += 2
            count += 1
            ends[count] = written
            must, may = False, False
        else:
            return _SYNTAX, count, i
    if depth > 0 or must:
        return _SYNTAX, count, n
    return _DONE, count, n
