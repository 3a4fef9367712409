"""Takes batches from a queue and runs them: one worker an instance of the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serving.batching.admission import QueueAdmission
from serving.batching.batch import BatchLimits, BatchObserver, Execution, Inferred
from serving.batching.engine_runner import (
    Batch,
    EngineSlot,
    EngineThread,
    EngineThreadDied,
    Run,
    infer,
)
from serving.batching.queue import Answers, RequestQueue
from serving.errors import EngineFailed, SegserveError

log = logging.getLogger("segserve")

_THREAD_RETRY_S = 1.0
_NOT_FINITE = (
    "the network's logits are not finite (NaN or infinity); its weights or its precision are at "
    "fault"
)


class Workers:
    """Workers that run what waits in ``queue`` on the engine of ``slot``, and answer it.

    Attributes:
        idle: set while nothing waits and nothing is running.
    """

    def __init__(
        self,
        slot: EngineSlot,
        queue: RequestQueue,
        admission: QueueAdmission,
        answers: Answers,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self._slot = slot
        self._queue = queue
        self._admission = admission
        self._answers = answers
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._arrival = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts them, on the running event loop."""
        instances = self._slot.engine.spec.instances
        self._tasks = [asyncio.create_task(self._work()) for _ in range(instances)]

    async def stop(self) -> None:
        """Ends them; runs under way are left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def note_arrival(self) -> None:
        """Wakes a worker: an image has entered the queue."""
        self.idle.clear()
        self._observer.queue_changed(len(self._queue))
        self._arrival.set()

    def note_queue(self) -> None:
        """Reports that the queue has become shorter, or a batch has ended."""
        self._observer.queue_changed(len(self._queue))
        if not self._queue and not self._slot.batches:
            self.idle.set()

    async def _work(self) -> None:
        thread = await _start_thread()
        try:
            while True:
                await self._slot.healthy.wait()
                size = await self._wait_for_batch()
                if self._slot.broken is not None:
                    continue
                batch = Batch(self._admission.take(size), self._clock())
                # Running before the queue is noted: a drain must see the images in one of the two.
                self._slot.begin(batch)
                is_alive = True
                try:
                    is_alive = not batch.items or await self._run(batch, thread)
                finally:
                    self._slot.end(batch)
                    self.note_queue()
                if not is_alive:
                    thread.stop()
                    thread = await _start_thread()
        finally:
            thread.stop()

    async def _wait_for_batch(self) -> int:
        """Waits for a preferred size, or until the oldest image has waited ``delay_s``."""
        scheduling = self._limits.scheduling
        while True:
            self._arrival.clear()
            left: float | None = None
            if self._queue:
                left = self._queue.oldest + scheduling.delay_s - self._clock()
                largest = self._slot.engine.spec.max_batch_size
                size = scheduling.choose_size(len(self._queue), largest, has_waited=left <= 0.0)
                if size:
                    return size
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except asyncio.TimeoutError:
                continue

    async def _run(self, batch: Batch, thread: EngineThread[Run]) -> bool:
        """Runs a batch and answers it; returns whether ``thread`` can be used again."""
        engine, items = self._slot.engine, batch.items
        self._observer.queue_changed(len(self._queue))
        running = thread.call(lambda: infer(engine, items, self._clock))
        try:
            run = await asyncio.wait_for(asyncio.shield(running), self._limits.run_timeout_s)
        except asyncio.TimeoutError:
            self._slot.leave_behind(running, engine)
            self._observer.engine_failed("timeout")
            why = f"a run did not end within {self._limits.run_timeout_s:g} s"
            self._answers.fail(items, EngineFailed(f"{why} (setting engine_timeout_s)"))
            self._slot.give_up(engine, why)
            return False
        except EngineThreadDied as error:
            self._observer.engine_failed("died")
            self._answers.fail(items, EngineFailed(f"the engine's thread ended: {error}"))
            self._slot.give_up(engine, f"its thread ended: {error}")
            return False
        except Exception as error:
            if not isinstance(error, SegserveError):
                error = EngineFailed(f"inference failed: {type(error).__name__}: {error}")
            self._answers.fail(items, error)
            if isinstance(error, EngineFailed):
                self._observer.engine_failed(error.kind)
                self._slot.count_failure(engine, str(error))
            return True
        if run.not_finite:
            self._observer.engine_failed("not_finite")
        if len(run.not_finite) == len(items):
            self._slot.count_failure(engine, _NOT_FINITE)
        else:
            self._slot.count_success(engine)
        spent = self._clock() - batch.start
        self._admission.costs.learn(len(items), spent)
        for index, item in enumerate(items):
            queued = batch.start - item.arrived
            if index in run.not_finite:
                # The others of the batch get their answers: one picture can overflow fp16 alone.
                self._answers.give(item, EngineFailed(_NOT_FINITE, kind="not_finite"))
                continue
            answer = Inferred(run.prediction[index], queued, spent, len(items))
            self._answers.give(item, answer)
        handed_out = self._clock() - batch.start - spent
        assembled = run.assembled_s
        self._observer.batch_done(Execution(len(items), assembled, spent - assembled, handed_out))
        return True


async def _start_thread() -> EngineThread[Run]:
    """Returns a thread for the engine; tries again for as long as the system refuses one."""
    while True:
        try:
            return EngineThread("engine")
        except RuntimeError as error:
            log.error("no thread for the engine: %s; trying again", error)
            await asyncio.sleep(_THREAD_RETRY_S)
