"""How long an image may wait in a queue: timers, which fire while the engine is busy too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.batching.batch import BatchLimits, BatchObserver
from serving.batching.queue_policy import QueuePolicy
from serving.batching.request_queue import Item, RequestQueue
from serving.errors import DeadlineExceeded


class WaitLimits:
    """Ends the wait of an image, or puts it back, when its time has passed.

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
        """Starts an image's timers; the server's own, the caller's, and its level's policy's."""
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
