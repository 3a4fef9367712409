"""Images that wait for an engine, in the order in which they will run, bounded by count and bytes.

A priority level goes before those below it; within a level, images that have outwaited a DELAY
policy go behind those that have not; among equals, first in is first out.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from serving.batching.batch import BatchLimits, Inferred

Image = npt.NDArray[np.uint8]


@dataclass(eq=False)
class Item:
    """One image that waits; its place in the queue follows from ``key``.

    ``deadline`` is when it must have been inferred for its caller's, on the batcher's clock.
    """

    image: Image
    arrived: float
    future: asyncio.Future[Inferred]
    level: int
    number: int
    labels_suffice: bool = False
    delayed: bool = False
    deadline: float | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, bool, int]:
        return self.level, self.delayed, self.number

    def stop_timers(self) -> None:
        """It waits no longer."""
        for timer in self.timers:
            timer.cancel()


def _key(item: Item) -> tuple[int, bool, int]:
    return item.key


class RequestQueue:
    """The waiting images of one model."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.bytes = 0
        self._items: list[Item] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def oldest(self) -> float:
        """When the image that has waited longest arrived; the queue is not empty."""
        return min(item.arrived for item in self._items)

    def count_before(self, level: int | None) -> int:
        """Images that run before one that comes to ``level`` now; None: to the first level."""
        if level is None:
            level = self.limits.scheduling.first_level
        return bisect_left(self._items, (level, True, 0), key=_key)

    def find_lack(self, size: int, level: int | None, coming: int = 0) -> tuple[str, str] | None:
        """Why an image of ``size`` bytes has no room: a reason for metrics, and the error's text;
        None where it has. ``coming`` others will be there before it; with ``level`` None what the
        levels' own policies say is left out."""
        limits = self.limits
        if len(self) + coming >= limits.max_queue_size:
            return "queue_size", (
                f"{len(self) + coming} images wait already (setting max_queue_size)"
            )
        if level is not None and (policy := limits.scheduling.policy(level)).max_size:
            waiting = sum(item.level == level for item in self._items)
            if waiting >= policy.max_size:
                setting = f"dynamic_batching.{policy.field}.max_queue_size"
                return "policy_queue_size", f"{waiting} images wait already ({setting})"
        if self.bytes + size > limits.max_queue_bytes:
            return "queue_bytes", f"{self.bytes} bytes wait already (setting max_queue_bytes)"
        return None

    def add(self, image: Image, arrived: float, level: int) -> Item:
        """Puts an image behind all that go before it; ``find_lack`` was asked before."""
        future: asyncio.Future[Inferred] = asyncio.get_running_loop().create_future()
        item = Item(image, arrived, future, level, next(self._numbers))
        insort(self._items, item, key=_key)
        self.bytes += image.nbytes
        return item

    def delay(self, item: Item) -> None:
        """Puts an item that waits behind its level's others that have not outwaited theirs."""
        self._items.remove(item)
        item.delayed = True
        insort(self._items, item, key=_key)

    def remove(self, item: Item) -> bool:
        """Takes an item out; False where it is out already."""
        item.stop_timers()
        if item not in self._items:
            return False
        self._items.remove(item)
        self.bytes -= item.image.nbytes
        return True

    def take(self, size: int) -> list[Item]:
        """Takes the first ``size`` items that somebody still waits for."""
        taken: list[Item] = []
        while self._items and len(taken) < size:
            item = self._items[0]
            self.remove(item)
            if not item.future.done():
                taken.append(item)
        return taken
