"""Follows a model repository as its files change, like Triton's ``--model-control-mode=poll``.

A change is acted upon once two snapshots in a row have the same files, with the same sizes and
times: what is still being written is left alone. What could not be served is not tried again
until it changes again.

A model is gone when its folder is, in a listing that succeeded. An error while reading one (a
permission, a file system that does not answer) says nothing: the model stays as it is.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeAlias

from serving.models.registry import Registry
from serving.models.repository import list_models, parse_version_folder, show_name

log = logging.getLogger("segserve")

# A file below a folder, with its device, inode, size, time of change, and time of the inode's
# change: a copy that keeps size and time (cp -p, rsync -t) has another of the first or last.
File: TypeAlias = tuple[str, int, int, int, int, int]
Files: TypeAlias = frozenset[File]
# Of a model: its versions by name, and everything else under the empty name.
Snapshot: TypeAlias = dict[str, Files]

# Of one model; more is not a model but a link to somewhere else.
MAX_FILES = 10_000
MAX_DEPTH = 16


class RepositoryWatch:
    """A watch that compares the repository with what was there before."""

    def __init__(self, repository: Path, registry: Registry, pool: Executor) -> None:
        self.repository = repository
        self.registry = registry
        self.pool = pool
        # Models that could not be read, so that the log names each once.
        self._unreadable: dict[str, str] = {}
        # What is served, before anything was loaded from it.
        self._known, _ = read_all(repository)
        self._last = self._known

    async def run(self, interval_s: float) -> None:
        """Compares every ``interval_s``, until it is cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.compare()
            except Exception as error:
                log.error("looking at %s failed: %s", self.repository, error)

    async def compare(self) -> None:
        """Compares once, and follows the changes that have settled since the last time."""
        loop = asyncio.get_running_loop()
        now, unreadable = await loop.run_in_executor(self.pool, read_all, self.repository)
        self._log_unreadable(unreadable)
        last, self._last = self._last, now
        for name in sorted({*self._known, *now} - set(unreadable)):
            seen, known = now.get(name), self._known.get(name)
            if seen == known or seen != last.get(name):
                continue
            try:
                if seen is None:
                    del self._known[name]
                    await self.registry.unload(name)
                else:
                    self._known[name] = seen
                    changed = find_changed(known or {}, seen)
                    await self.registry.refresh(name, changed, self.pool)
            except Exception as error:
                # One model's trouble does not keep the others from being followed.
                log.error("model %s: its change could not be followed: %s", name, error)

    def _log_unreadable(self, unreadable: Mapping[str, str]) -> None:
        for name, why in unreadable.items():
            if self._unreadable.get(name) != why:
                log.warning("model %s cannot be looked at, and stays as it is: %s", name, why)
        self._unreadable = dict(unreadable)


def find_changed(before: Mapping[str, Files], now: Mapping[str, Files]) -> set[int] | None:
    """Returns the versions whose files differ; None where the configuration, labels or other files
    do."""
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    return None if "" in changed else {int(name) for name in changed}


def read_all(repository: Path) -> tuple[dict[str, Snapshot], dict[str, str]]:
    """Takes a snapshot of every model; returns also those that cannot be read, and why.

    Raises:
        InvalidModel: the repository cannot be listed.
    """
    snapshots: dict[str, Snapshot] = {}
    unreadable: dict[str, str] = {}
    for folder in list_models(repository):
        name = show_name(folder)
        try:
            snapshots[name] = _read(folder)
        except FileNotFoundError:
            if os.path.lexists(folder):
                unreadable[name] = "it leads nowhere"
        except OSError as error:
            unreadable[name] = str(error)
    return snapshots, unreadable


def _read(folder: Path) -> Snapshot:
    snapshot: dict[str, set[File]] = {"": set()}
    count = 0
    folders = [(folder, 0)]
    while folders:
        path, depth = folders.pop()
        for entry in _list(path, is_model=path == folder):
            count += 1
            if count > MAX_FILES:
                raise OSError(errno.EFBIG, f"more than {MAX_FILES} files", str(folder))
            found = _stat(entry)
            if found is None:
                continue
            inside = Path(entry.path).relative_to(folder)
            # A version may be a link; links further down are not followed, as they may go round.
            follow = not entry.is_symlink() or not depth
            if stat.S_ISDIR(found.st_mode) and follow and depth < MAX_DEPTH:
                folders.append((Path(entry.path), depth + 1))
                continue
            parts = inside.parts
            is_version = len(parts) > 1 and parse_version_folder(parts[0]) is not None
            version = parts[0] if is_version else ""
            file = (
                str(inside), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns,
                found.st_ctime_ns,
            )  # fmt: skip
            snapshot.setdefault(version, set()).add(file)
    return {name: frozenset(files) for name, files in snapshot.items()}


def _list(folder: Path, *, is_model: bool) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder; none if one below the model's has vanished meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        if is_model:
            raise
        return []


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Returns the state of a link's target, or of a dangling link; None for what has vanished."""
    try:
        return os.stat(entry.path)
    except OSError as error:
        # Anything else, EIO or EACCES, says nothing about the file.
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise
    try:
        return os.lstat(entry.path)
    except FileNotFoundError:
        return None
