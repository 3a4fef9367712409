"""A thread that runs one call at a time for the event loop, and may be left behind.

The threads of an executor cannot: one that hangs in an engine would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Result = TypeVar("Result")


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
