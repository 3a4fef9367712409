"""Follows a model repository as its files change, like Triton's ``--model-control-mode=poll``.

A change is acted upon once two looks in a row have seen the same files, with the same sizes and
times: what is still being written is left alone. What could not be served is not tried again
until it changes again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeAlias

from serving.registry import Registry
from serving.repository import list_models

log = logging.getLogger("segserve")

# Files below a folder, each with its inode, size and time of change.
Files: TypeAlias = frozenset[tuple[str, int, int, int]]
# Of a model: its versions by name, and everything else under the empty name.
Look: TypeAlias = dict[str, Files]


class RepositoryWatch:
    """Compares the repository with what was there before; ``look`` is one comparison."""

    def __init__(self, repository: Path, registry: Registry, pool: Executor) -> None:
        self.repository = repository
        self.registry = registry
        self.pool = pool
        # What is served, before anything was loaded from it.
        self._known = read_all(repository)
        self._last = self._known

    async def run(self, interval_s: float) -> None:
        """Looks every ``interval_s``, until it is cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.look()
            except Exception as error:
                log.error("looking at %s failed: %s", self.repository, error)

    async def look(self) -> None:
        """Looks once, and follows the changes that have settled since the last look."""
        loop = asyncio.get_running_loop()
        now = await loop.run_in_executor(self.pool, read_all, self.repository)
        for name in sorted({*self._known, *now}):
            seen, known = now.get(name), self._known.get(name)
            if seen == known or seen != self._last.get(name):
                continue
            if seen is None:
                del self._known[name]
                await self.registry.unload(name)
                continue
            self._known[name] = seen
            await self.registry.refresh(name, find_changed(known or {}, seen), self.pool)
        self._last = now


def find_changed(before: Mapping[str, Files], now: Mapping[str, Files]) -> set[int] | None:
    """Versions whose files differ; None where the configuration, labels or other files do."""
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    return None if "" in changed else {int(name) for name in changed}


def read_all(repository: Path) -> dict[str, Look]:
    """A look at every model of the repository; one that vanishes meanwhile is left out."""
    looks: dict[str, Look] = {}
    for folder in list_models(repository):
        try:
            looks[folder.name] = _read(folder)
        except OSError:
            continue
    return looks


def _read(folder: Path) -> Look:
    look: dict[str, set[tuple[str, int, int, int]]] = {"": set()}
    for file in folder.rglob("*"):
        if file.is_dir():
            continue
        parts = file.relative_to(folder).parts
        version = parts[0] if len(parts) > 1 and parts[0].isdecimal() else ""
        stat = file.stat()
        entry = ("/".join(parts), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        look.setdefault(version, set()).add(entry)
    return {name: frozenset(files) for name, files in look.items()}
