"""Waits for what another thread or process will do, however slow the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
# What never comes fails then; a pass never takes it. Other processes may have to start first, what
# an event loop of this one waits for is there at once, or late on a busy machine.
SECONDS = 60.0
LOOP_SECONDS = 20.0


def wait_for(condition: Callable[[], Found], seconds: float = SECONDS) -> Found:
    """What ``condition()`` gives once it holds.

    Raises:
        AssertionError: it does not within ``seconds``; the message shows what it gave last.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s; last: {found!r}"
        time.sleep(0.005)
    return found


async def until(condition: Callable[[], object], seconds: float = LOOP_SECONDS) -> None:
    """The same on an event loop, which goes on meanwhile."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s; last: {found!r}"
        await asyncio.sleep(0.002)
