"""Archives: fetched in parts, checked, unpacked inside one folder only."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO

BLOCK = 1 << 20
TIMEOUT_SECONDS = 60
PARTIAL = 206
RANGE_NOT_SATISFIABLE = 416

Progress = Callable[[int, int], None]
"""Is told bytes so far, and bytes in all (0: not known)."""


class ArchiveError(ValueError):
    """An archive that could not be fetched, is not the published one, or leaves its folder."""


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


def download(url: str, part: Path, progress: Progress) -> None:
    """Fetches ``url`` into ``part``, from where an earlier attempt ended.

    Raises:
        ArchiveError: no answer, or one that broke off; the message says where the file may be put.
    """
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            if answer.status != PARTIAL:
                # The server sends all of it, whatever it was asked for.
                start = 0
            total = start + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if start else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    progress(file.tell(), total)
        if part.stat().st_size < total:
            raise ArchiveError(
                f"{url} broke off after {part.stat().st_size} of {total} bytes; "
                f"the same command goes on from there"
            )
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise ArchiveError(f"{url}: {error}") from error
        # Nothing was left to send: the part is whole.
    except (OSError, HTTPException) as error:
        raise ArchiveError(
            f"{url} cannot be fetched ({error}); the same command goes on where it ended, or put "
            f"the file at {part.with_suffix('')}"
        ) from error


def sha1_of(path: Path) -> str:
    """SHA-1 of a file, in hexadecimal."""
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check(path: Path, archive: Archive) -> None:
    found = sha1_of(path)
    if found != archive.sha1:
        raise ArchiveError(
            f"{path} has SHA-1 {found}, the published {archive.file} {archive.sha1}; "
            f"remove it and fetch it again"
        )
