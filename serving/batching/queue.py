"""The queue of one model: its limits, its order, how long images wait, how they are answered.

The limits include Triton's ``dynamic_batching``, by which a batcher schedules. A priority level
goes before those below it; within a level, images that have outwaited a DELAY policy go behind
those that have not; among equals, first in is first out.

Source: triton-inference-server/common protobuf/model_config.proto, ``ModelDynamicBatching`` and
``ModelQueuePolicy``; Triton's docs/user_guide/batcher.md.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.errors import DeadlineExceeded, SegserveError
from serving.imaging.restore import Prediction

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class QueuePolicy:
    """A ``ModelQueuePolicy``: what happens to the images that wait at one priority level.

    Attributes:
        field: the policy's own name in the configuration, for error texts.
        max_size: images that may wait at the level; 0 sets no limit.
        timeout_s: how long an image waits at most; 0 sets no limit.
        delays: an image that has waited so long goes behind the others (DELAY), instead of
            being refused (REJECT).
        allows_override: a request may set a shorter timeout.
    """

    field: str = "default_queue_policy"
    max_size: int = 0
    timeout_s: float = 0.0
    delays: bool = False
    allows_override: bool = False

    def choose_timeout_s(self, asked_s: float | None) -> float | None:
        """Returns the wait that the policy acts upon, None where there is none.

        ``asked_s`` is the request's parameter ``timeout``: it counts where the policy has no
        timeout, or allows to override it, and then only if it is shorter.
        """
        if not self.timeout_s:
            return asked_s
        if asked_s is None or not self.allows_override:
            return self.timeout_s
        return min(self.timeout_s, asked_s)


@dataclass(frozen=True)
class Scheduling:
    """A ``ModelDynamicBatching``: how images wait, in which order, and how many run together.

    Attributes:
        delay_s: the batching delay: how long the oldest image waits for others to share its run.
        preferred_sizes: ascending; none means that only a full batch goes at once.
        preserve_ordering: answers leave in the order in which the images came.
        priority_levels: 1 goes first; 0 means that all are equal.
        default_level: of requests that name no level, or one that is not there.
        default_policy: of levels that ``policies`` does not name.
    """

    delay_s: float = 0.0
    preferred_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_level: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    @property
    def first_level(self) -> int:
        """Returns the level that goes before all others."""
        return min(1, self.priority_levels)

    def level(self, priority: int) -> int:
        """Returns the level of a request's priority; 0 and unknown ones have the default level."""
        return priority if 1 <= priority <= self.priority_levels else self.default_level

    def policy(self, level: int) -> QueuePolicy:
        """Returns the policy of a level."""
        return self.policies.get(level, self.default_policy)

    def choose_size(self, waiting: int, max_batch_size: int, *, has_waited: bool) -> int:
        """Returns how many of ``waiting`` images run now; 0 during the batching delay.

        The largest preferred size that can be had goes at once; else, once the oldest image has
        waited ``delay_s`` (``has_waited``), whatever is there.
        """
        sizes = self.preferred_sizes or (max_batch_size,)
        possible = [size for size in sizes if size <= waiting]
        if possible:
            return possible[-1]
        return min(waiting, max_batch_size) if has_waited else 0


@dataclass(frozen=True)
class BatchLimits:
    """The bounds of a queue, over all its levels, and of the engine behind it.

    Attributes:
        max_queue_size: images that wait.
        max_queue_bytes: of their pixels.
        queue_timeout_ms: no image waits longer, whatever its policy.
        scheduling: the model's own ``dynamic_batching``.
        shed_late: refuse an image at once that would be answered after its deadline.
        max_failures: failed runs in a row after which the engine counts as broken.
        run_timeout_s: a run that takes longer is stuck: the engine counts as broken.
    """

    max_queue_size: int
    max_queue_bytes: int
    queue_timeout_ms: float
    scheduling: Scheduling = field(default_factory=Scheduling)
    shed_late: bool = False
    max_failures: int = 3
    run_timeout_s: float = 300.0


@dataclass(frozen=True)
class Inferred:
    """The prediction of one image, and where its time went, in seconds."""

    prediction: Prediction
    queue_seconds: float
    infer_seconds: float
    batch_size: int


@dataclass(frozen=True)
class Execution:
    """A run of an engine that succeeded: its images, and where its time went, in seconds."""

    size: int
    input_seconds: float
    infer_seconds: float
    output_seconds: float


class BatchObserver(Protocol):
    """An observer of a batcher; it is called on the event loop."""

    def queue_changed(self, length: int) -> None: ...

    def batch_done(self, execution: Execution) -> None: ...

    def rejected(self, reason: str) -> None: ...

    def engine_failed(self, kind: str) -> None:
        """Reports a run that gave an image no answer; ``kind`` is one of ``ENGINE_FAILURES``."""
        ...


@dataclass(eq=False)
class Item:
    """An image that waits; its position in the queue follows from ``key``.

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
        """Stops its timers: it waits no longer."""
        for timer in self.timers:
            timer.cancel()


def _key(item: Item) -> tuple[int, bool, int]:
    return item.key


class RequestQueue:
    """A queue of the images that wait for one model."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.bytes = 0
        self._items: list[Item] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def oldest(self) -> float:
        """Returns when the image that has waited longest arrived; the queue must not be empty."""
        return min(item.arrived for item in self._items)

    def count_before(self, level: int | None) -> int:
        """Counts the images that run before one that comes to ``level`` now; None: the first."""
        if level is None:
            level = self.limits.scheduling.first_level
        return bisect_left(self._items, (level, True, 0), key=_key)

    def find_lack(self, size: int, level: int | None, reserved: int = 0) -> tuple[str, str] | None:
        """Returns why an image of ``size`` bytes has no room: a reason for metrics, and a text.

        None means that it has. ``reserved`` others will be there before it; with ``level`` None
        the limits of the levels' own policies are left out.
        """
        limits = self.limits
        if len(self) + reserved >= limits.max_queue_size:
            return "queue_size", (
                f"{len(self) + reserved} images wait already (setting max_queue_size)"
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
        """Removes an item; returns False where it was removed before."""
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


class Answers:
    """The answers to items, with ``preserve_ordering`` in the order in which these came.

    An item whose caller has left is passed over.
    """

    def __init__(self, *, preserve_ordering: bool) -> None:
        self._ordered = preserve_ordering
        self._expected: deque[Item] = deque()
        self._finished: dict[Item, Inferred | SegserveError] = {}

    def expect(self, item: Item) -> None:
        """Adds an item that has entered the queue."""
        if self._ordered:
            self._expected.append(item)

    def answer(self, item: Item, result: Inferred | SegserveError) -> None:
        """Answers an item, or holds the answer back until earlier requests have theirs."""
        # What nobody waits for is not kept: no later release would find it.
        if self._ordered and not item.future.done():
            self._finished[item] = result
            self.release()
        else:
            _set(item, result)

    def fail(self, items: Sequence[Item], error: SegserveError) -> None:
        """Answers all items with the same error."""
        for item in items:
            self.answer(item, error)

    def release(self) -> None:
        """Sets the answers that need not be held back any more."""
        while self._expected:
            item = self._expected[0]
            if not item.future.done():
                if item not in self._finished:
                    return
                _set(item, self._finished[item])
            self._finished.pop(item, None)
            self._expected.popleft()


def _set(item: Item, result: Inferred | SegserveError) -> None:
    if item.future.done():
        return
    if isinstance(result, SegserveError):
        item.future.set_exception(result)
    else:
        item.future.set_result(result)


class WaitLimits:
    """Timers that end an image's wait, or put it back, also while the engine is busy.

    Args:
        on_removed: called after an image was taken out of the queue.
    """

    def __init__(
        self,
        queue: RequestQueue,
        limits: BatchLimits,
        observer: BatchObserver,
        on_removed: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.limits = limits
        self.observer = observer
        self.on_removed = on_removed

    def start(
        self,
        item: Item,
        policy: QueuePolicy,
        timeout_s: float | None,
        policy_timeout_s: float | None,
    ) -> None:
        """Starts an image's timers: the server's, the caller's, and that of its level's policy."""
        self._end_after(item, self.limits.queue_timeout_ms / 1000.0, "setting queue_timeout_ms")
        if timeout_s is not None:
            self._end_after(item, timeout_s, "the request's own deadline")
        if policy_timeout_s is not None and policy.delays:
            loop = asyncio.get_running_loop()
            item.timers.append(loop.call_later(policy_timeout_s, self._delay, item))
        elif policy_timeout_s is not None:
            source = "the request's own deadline"
            if policy_timeout_s == policy.timeout_s:
                source = f"dynamic_batching.{policy.field}.default_timeout_microseconds"
            self._end_after(item, policy_timeout_s, source)

    def _end_after(self, item: Item, seconds: float, source: str) -> None:
        loop = asyncio.get_running_loop()
        item.timers.append(loop.call_later(seconds, self._end, item, seconds, source))

    def _end(self, item: Item, seconds: float, source: str) -> None:
        if not self.queue.remove(item):
            return
        self.on_removed()
        if not item.future.done():
            self.observer.rejected("deadline")
            text = f"no engine was free within {seconds * 1000:.0f} ms ({source})"
            item.future.set_exception(DeadlineExceeded(text))

    def _delay(self, item: Item) -> None:
        if not item.future.done():
            self.queue.delay(item)
