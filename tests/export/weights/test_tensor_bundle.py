"""TensorFlow's checkpoints are read without TensorFlow; hostile ones are refused by name."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import WeightsError
from export.weights import tf_checkpoint as ours
from export.weights.tf_checkpoint import read_bundle
from tests.support.bundle_writer import (
    MAGIC,
    crc32c,
    field,
    make_entry,
    make_table,
    mask,
    varint,
    write_bundle,
)

HEADER = (b"", field(1, 1) + field(3, field(1, 1)))


def write_index(folder: Path, entries: list[tuple[bytes, bytes]], data: bytes = b"") -> Path:
    prefix = folder / "model.ckpt"
    (folder / "model.ckpt.index").write_bytes(make_table(entries))
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data or b"\0")
    return prefix


def test_the_checksum_is_the_published_one() -> None:
    """RFC 3720, B.4, and LevelDB's own mask."""
    assert ours.crc32c(b"123456789") == crc32c(b"123456789") == 0xE3069283
    assert ours.crc32c(bytes(32)) == 0x8A9136AA
    assert ours.crc32c(b"") == 0
    assert ours.masked(0xE3069283) == mask(0xE3069283)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40),
        st.lists(st.integers(0, 4), max_size=4),
        max_size=40,
    )
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
) -> None:
    random_values = np.random.default_rng(3)
    arrays = {
        name: random_values.standard_normal(shape).astype(np.float32)
        for name, shape in sorted(shapes.items(), key=lambda item: item[0].encode())
    }
    prefix = tmp_path_factory.mktemp("bundle") / "model.ckpt-1"
    write_bundle(prefix, arrays)
    with prefix.with_name("model.ckpt-1.data-00000-of-00001").open("ab") as file:
        file.write(b"\0")  # an empty file cannot be mapped
    found = read_bundle(prefix)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_many_names_and_types_in_several_blocks(tmp_path: Path) -> None:
    arrays = {
        f"scope/layer_{i:04}/weights{'/Momentum' * (i % 2)}": np.full((i % 3 + 1, 2), i, dtype)
        for i, dtype in zip(
            range(400), [np.float32, np.int32, np.int64, np.float16] * 100, strict=True
        )
    }
    write_bundle(tmp_path / "m", arrays)
    found = read_bundle(tmp_path / "m.index", lambda name: not name.endswith("/Momentum"))
    assert len(found) == 200
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def entry(
    shape: tuple[int, ...] = (2,), size: int = 8, offset: int = 0, dtype: int = 1, shard: int = 0
) -> bytes:
    sizes = b"".join(field(2, field(1, length)) for length in shape)
    message = field(1, dtype) + field(2, sizes) + field(3, shard) + field(4, offset)
    return message + field(5, size)


WRONG = {
    "too long": (entry(size=2**40, shape=(2**38,)), "needs 1099511627776 bytes"),
    "behind the end": (entry(offset=2**62), r"needs 8 bytes; its entry says 8 at 4611686018427"),
    "another size": (entry(shape=(3,)), "needs 12 bytes; its entry says 8"),
    "an unknown type": (entry(dtype=7), "of TensorFlow's type 7, which is not read here"),
    "many axes": (entry(shape=(1,) * 17), "an impossible shape"),
    "a huge axis": (entry(shape=(2**63,)), "an impossible shape"),
    "another file": (entry(shard=5), "is in data file 5 of 1"),
    "a negative file": (field(1, 1) + field(3, 2**64 - 1), "data file 18446744073709551615 of 1"),
    "a wrong checksum": (entry(), r"damaged \(the checksum of w"),
    "slices": (entry() + field(7, b"x"), "stored in slices"),
    "cut off": (entry() + varint(2 << 3 | 2) + varint(99), "cut off"),
    "an unknown kind": (varint(1 << 3 | 3), "is not a valid message"),
    "an endless number": (varint(1 << 3) + b"\xff" * 11, "does not end"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_entries_are_refused(tmp_path: Path, name: str) -> None:
    value, told = WRONG[name]
    prefix = write_index(tmp_path, [HEADER, (b"w", value)], bytes(8))
    with pytest.raises(WeightsError, match=told):
        read_bundle(prefix)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.ckpt\.index"):
        read_bundle(tmp_path / "model.ckpt")
    array = np.ones(2, np.float32)
    prefix = write_index(tmp_path, [(b"w", make_entry(array, 0, array.tobytes()))])
    with pytest.raises(WeightsError, match="0 data files"):
        read_bundle(prefix)
    write_index(tmp_path, [(b"", field(1, 1) + field(2, 1))])
    with pytest.raises(WeightsError, match="big-endian"):
        read_bundle(prefix)
    write_bundle(prefix, {"w": array})
    (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(WeightsError, match="data-00000-of-00001"):
        read_bundle(prefix)
    (tmp_path / "model.ckpt.index").write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match="not a valid checkpoint index"):
        read_bundle(prefix)
    (tmp_path / "model.ckpt.index").write_bytes(b"x")
    with pytest.raises(WeightsError, match="too short"):
        read_bundle(prefix)


def test_compressed_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.index").write_bytes(make_table([HEADER], kind=1))
    with pytest.raises(WeightsError, match="compressed"):
        read_bundle(tmp_path / "m")


def test_a_block_that_points_far_away_is_refused(tmp_path: Path) -> None:
    footer = varint(0) + varint(0) + varint(2**60) + varint(2**60)
    content = bytes(64) + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    (tmp_path / "m.index").write_bytes(content)
    with pytest.raises(WeightsError, match="is outside the file"):
        read_bundle(tmp_path / "m")


def test_every_damage_is_seen_or_harmless(tmp_path: Path) -> None:
    """One byte changed anywhere: the error is ours, or the arrays are those that were written."""
    arrays = {f"a/{i}": np.arange(i + 1, dtype=np.float32) for i in range(8)}
    prefix = tmp_path / "m"
    write_bundle(prefix, arrays)
    for ending in (".index", ".data-00000-of-00001"):
        path = tmp_path / f"m{ending}"
        whole = path.read_bytes()
        chosen = random.Random(4)
        for position in range(0, len(whole), max(1, len(whole) // 150)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << chosen.randrange(8)
            path.write_bytes(bytes(damaged))
            try:
                found = read_bundle(prefix)
            except WeightsError:
                continue
            assert all(np.array_equal(found[name], array) for name, array in arrays.items())
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:length])
            with pytest.raises(WeightsError):
                read_bundle(prefix)
        path.write_bytes(whole)
