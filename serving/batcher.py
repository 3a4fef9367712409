"""The dynamic batcher, the only scheduler between requests and an engine.

An image waits in one queue until an instance is free; the instance takes what is there, up to the
engine's ``max_batch_size``, after at most ``delay_ms`` more of waiting for company. The queue is
bounded by count and by bytes. The future lives in the queue item and is asked whether it is done
before it is set, so a caller who leaves, or whose deadline passes, never disturbs its batch mates.

Everything here runs on one event loop; only ``engine.run`` is on threads of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.engine import Engine, Prediction
from serving.errors import DeadlineExceeded, EngineFailed, NotReady, QueueFull, SegserveError

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a queue; ``delay_ms`` is Triton's ``max_queue_delay_microseconds`` / 1000."""

    max_queue_size: int
    max_queue_bytes: int
    queue_timeout_ms: float
    delay_ms: float = 0.0


@dataclass(frozen=True)
class Inferred:
    """One image's prediction, and where its time went, in seconds."""

    prediction: Prediction
    queue_seconds: float
    infer_seconds: float
    batch_size: int


class BatchObserver(Protocol):
    """Is told what the batcher does; calls come on the event loop."""

    def queue_changed(self, length: int) -> None: ...

    def batch_done(self, size: int) -> None: ...

    def rejected(self, reason: str) -> None: ...


@dataclass(eq=False)
class _Item:
    image: Image
    arrived: float
    future: asyncio.Future[Inferred]
    timer: asyncio.TimerHandle | None = field(default=None)


class Batcher:
    """Batches single images for one engine. Create it, ``start()`` it, ``await drain()`` it."""

    def __init__(
        self,
        engine: Engine,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.observer = observer
        self.clock = clock
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._arrival = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0
        self._closing = False
        self._workers: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(engine.spec.instances, "engine")

    def start(self) -> None:
        """Starts one worker an instance, on the running event loop."""
        self._workers = [
            asyncio.create_task(self._work()) for _ in range(self.engine.spec.instances)
        ]

    async def submit(self, image: Image, *, timeout_s: float | None = None) -> Inferred:
        """Infers one image, uint8 ``[H,W,3]`` of the engine's size.

        Args:
            timeout_s: gives up earlier than the queue timeout would.

        Raises:
            QueueFull: by count or bytes; the message names the setting.
            DeadlineExceeded: no instance took the image in time.
            EngineFailed: the run that held it raised.
            NotReady: the batcher is closing.
        """
        if self._closing:
            raise NotReady("the model is being unloaded; try again shortly")
        wait = self.limits.queue_timeout_ms / 1000.0
        if timeout_s is not None:
            wait = min(wait, timeout_s)
        if wait <= 0.0:
            self.observer.rejected("deadline")
            raise DeadlineExceeded("the deadline had passed before the image reached the queue")
        self._check_room(image.nbytes)
        loop = asyncio.get_running_loop()
        item = _Item(image, self.clock(), loop.create_future())
        item.timer = loop.call_later(wait, self._expire, item, wait)
        self._queue.append(item)
        self._queued_bytes += image.nbytes
        self._idle.clear()
        self.observer.queue_changed(len(self._queue))
        self._arrival.set()
        try:
            return await item.future
        finally:
            # A caller that was cancelled leaves its place in the queue.
            self._remove(item)

    def _check_room(self, size: int) -> None:
        if len(self._queue) >= self.limits.max_queue_size:
            self.observer.rejected("queue_size")
            raise QueueFull(
                f"{len(self._queue)} images wait already (setting max_queue_size); try again later"
            )
        if self._queued_bytes + size > self.limits.max_queue_bytes:
            self.observer.rejected("queue_bytes")
            raise QueueFull(
                f"{self._queued_bytes} bytes wait already (setting max_queue_bytes); "
                f"try again later"
            )

    def _expire(self, item: _Item, waited: float) -> None:
        if self._remove(item) and not item.future.done():
            self.observer.rejected("deadline")
            item.future.set_exception(
                DeadlineExceeded(
                    f"no engine was free within {waited * 1000:.0f} ms (setting queue_timeout_ms, "
                    f"or the request's own deadline)"
                )
            )

    def _remove(self, item: _Item) -> bool:
        """Takes an item out of the queue; False where a worker has it already."""
        if item.timer is not None:
            item.timer.cancel()
        try:
            self._queue.remove(item)
        except ValueError:
            return False
        self._queued_bytes -= item.image.nbytes
        self._note_queue()
        return True

    def _note_queue(self) -> None:
        self.observer.queue_changed(len(self._queue))
        if not self._queue and not self._running:
            self._idle.set()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._arrival.clear()
                await self._arrival.wait()
            if self.limits.delay_ms and len(self._queue) < self.engine.spec.max_batch_size:
                await self._wait_for_company()
            # Counted as running before the queue is emptied: a drain must not see neither.
            self._running += 1
            try:
                items = self._take()
                if items:
                    await self._run(items)
            finally:
                self._running -= 1
                self._note_queue()

    async def _wait_for_company(self) -> None:
        """Until the batch is full, or its oldest image has waited ``delay_ms``."""
        while self._queue and len(self._queue) < self.engine.spec.max_batch_size:
            left = self._queue[0].arrived + self.limits.delay_ms / 1000.0 - self.clock()
            if left <= 0:
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[_Item]:
        items: list[_Item] = []
        while self._queue and len(items) < self.engine.spec.max_batch_size:
            item = self._queue.popleft()
            self._queued_bytes -= item.image.nbytes
            if item.timer is not None:
                item.timer.cancel()
            if not item.future.done():
                items.append(item)
        self._note_queue()
        return items

    async def _run(self, items: Sequence[_Item]) -> None:
        loop = asyncio.get_running_loop()
        start = self.clock()
        try:
            prediction = await loop.run_in_executor(self._threads, self._infer, items)
        except SegserveError as error:
            self._fail(items, error)
            return
        except Exception as error:
            self._fail(items, EngineFailed(f"inference failed: {type(error).__name__}: {error}"))
            return
        spent = self.clock() - start
        self.observer.batch_done(len(items))
        for index, item in enumerate(items):
            if not item.future.done():
                item.future.set_result(
                    Inferred(prediction[index], start - item.arrived, spent, len(items))
                )

    def _infer(self, items: Sequence[_Item]) -> Prediction:
        if len(items) == 1:
            return self.engine.run(items[0].image[None])
        return self.engine.run(np.stack([item.image for item in items]))

    @staticmethod
    def _fail(items: Sequence[_Item], error: SegserveError) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_exception(error)

    async def drain(self) -> None:
        """Takes no more images, answers those it has, frees the engine."""
        self._closing = True
        await self._idle.wait()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown(wait=True)
        self.engine.close()
