"""Tensors and parameters of the Open Inference Protocol, read to the byte and to the limit."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from serving.errors import InvalidRequest, Unsupported
from serving.oip.parameters import (
    LARGEST,
    read_count,
    read_flag,
    read_place,
    read_request_parameters,
    refuse_classification,
)
from serving.oip.shared_memory import RegionSlice
from serving.oip.tensors import Tensor, bytes_tensor, read_tensor
from serving.parsing import parse_version

PNG = b"\x89PNG\r\n\x1a\n and what follows"


def pack(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def test_pixels_are_rows_first() -> None:
    raw = bytes(range(24))
    tensor = read_tensor("image", "UINT8", (2, 4, 3), memoryview(raw))
    assert isinstance(tensor.data, np.ndarray)
    assert tensor.data[1, 0].tolist() == [12, 13, 14]
    assert (tensor.size, tensor.to_bytes()) == (24, raw)
    # Also of what lies otherwise in memory.
    turned = Tensor("image", "UINT8", (4, 2, 3), tensor.data.transpose(1, 0, 2))
    assert turned.to_bytes()[:6] == bytes([0, 1, 2, 12, 13, 14])


@pytest.mark.parametrize("length", [0, 23, 25])
def test_pixels_that_do_not_fit_the_shape(length: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"UINT8 \[2, 4, 3\] takes 24 bytes, got {length}"):
        read_tensor("image", "UINT8", (2, 4, 3), bytes(length))


@pytest.mark.parametrize("items", [(b"",), (b"a",), (b"abc", b""), (b"", b"abc", b"d" * 300)])
def test_elements_come_out_as_they_went_in(items: tuple[bytes, ...]) -> None:
    tensor = read_tensor("image", "BYTES", (len(items),), pack(*items))
    assert tensor.data == items
    assert tensor.to_bytes() == pack(*items)
    # What is counted is the images, not their lengths.
    assert tensor.size == sum(map(len, items))
    assert bytes_tensor("image", (len(items),), items) == tensor


@pytest.mark.parametrize(
    ("elements", "raw", "message"),
    [
        (1, b"", "1 elements, the data holds 0"),
        (2, pack(b"abc"), "2 elements, the data holds 1"),
        (1, pack(b"abc", b"d"), "1 elements, the data holds more: 5 bytes are left"),
        (1, pack(b"abc") + b"\0", "holds more: 1 bytes are left"),
        (2, pack(b"abc") + b"\0\0\0", "ends inside a length, at byte 7$"),
        (1, pack(b"abc")[:-1], "element of 3 bytes goes beyond the end$"),
        (2, pack(b"abc") + b"\1\0\0\0", "element of 1 bytes goes beyond the end$"),
        (1, b"\xff\xff\xff\xff", "element of 4294967295 bytes goes beyond the end$"),
        (1, PNG, rf"goes beyond the end; .* \(4 bytes, little endian; here {len(PNG)} if"),
    ],
)
def test_elements_that_do_not_fit(elements: int, raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_tensor("image", "BYTES", (elements,), raw)


def test_other_shapes_and_datatypes() -> None:
    for shape in ((0,), (1, 0, 3), (2, -1)):
        with pytest.raises(InvalidRequest, match="has an empty dimension"):
            read_tensor("image", "UINT8", shape, b"")
    with pytest.raises(InvalidRequest, match=r"FP32 is not supported: expected UINT8 .* BYTES"):
        read_tensor("image", "FP32", (1,), bytes(4))
    for count in (1, 3):
        with pytest.raises(InvalidRequest, match=f"2 elements, the data holds {count}"):
            bytes_tensor("image", (2,), [b"x"] * count)


def test_counts_and_flags() -> None:
    assert [read_count({"n": n}, "n") for n in (None, 0, 1, LARGEST)] == [None, 0, 1, 2**63 - 1]
    for value in (-1, LARGEST + 1, True, 1.0, "1"):
        with pytest.raises(InvalidRequest, match=r"'n' must be an integer from 0 to 2\^63 - 1"):
            read_count({"n": value}, "n")
    assert [read_flag({"n": n}, "n") for n in (None, False, True)] == [None, False, True]
    for value in (0, 1, "true"):
        with pytest.raises(InvalidRequest, match="'n' must be true or false"):
            read_flag({"n": value}, "n")


def test_parameters_of_a_request() -> None:
    found = read_request_parameters({})
    assert (found.timeout_s, found.priority, found.binary_output) == (None, 0, False)
    given = {"timeout": 1_500_000, "priority": 2, "binary_data_output": True, "mine": "x"}
    found = read_request_parameters(given)
    assert (found.timeout_s, found.priority, found.binary_output) == (1.5, 2, True)
    # Of none, as in Triton.
    assert read_request_parameters({"timeout": 0}).timeout_s is None
    assert read_request_parameters({"triton_enable_empty_final_response": True}).priority == 0
    with pytest.raises(InvalidRequest, match=r"'triton_x': .* reserved"):
        read_request_parameters({"triton_x": 1})
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        assert read_request_parameters({name: 0}).priority == 0
        with pytest.raises(Unsupported, match=f"{name!r}: sequences"):
            read_request_parameters({name: 1})
    refuse_classification("mask", {"classification": 0})
    with pytest.raises(Unsupported, match="'mask': the classification extension"):
        refuse_classification("mask", {"classification": 1})


def test_where_a_tensor_is_in_shared_memory() -> None:
    where = {"shared_memory_region": "frames", "shared_memory_byte_size": 12}
    assert read_place("image", {}) is None
    assert read_place("image", {"shared_memory_byte_size": 12}) is None
    assert read_place("image", where) == RegionSlice("frames", 0, 12)
    placed = {**where, "shared_memory_offset": 4}
    assert read_place("image", placed) == RegionSlice("frames", 4, 12)
    for wrong in ({"shared_memory_byte_size": None}, {"shared_memory_region": 7}):
        with pytest.raises(InvalidRequest, match="needs a name and shared_memory_byte_size"):
            read_place("image", {**where, **wrong})


def test_versions() -> None:
    assert [parse_version(text) for text in ("", "1", "999999999")] == [None, 1, 999_999_999]
    for text in ("0", "01", "-1", "+1", "1.0", " 1", "1\n", "1000000000", "\u0661", "\u00b2"):
        with pytest.raises(InvalidRequest, match="expected a positive integer"):
            parse_version(text)
