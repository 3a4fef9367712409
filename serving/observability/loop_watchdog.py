"""Measures how late the event loop runs: what holds it holds every request, and health too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

INTERVAL_S = 0.05
# Longer than the time between two scrapes: no stall falls between them.
WINDOW_S = 60
_IDLE = (-1, 0.0)


class LoopWatchdog:
    """A timer on the event loop that notes how much later than asked for it is called.

    ``lag_s`` may be read from any thread, and is right while the loop is stuck: then the timer is
    overdue, which needs no call of it to be seen. Construct it anywhere, ``start`` it on the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The largest lag of each of the last seconds, by second; replaced, never resized.
        self._largest: list[tuple[int, float]] = [_IDLE] * WINDOW_S
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts the timer on the running event loop."""
        self._schedule(asyncio.get_running_loop())

    def stop(self) -> None:
        """Ends the timer; the loop may end then without having been late."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()

    @property
    def lag_s(self) -> float:
        """Returns the largest lag of the last ``WINDOW_S`` seconds, the current one included."""
        now = self._clock()
        second = int(now)
        recent = [lag for at, lag in self._largest if at != -1 and second - at < WINDOW_S]
        due = self._due
        return max(0.0, *recent, 0.0 if due is None else now - due)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._clock() + INTERVAL_S
        self._timer = loop.call_later(INTERVAL_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._due is None:
            return
        now = self._clock()
        self._note(now, now - self._due)
        self._schedule(loop)

    def _note(self, now: float, lag_s: float) -> None:
        second = int(now)
        at, before = self._largest[second % WINDOW_S]
        largest = max(before, lag_s) if at == second else lag_s
        self._largest[second % WINDOW_S] = (second, largest)
