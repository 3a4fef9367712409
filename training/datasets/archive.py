"""Archives: fetched in parts, checked, unpacked inside one folder only."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from export.weights.download import BLOCK, ArchiveError, Progress, download, sha1_of


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        url: empty where only a login leads to it.
        moved: (folder in the archive, folder to unpack it as).
    """

    file: str
    sha1: str
    url: str = ""
    moved: tuple[str, str] = ("", "")


def obtain(archive: Archive, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """The checked file in ``folder``, downloaded where it is not there yet.

    A download that broke off is in ``FILE.part`` and goes on where it ended.

    Raises:
        ArchiveError: no such address, or its content is another one (it is deleted then; a file
            that was put there by hand is kept).
    """
    path = folder / archive.file
    if path.is_file():
        _check(path, archive)
        return path
    if not archive.url:
        raise ArchiveError(f"{path} is missing")
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    download(archive.url, part, progress)
    try:
        _check(part, archive)
    except ArchiveError:
        part.unlink()
        raise
    part.rename(path)
    return path


def unpack(path: Path, folder: Path, moved: tuple[str, str] = ("", "")) -> None:
    """Unpacks a .zip, .tar or .tgz file into ``folder``; files that are there are replaced.

    Args:
        moved: (folder in the archive, folder to unpack it as).

    Raises:
        ArchiveError: no such archive, or an entry that is a link or lies outside of the folder.
            Nothing has been written then.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                _write(
                    path, [_zip_entry(packed, info) for info in packed.infolist()], folder, moved
                )
        else:
            with tarfile.open(path) as tar:
                _write(path, [_tar_entry(tar, info) for info in tar.getmembers()], folder, moved)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ArchiveError(f"{path} cannot be unpacked: {error}") from error


@dataclass(frozen=True)
class _Entry:
    """``content`` opens a file's; None for a folder."""

    name: str
    linked: bool
    content: Callable[[], IO[bytes]] | None


def _zip_entry(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    linked = stat.S_ISLNK(info.external_attr >> 16)
    return _Entry(info.filename, linked, None if info.is_dir() else lambda: packed.open(info))


def _tar_entry(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Entry:
    def content() -> IO[bytes]:
        opened = tar.extractfile(info)
        assert opened is not None, "files have a content"
        return opened

    # Devices and pipes are as unwelcome as links.
    linked = not info.isfile() and not info.isdir()
    return _Entry(info.name, linked, None if info.isdir() else content)


def _write(path: Path, entries: list[_Entry], folder: Path, moved: tuple[str, str]) -> None:
    for entry in entries:
        parts = PurePosixPath(entry.name.replace("\\", "/"))
        outside = parts.is_absolute() or ".." in parts.parts or ":" in entry.name.split("/")[0]
        if entry.linked or outside:
            raise ArchiveError(
                f"{path} holds {entry.name!r}, a link or a path outside of the folder"
            )
    source, target = moved
    for entry in entries:
        name = entry.name
        if source and (name == source or name.startswith(source + "/")):
            name = target + name[len(source) :]
        place = folder / name
        if entry.content is None:
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with entry.content() as opened, place.open("wb") as file:
            shutil.copyfileobj(opened, file, BLOCK)


def _check(path: Path, archive: Archive) -> None:
    found = sha1_of(path)
    if found != archive.sha1:
        raise ArchiveError(
            f"{path} has SHA-1 {found}, the published {archive.file} {archive.sha1}; "
            f"remove it and fetch it again"
        )
