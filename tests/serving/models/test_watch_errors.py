"""The watch of a repository in which looking fails: an error says nothing of the model."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.models import watch as watching
from serving.models.repository import ModelFolder
from serving.models.watch import RepositoryWatch
from serving.settings import Settings
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, encode, write_model
from tests.support.running import running

SEGMENT = "/v2/models/bands/segment?format=raw"
PHOTO = encode(np.full((20, 30, 3), 5, np.uint8))
NOBODY = 65534


class Watched:
    """A served repository, and the engines that were opened for it."""

    def __init__(self, repository: Path, http: httpx.AsyncClient) -> None:
        self.folder = repository / "bands"
        self.http = http
        self.engines: list[FakeEngine] = []
        self.watch: RepositoryWatch

    async def look_twice(self) -> None:
        await self.watch.compare()
        await self.watch.compare()

    async def answers(self) -> bool:
        return (await self.http.post(SEGMENT, content=PHOTO)).status_code == 200

    async def reasons(self) -> list[str]:
        entries = (await self.http.post("/v2/repository/index")).json()
        return [entry["reason"] for entry in entries if "reason" in entry]


@asynccontextmanager
async def watched(repository: Path) -> AsyncIterator[Watched]:
    engines: list[FakeEngine] = []

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
        engines.append(FakeEngine(MODEL_SIZE))
        return engines[-1]

    async with running(repository, open_engine) as (server, http):
        found = Watched(repository, http)
        found.engines = engines
        found.watch = RepositoryWatch(repository, server.registry, server.pool)
        yield found


@contextmanager
def as_nobody(repository: Path) -> Iterator[None]:
    """Permissions count: for root nothing is unreadable."""
    if os.geteuid() != 0:
        yield
        return
    for path in (repository, *repository.parents):
        # pytest's own folders are closed to others; the system's are open.
        mode = path.stat().st_mode
        if mode & 0o55 != 0o55:
            path.chmod(mode & 0o7777 | 0o55)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def link_nowhere(folder: Path) -> None:
    (folder / "notes").symlink_to(folder / "nowhere")


def link_to_itself(folder: Path) -> None:
    (folder / "notes").symlink_to(folder / "notes")


def link_to_parent(folder: Path) -> None:
    (folder / "notes").symlink_to(folder)


def link_graph_nowhere(folder: Path) -> None:
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to(folder / "nowhere")


def link_config_nowhere(folder: Path) -> None:
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").symlink_to(folder / "nowhere")


def remove_config(folder: Path) -> None:
    (folder / "config.pbtxt").unlink()


def link_version_to_itself(folder: Path) -> None:
    shutil.rmtree(folder / "1")
    (folder / "1").symlink_to(folder / "1")


def link_folder_nowhere(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    shutil.rmtree(folder.with_name("moved"))
    folder.symlink_to(folder.with_name("moved"))


@pytest.mark.parametrize(
    "change",
    [
        link_nowhere, link_to_itself, link_to_parent, link_graph_nowhere, link_config_nowhere,
        remove_config, link_version_to_itself, link_folder_nowhere,
    ],
)  # fmt: skip
async def test_a_broken_link_unloads_nothing(
    repository: Path, change: Callable[[Path], None]
) -> None:
    write_model(repository, "other")
    async with watched(repository) as found:
        change(found.folder)
        for _ in range(3):
            await found.look_twice()
            assert await found.answers()


@pytest.mark.parametrize("mode", ["folder", "version", "file"])
async def test_what_cannot_be_read_unloads_nothing(
    repository: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(repository, "other")
    async with watched(repository) as found:
        folder = found.folder
        path = {"folder": folder, "version": folder / "1", "file": folder / "config.pbtxt"}[mode]
        path.chmod(0)
        with as_nobody(repository):
            await found.look_twice()
            assert await found.answers()
            await found.look_twice()
            assert await found.answers()
            # Another model is followed all the same.
            other = await found.http.post(SEGMENT.replace("bands", "other"), content=PHOTO)
            assert other.status_code == 200
        assert "Permission denied" in caplog.text
        path.chmod(0o755)
        await found.look_twice()
        await found.look_twice()
        assert await found.answers()
        assert await found.reasons() == []


async def test_a_file_system_that_does_not_answer_unloads_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def fail(path: str | os.PathLike[str]) -> os.stat_result:
        if "bands" in os.fspath(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path))
        return real(path)

    async with watched(repository) as found:
        with monkeypatch.context() as patch:
            patch.setattr(watching.os, "stat", fail)
            await found.look_twice()
            await found.look_twice()
        assert len(found.engines) == 1
        await found.look_twice()
        assert len(found.engines) == 1
        assert await found.answers()


async def test_a_file_that_vanishes_between_listing_and_looking_is_not_there(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "bands" / "passing.tmp").touch()
    real = watching._list

    def list_then_remove(folder: Path, *, is_model: bool) -> list[os.DirEntry[str]]:
        found = real(folder, is_model=is_model)
        (repository / "bands" / "passing.tmp").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(watching, "_list", list_then_remove)
    looks, unreadable = watching.read_all(repository)
    assert unreadable == {}
    names = {name for files in looks["bands"].values() for name, *_ in files}
    assert names == {"config.pbtxt", "labels.txt", "1/model.onnx"}


async def test_a_repository_that_is_away_unloads_nothing(repository: Path) -> None:
    async with watched(repository) as found:
        repository.rename(repository.with_name("away"))
        for _ in range(3):
            with pytest.raises(Exception, match="no model repository"):
                await found.watch.compare()
        assert await found.answers()
        repository.with_name("away").rename(repository)
        await found.look_twice()
        assert len(found.engines) == 1


def replace_with_same_time(file: Path) -> None:
    """cp -p, rsync -t: another file of the same size and time."""
    before, other = file.stat(), file.with_name("other")
    other.write_bytes(b"x" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def write_over_with_same_time(file: Path) -> None:
    """The same file too: only its time of change tells."""
    before = file.stat()
    file.write_bytes(b"x" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("replace", [replace_with_same_time, write_over_with_same_time])
@pytest.mark.parametrize("linked", [False, True])
async def test_a_file_of_the_same_size_and_time_is_seen(
    repository: Path,
    replace: Callable[[Path], None],
    linked: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    version = repository / "bands" / "1"
    if linked:  # as in a Kubernetes volume: a version is a link to elsewhere
        elsewhere = tmp_path_factory.mktemp("volume") / "1"
        version.rename(elsewhere)
        version.symlink_to(elsewhere)
    graph = version / "model.onnx"
    graph.write_bytes(b"0123456789")
    async with watched(repository) as found:
        replace(graph)
        await found.look_twice()
        assert len(found.engines) == 2
        assert await found.answers()


async def test_a_folder_that_is_gone_is_unloaded_still(repository: Path) -> None:
    write_model(repository, "other")
    async with watched(repository) as found:
        shutil.rmtree(found.folder)
        await found.look_twice()
        assert not await found.answers()
