"""Text files as editors write them: byte order marks, CRLF, other encodings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export.repository.triton import read_config
from serving.errors import InvalidModel, InvalidSetting
from serving.models.repository import read_model
from serving.palette import read_labels
from serving.parsing import read_text
from serving.security.api_keys import KeyRing
from tests.support.band_model import CLASSES, write_model
from training.class_weights import parse_class_weights
from training.datasets.pascal import read_names

BOM = "\ufeff".encode()


def as_windows_writes(path: Path) -> None:
    """A byte order mark in front, and CRLF."""
    path.write_bytes(BOM + path.read_bytes().replace(b"\n", b"\r\n"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    as_windows_writes(path)
    return path


def test_a_mark_and_crlf_are_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_text(write(tmp_path / "a", "one\ntwo\n")) == "one\ntwo\n"
    (tmp_path / "b").write_bytes(b"one\rtwo\r")
    assert read_text(tmp_path / "b") == "one\ntwo\n"
    (tmp_path / "c").write_text("a\ufeffb", "utf-8")
    assert read_text(tmp_path / "c") == "a\ufeffb"


def test_every_file_of_users_may_have_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    for name in ("labels.txt", "config.pbtxt"):
        as_windows_writes(folder / name)
    model = read_model(folder)
    assert model.labels.names == CLASSES
    assert model.max_batch_size == 4
    assert read_config(folder).max_batch_size == 4
    labels = read_labels(write(tmp_path / "classes", "road #804080\nsky #4682b4\n"))
    assert labels.names == ("road", "sky")
    assert labels.colors[0] == (128, 64, 128)
    key = "a-key-that-is-long-enough"
    ring = KeyRing(write(tmp_path / "keys", f"first {key}\n"), lambda: 0.0)
    assert ring.find(key).key.name == "first"
    assert read_names(write(tmp_path / "names", "2007_1\n2007_2\n")) == ("2007_1", "2007_2")
    assert parse_class_weights(str(write(tmp_path / "weights", "1\n0.5\n"))) == (1.0, 0.5)


OTHERS = {
    "UTF-16": "road\nsky\n".encode("utf-16"),
    "UTF-32": "road\nsky\n".encode("utf-32"),
    "line 2: byte 0xe9 is not UTF-8": "road\ncaf\u00e9\n".encode("latin-1"),
    "zero byte": b"road\0\n",
}


@pytest.mark.parametrize(("why", "data"), OTHERS.items())
def test_other_encodings_are_refused_by_file(tmp_path: Path, why: str, data: bytes) -> None:
    folder = write_model(tmp_path / "models")
    (tmp_path / "text").write_bytes(data)

    def read_as(name: str) -> None:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        try:
            read_model(folder)
        finally:
            (folder / name).write_bytes(before)

    readers: dict[str, Callable[[], object]] = {
        "text": lambda: read_labels(tmp_path / "text"),
        "labels.txt": lambda: read_as("labels.txt"),
        "config.pbtxt": lambda: read_as("config.pbtxt"),
    }
    for name, read in readers.items():
        with pytest.raises((ValueError, InvalidModel), match=f"{name}.*{why}"):
            read()
    with pytest.raises(InvalidSetting, match=f"api_keys_file.*text.*{why}"):
        KeyRing(tmp_path / "text", lambda: 0.0)


def test_a_file_without_end_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="/dev/zero is longer than 10 bytes"):
        read_text(Path("/dev/zero"), max_bytes=10)
    with pytest.raises(ValueError, match="/dev/zero is not a regular file"):
        read_text(Path("/dev/zero"), regular=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        read_text(tmp_path / "pipe", regular=True)
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path)
