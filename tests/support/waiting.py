"""Waits for what another thread or process will do, however slow the machine is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
# Time-outs of clients: what they end fails, a pass never takes them.
SECONDS = 60.0
# What never comes fails then, a pass never takes it. Other processes may have to start first, what
# an event loop of this one waits for is there at once. On a busy machine all of it is longer.
WAIT_SECONDS = 20.0
LOOP_SECONDS = 10.0
# How much of a core a process that starts or works has at the least while others do.
SLOWEST = 8.0


def stretched(seconds: float) -> float:
    """What takes ``seconds`` on an idle machine, at the load that this one has had of late."""
    load = max(os.getloadavg()[:2]) / (os.cpu_count() or 1)
    return seconds * min(max(1.0, load), SLOWEST)


def wait_for(condition: Callable[[], Found], seconds: float = WAIT_SECONDS) -> Found:
    """What ``condition()`` gives once it holds.

    Raises:
        AssertionError: it does not within ``seconds`` of an idle machine; the message shows what it
            gave last.
    """
    start = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - start
        # The load, which may have come meanwhile, counts only once the time is up.
        assert waited < seconds or waited < stretched(seconds), (
            f"not within {waited:.1f} s; last: {found!r}"
        )
        time.sleep(0.005)
    return found


async def until(condition: Callable[[], object], seconds: float = LOOP_SECONDS) -> None:
    """The same on an event loop, which goes on meanwhile."""
    start = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - start
        assert waited < seconds or waited < stretched(seconds), (
            f"not within {waited:.1f} s; last: {found!r}"
        )
        await asyncio.sleep(0.002)
