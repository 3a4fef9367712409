"""A running batcher, and an observer that remembers what it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serving.batching.batcher import Batcher
from serving.batching.queue import BatchLimits, Execution
from serving.testing import FakeEngine

LIMITS = BatchLimits(max_queue_size=100, max_queue_bytes=1 << 20, queue_timeout_ms=20_000)


@dataclass
class Notes:
    """An observer that remembers."""

    rejections: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    queue: int = 0

    def queue_changed(self, length: int) -> None:
        self.queue = length

    def batch_done(self, execution: Execution) -> None:
        self.batches.append(execution.size)

    def rejected(self, reason: str) -> None:
        self.rejections.append(reason)

    def engine_failed(self, kind: str) -> None:
        self.failures.append(kind)


@asynccontextmanager
async def batching(
    engine: FakeEngine,
    limits: BatchLimits = LIMITS,
    notes: Notes | None = None,
    on_broken: Callable[[str], None] = lambda reason: None,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, limits, notes or Notes(), time.monotonic, on_broken)
    batcher.start()
    try:
        yield batcher
    finally:
        engine.hold.set()
        await asyncio.wait_for(batcher.drain(), 20)
