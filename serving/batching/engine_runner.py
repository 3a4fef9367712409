"""The engine behind a batcher: how it fares, and what takes its place.

An engine that fails ``max_failures`` times in a row, hangs, or ends its thread is broken: nothing
more is given to it, and ``replace`` puts another one in its place.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

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


# A thread that runs one call at a time for the event loop, and may be left behind.
#
# The threads of an executor cannot: one that hangs in an engine would keep the process from
# ending.


class EngineThread(Generic[Result]):
    """Runs calls in the order in which they come; ends after one that raises no Exception."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Result], asyncio.Future[Result]] | None]
        self._calls = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """The future of ``function()``, on the event loop."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def stop(self) -> None:
        """Ends the thread after the call at work, without waiting for it."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            function, future = item
            try:
                result = function()
            except BaseException as error:
                dead = not isinstance(error, Exception)
                self._tell(_set_error, future, error)
                if dead:
                    return
            else:
                self._tell(_set_result, future, result)
            del item, function, future

    def _tell(self, tell: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(tell, *arguments)
        except RuntimeError:
            return  # The loop has ended: nobody waits.


class EngineThreadDied(Exception):
    """The call raised what is no Exception (``SystemExit``): its thread has ended."""


def _set_result(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _set_error(future: asyncio.Future[Result], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.set_exception(EngineThreadDied(f"{type(error).__name__}: {error}"))
