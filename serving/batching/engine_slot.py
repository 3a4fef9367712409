"""The engine behind a batcher: how it fares, and what takes its place.

An engine that fails ``max_failures`` times in a row, hangs, or ends its thread is broken: nothing
more is given to it, and ``replace`` puts another one in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from serving.engine import Engine

Result = TypeVar("Result")


class EngineSlot:
    """One engine at a time, on one event loop.

    Attributes:
        broken: why nothing is given to the engine; None while it works.
        usable: set while ``broken`` is None.
        calm: set while no run is under way; those who run engines set and clear it.
    """

    def __init__(
        self,
        engine: Engine,
        max_failures: int,
        on_broken: Callable[[str], None],
        on_failure: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self.engine = engine
        self.broken: str | None = None
        self.usable = asyncio.Event()
        self.usable.set()
        self.calm = asyncio.Event()
        self.calm.set()
        self._max_failures = max_failures
        self._on_broken = on_broken
        self._on_failure = on_failure
        self._failures = 0
        self._hanging: set[object] = set()

    @property
    def hangs(self) -> bool:
        """Whether a run that was left behind has not ended."""
        return bool(self._hanging)

    def count_success(self, engine: Engine) -> None:
        """A run ended well; ``engine`` may have been replaced meanwhile, here and below."""
        if engine is self.engine:
            self._failures = 0

    def report_failure(self, kind: str) -> None:
        """A run gave at least one image no answer; ``kind`` is one of ``ENGINE_FAILURES``."""
        self._on_failure(kind)

    def count_failure(self, engine: Engine, reason: str) -> None:
        """A run failed, and the engine answered."""
        if engine is not self.engine:
            return
        self._failures += 1
        if self._failures >= self._max_failures:
            self.give_up(engine, f"{self._failures} runs in a row failed, the last with: {reason}")

    def give_up(self, engine: Engine, reason: str) -> None:
        """The engine is broken."""
        if engine is self.engine and self.broken is None:
            self.broken = reason
            self.usable.clear()
            self._on_broken(reason)

    def leave_behind(self, call: asyncio.Future[Result], engine: Engine) -> None:
        """Forgets a run that hangs; should it ever end, its engine is closed then."""
        self._hanging.add(call)

        def finish(ended: asyncio.Future[Result]) -> None:
            self._hanging.discard(ended)
            # Asked for, or asyncio logs an exception that nobody saw.
            if not ended.cancelled():
                ended.exception()
            if engine is not self.engine and not self._hanging:
                engine.close()

        call.add_done_callback(finish)

    async def replace(self, engine: Engine) -> None:
        """Puts an engine of the same ``spec`` in the broken one's place."""
        broken, self.engine = self.engine, engine
        # Instances that still work finish before their engine is closed.
        await self.calm.wait()
        if not self._hanging:
            broken.close()
        self._failures = 0
        self.broken = None
        self.usable.set()
