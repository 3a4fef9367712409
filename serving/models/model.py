"""One version of a model, loaded and warm, and who uses it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from serving.batching.batcher import Batcher
from serving.engine import Engine, EngineSpec
from serving.models.repository import ModelFolder
from serving.models.statistics import InferenceStatistics
from serving.palette import LabelSet


class Users:
    """The requests that hold a model: it must not be unloaded under them."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def enter(self) -> None:
        self._count += 1
        self._none.clear()

    def leave(self) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def wait_for_none(self) -> None:
        """Until the last one has left."""
        await self._none.wait()


@dataclass(frozen=True)
class Model:
    """One version of a model, loaded and warm."""

    folder: ModelFolder
    version: int
    batcher: Batcher
    statistics: InferenceStatistics = field(default_factory=InferenceStatistics)
    users: Users = field(default_factory=Users)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def engine(self) -> Engine:
        """The batcher's, which opens another one where it breaks."""
        return self.batcher.engine

    @property
    def is_ready(self) -> bool:
        """Whether its engine works."""
        return self.batcher.broken is None

    @property
    def spec(self) -> EngineSpec:
        return self.engine.spec

    @property
    def input_bytes(self) -> int:
        """Of one image of the network's size."""
        return self.spec.size.height * self.spec.size.width * 3

    @property
    def labels(self) -> LabelSet:
        return self.folder.labels
