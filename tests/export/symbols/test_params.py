import contextlib
import struct

import numpy as np
import pytest

from export.errors import InvalidParams
from export.symbols.params import Parameters, read_params, write_params

HEAD = struct.pack("<QQQ", 0x112, 0, 1)
FLOATS = np.arange(6, dtype="<f4")
CONTEXT = struct.pack("<ii", 1, 0)


def names(*words):
    raw = struct.pack("<Q", len(words))
    return raw + b"".join(struct.pack("<Q", len(w)) + w for w in words)


START = struct.pack("<Ii", 0xF993FAC9, 0)  # V2, dense
V2 = (
    struct.pack("<Ii", 0xF993FAC9, 0)
    + struct.pack("<iqq", 2, 2, 3)
    + CONTEXT
    + struct.pack("<i", 0)
)
V3 = (
    struct.pack("<Ii", 0xF993FACA, 0)
    + struct.pack("<iqq", 2, 2, 3)
    + CONTEXT
    + struct.pack("<i", 0)
)
V1 = struct.pack("<I", 0xF993FAC8) + struct.pack("<iqq", 2, 2, 3) + CONTEXT + struct.pack("<i", 0)
LEGACY = struct.pack("<III", 2, 2, 3) + CONTEXT + struct.pack("<i", 0)


def read(tmp_path, content):
    path = tmp_path / "net.params"
    path.write_bytes(content)
    return read_params(path)


@pytest.mark.parametrize("array", [V1, V2, V3, LEGACY], ids=["v1", "v2", "v3", "legacy"])
@pytest.mark.parametrize("name", [b"arg:w", b"w"])
def test_reads_every_generation(tmp_path, array, name):
    found = read(tmp_path, HEAD + array + FLOATS.tobytes() + names(name))
    assert found.names() == ["w"]
    np.testing.assert_array_equal(found.find("w"), FLOATS.reshape(2, 3))


@pytest.mark.parametrize(
    ("stored", "name", "kind"),
    [
        (b"arg:w", "w", "arguments"),
        (b"aux:w", "w", "auxiliary"),
        (b"w", "w", "arguments"),
        # Bare names that only begin like a prefix.
        (b"auxiliary_weight", "auxiliary_weight", "arguments"),
        (b"aux_conv:weight", "aux_conv:weight", "arguments"),
        (b"aux", "aux", "arguments"),
        (b"argument", "argument", "arguments"),
        (b"arg:aux:w", "aux:w", "arguments"),
        (b"aux:arg:w", "arg:w", "auxiliary"),
        (b"arg:auxgamma", "auxgamma", "arguments"),
        (b"aux:argaxu", "argaxu", "auxiliary"),
    ],
)
def test_the_prefix_says_which_kind_an_array_is(tmp_path, stored, name, kind):
    found = read(tmp_path, HEAD + V2 + FLOATS.tobytes() + names(stored))
    assert found.names() == [name]
    assert list(getattr(found, kind)) == [name]
    np.testing.assert_array_equal(found.find(name), FLOATS.reshape(2, 3))
    assert found.find("absent") is None


def test_the_same_name_may_be_looked_up_in_both_kinds():
    found = Parameters({"w": FLOATS}, {"w": -FLOATS, "mean": FLOATS + 1})
    assert found.find("w")[1] == 1.0, "an argument goes first"
    assert found.find("mean")[0] == 1.0


@pytest.mark.parametrize(
    ("array", "text"), [(np.float32(3).reshape(()), r"float32 \(\)"), (np.ones(2, "u2"), "uint16")]
)
def test_what_mxnet_cannot_hold_is_not_written(tmp_path, array, text):
    with pytest.raises(InvalidParams, match=f"w: cannot store {text}"):
        write_params(Parameters({"w": array}, {}), tmp_path / "net.params")


def test_an_array_in_another_order_is_written_row_by_row(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_params(Parameters({"w": array}, {}), tmp_path / "net.params")
    np.testing.assert_array_equal(read_params(tmp_path / "net.params").find("w"), array)


def test_writes_what_it_reads(tmp_path):
    arrays = {
        "weight": np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32),
        "half": np.ones((2, 2), np.float16),
        "double": np.zeros((1,), np.float64),
        "label": np.arange(5, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "net.params"
    write_params(Parameters(arrays, {"mean": np.ones(3, np.float32)}), path)
    found = read_params(path)
    assert list(found.arguments) == list(arrays)
    assert list(found.auxiliary) == ["mean"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.find(name), array)
        assert found.find(name).dtype == array.dtype


def test_every_truncation_is_refused(tmp_path):
    content = HEAD + V2 + FLOATS.tobytes() + names(b"aux:mean")
    for length in range(len(content)):
        with pytest.raises(InvalidParams, match=r"net\.params"):
            read(tmp_path, content[:length])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "not an MXNet .params"),
        (struct.pack("<QQQ", 0x112, 0, 2**63), "array 0"),
        (HEAD + struct.pack("<Iii", 0xF993FAC9, 0, 2**31 - 1), "dimensions"),
        (HEAD + struct.pack("<Iii", 0xF993FAC9, 0, -5), "dimensions"),
        (HEAD + struct.pack("<I", 4_000_000_000), "dimensions"),
        (HEAD + START + struct.pack("<iqq", 2, 2**40, 2**40) + CONTEXT + bytes(4), "needs"),
        (HEAD + struct.pack("<Iiiq", 0xF993FAC9, 0, 1, -1) + CONTEXT + bytes(4), "shape"),
        (HEAD + struct.pack("<Iiiqqq", 0xF993FAC9, 0, 3, 2**62, 2**62, 0) + CONTEXT + bytes(4)
         + names(b"w"), "shape"),
        (HEAD + START + struct.pack("<iq", 1, 1) + CONTEXT + struct.pack("<i", 99), "dtype"),
        (HEAD + struct.pack("<Iiiq", 0xF993FAC9, 1, 1, 1) + CONTEXT, "row_sparse"),
        (HEAD + V2 + FLOATS.tobytes() + names(), "0 names"),
        (HEAD + V2 + FLOATS.tobytes() + struct.pack("<QQ", 1, 2**60) + b"w", "name 0"),
        (HEAD + V2 + FLOATS.tobytes() + names(b"\xff"), "UTF-8"),
        (struct.pack("<QQQ", 0x112, 0, 2) + (V2 + FLOATS.tobytes()) * 2 + names(b"arg:w", b"aux:w"),
         "twice"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_with_an_offset(tmp_path, content, message):
    with pytest.raises(InvalidParams, match=message) as caught:
        read(tmp_path, content)
    assert "offset" in str(caught.value)


def test_refuses_an_empty_or_missing_file(tmp_path):
    with pytest.raises(InvalidParams, match=r"net\.params"):
        read(tmp_path, b"")
    with pytest.raises(InvalidParams, match="absent"):
        read_params(tmp_path / "absent.params")


def test_an_array_that_was_never_set_is_left_out(tmp_path):
    unset = struct.pack("<Iii", 0xF993FAC9, 0, 0)
    assert read(tmp_path, HEAD + unset + names(b"arg:w")).names() == []


def test_random_bytes_never_raise_anything_else(tmp_path):
    generator = np.random.default_rng(0)
    content = bytearray(HEAD + V2 + FLOATS.tobytes() + names(b"arg:w"))
    for _ in range(300):
        mutated = bytearray(content)
        for position in generator.integers(0, len(content), 3):
            mutated[position] = generator.integers(0, 256)
        with contextlib.suppress(InvalidParams):
            read(tmp_path, bytes(mutated))
