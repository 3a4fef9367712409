"""Slows refusals down once they come in floods, so that they leave time for answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# A refusal waits no longer: many clients give up after five seconds, and would come back.
MAX_DELAY_S = 4.0
# Refusals that come at once, in seconds of the rate.
BURST_S = 1.0


class RefusalPacer:
    """Lets refusals leave at a bounded rate; the first of a burst are not held at all.

    A caller that asks again as soon as it is refused, whatever Retry-After says, gets its next
    refusal only after this one: who waits for a refusal does not ask meanwhile. So callers in a
    closed loop cannot spend more of the server's time on refusals than the rate allows, however
    many they are. Those that are held take a connection each and nothing more.

    Args:
        per_second: refusals that leave without delay.
        clock: seconds, as ``time.monotonic``.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1.0 / per_second
        self._clock = clock
        # When the bucket, which holds BURST_S, would be full again.
        self._due = clock()

    def reserve(self, longest_s: float) -> float:
        """Counts a refusal; returns the seconds that it has to wait, at most ``longest_s``."""
        now = self._clock()
        longest_s = min(longest_s, MAX_DELAY_S)
        delay_s = max(0.0, self._due - now - BURST_S)
        self._due = max(self._due, now) + self._interval_s
        # A flood that would have to wait longer leaves no debt behind.
        self._due = min(self._due, now + BURST_S + MAX_DELAY_S)
        return min(delay_s, longest_s)

    async def wait(self, longest_s: float) -> None:
        """Counts a refusal, and returns when it may leave."""
        delay_s = self.reserve(longest_s)
        if delay_s > 0.0:
            await asyncio.sleep(delay_s)
