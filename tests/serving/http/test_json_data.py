"""The data of JSON tensors: read exactly or refused, and cut out of texts that are too long."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, TooLarge
from serving.http.json_data import WHOLE_BYTES, cut_data, read_files, read_numbers

NESTED = st.recursive(
    st.integers(0, 255), lambda inner: st.lists(inner, max_size=4), max_leaves=30
).filter(lambda value: isinstance(value, list))
# What such a text is made of, and what it is not.
TOKENS = st.sampled_from(
    ["[", "]", ",", " ", "\n", "0", "7", "255", "256", "-1", "1.5", "1e2", "01", "null", "true",
     '"a"', '"aGk="', '"', "\\", "{", "}", "NaN", "9" * 30, "²", "\0"]
)  # fmt: skip


def text_of(value: object) -> np.ndarray:
    text = value if isinstance(value, str) else json.dumps(value)
    return np.frombuffer(text.encode(), np.uint8)


def flatten(value: object) -> list[object]:
    return [x for item in value for x in flatten(item)] if isinstance(value, list) else [value]


@given(NESTED, st.sampled_from([None, 1]))
def test_nested_lists_are_taken_in_c_order(value: list, indent: int | None) -> None:
    flat = flatten(value)
    text = json.dumps(value, indent=indent)
    assert read_numbers("image", text_of(text), len(flat)).tolist() == flat


@given(st.lists(TOKENS, max_size=12).map("".join))
def test_what_json_does_not_allow_is_refused(text: str) -> None:
    try:
        flat = flatten(json.loads(text))
        if not isinstance(json.loads(text), list):
            raise ValueError
        right = all(type(x) is int and 0 <= x <= 255 for x in flat)
    except ValueError:
        flat, right = [], False
    for count in {0, 1, 2, len(flat)}:
        if right and count == len(flat):
            assert read_numbers("image", text_of(text), count).tolist() == flat
        else:
            with pytest.raises(InvalidRequest, match="input 'image'"):
                read_numbers("image", text_of(text), count)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_base64_comes_out_as_it_went_in(files: list[bytes]) -> None:
    texts = [base64.b64encode(file).decode() for file in files]
    for value in (texts, [[text] for text in texts]):
        assert read_files("image", text_of(value), len(files)) == tuple(files)
    # PHP escapes slashes, .NET plus signs too; base64(1) wraps its lines.
    escaped = json.dumps(texts).replace("/", "\\/").replace("+", "\\u002B").replace("=", "\\u003d")
    assert read_files("image", text_of(escaped), len(files)) == tuple(files)
    wrapped = [text[:8] + "\n" + text[8:] + "\r\n" for text in texts]
    assert read_files("image", text_of(wrapped), len(files)) == tuple(files)


@given(st.lists(TOKENS, max_size=8).map("".join))
def test_any_text_is_read_as_files_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        read_files("image", text_of(text), 1)


@pytest.mark.parametrize(
    ("text", "elements", "message"),
    [
        ("[1,2,3]", 2, "the shape says 2 elements, the data holds more"),
        ("[1]", 2, "the shape says 2 elements, the data holds 1"),
        ("[1,256]", 2, r"UINT8 values lie in 0..255, data\[1\]"),
        ("[-1]", 1, "UINT8 values lie in 0..255"),
        ("[" + "9" * 5000 + "]", 1, "UINT8 values lie in 0..255"),
        ("[" * 17 + "1" + "]" * 17, 1, "deeper than 16 lists"),
        ("[1.5]", 1, r"not an array of integers: unexpected '.5\]'"),
        ('["a"]', 1, "not an array of integers"),
    ],
)
def test_errors_of_numbers(text: str, elements: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_numbers("image", text_of(text), elements)


@pytest.mark.parametrize("text", ["aGk", "a", "aGk===", "=aGk", "a_-h", "a b=", "aGk=aGk=", "aG¤="])
def test_what_is_not_base64_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="BYTES in JSON must be base64"):
        read_files("image", text_of([text]), 1)


def test_nothing_is_built_of_more_than_the_shape_asks_for() -> None:
    """The array for the result is as long as the shape says, whatever the text holds."""
    ones = text_of("[" + "1," * 10**6 + "1]")
    with pytest.raises(InvalidRequest, match="holds more"):
        read_numbers("image", ones, 10)
    with pytest.raises(InvalidRequest, match="holds more"):
        read_files("image", text_of('["",' + '"",' * 10**6 + '""]'), 3)


def request_of(data: str, name: str = "image") -> bytes:
    item = f'"name":"{name}","shape":[1],"data":{data},"parameters":{{"a":"]}}["}}'
    return f'{{"id":"x","inputs":[{{{item}}}]}}'.encode()


def test_long_arrays_are_cut_out() -> None:
    numbers = list(range(256)) * 1000
    text = request_of(json.dumps(numbers))
    cut = cut_data(memoryview(text), 1000)
    assert len(cut.text) < 300
    (marker,) = cut.arrays
    item = json.loads(bytes(cut.text))["inputs"][0]
    assert item == {
        "name": "image", "shape": [1], "data": marker, "parameters": {"a": "]}["}
    }  # fmt: skip
    assert read_numbers("image", cut.arrays[marker], len(numbers)).tolist() == numbers


def test_short_texts_stay_whole() -> None:
    text = request_of("[1,2]")
    assert cut_data(memoryview(text), WHOLE_BYTES).text == text


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs":[' + b"1," * WHOLE_BYTES + b"1]}",
        request_of('"' + "a" * WHOLE_BYTES + '"'),
        request_of("[1]", "a" * WHOLE_BYTES),
        # Quoted brackets are none.
        request_of('"[' + "1," * WHOLE_BYTES + '1]"'),
        b"[" * (WHOLE_BYTES + 1),
        b"]" * (WHOLE_BYTES + 1),
        b'{"x":{"y":[{"z":[' + b"1," * WHOLE_BYTES + b"1]}]}}",
        # An array that never ends is not one.
        b'{"inputs":[{"data":[' + b"1," * WHOLE_BYTES,
        b'{"inputs":[{"data":"' + b"\\" * WHOLE_BYTES,
    ],
)
def test_what_is_long_and_not_data_is_refused_before_it_is_parsed(text: bytes) -> None:
    with pytest.raises(TooLarge, match="max_json_bytes"):
        cut_data(memoryview(text), WHOLE_BYTES)
