"""Turns at something of which there are a few: first come, first served, and no endless waits."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """A semaphore whose waits end in time. Of one event loop, from which alone it is used.

    Args:
        count: turns that are taken at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, timeout_s: float | None) -> None:
        """Waits for a turn, which :meth:`release` gives back. A cancelled wait leaves none taken.

        Raises:
            TimeoutError: none came within ``timeout_s``.
        """
        if self._free:
            self._free -= 1
            return
        if timeout_s is not None and timeout_s <= 0:
            raise TimeoutError
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was given just before.
                self.release()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """Gives a turn back: to whoever waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())
