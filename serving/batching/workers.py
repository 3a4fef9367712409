"""What takes batches from a queue: one worker an instance of the engine, on one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from serving.batching.admission import Admission, EngineLoad
from serving.batching.answers import Answers
from serving.batching.assembly import Run, infer
from serving.batching.batch import BatchLimits, BatchObserver, Execution, Inferred
from serving.batching.cost_model import CostModel
from serving.batching.engine_slot import EngineSlot
from serving.batching.engine_thread import EngineThread, EngineThreadDied
from serving.batching.request_queue import Item, RequestQueue
from serving.errors import EngineFailed, SegserveError

log = logging.getLogger("segserve")

_THREAD_RETRY_S = 1.0
_NOT_FINITE = (
    "the network's logits are not finite (NaN or infinity); its weights or its precision are at "
    "fault"
)


@dataclass(eq=False)
class _Batch:
    items: list[Item]
    start: float


class Workers:
    """Run what waits in ``queue`` on the engine of ``slot``, and answer it.

    Attributes:
        idle: set while nothing waits and nothing is at work.
    """

    def __init__(
        self,
        slot: EngineSlot,
        queue: RequestQueue,
        answers: Answers,
        costs: CostModel,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self._slot = slot
        self._queue = queue
        self._answers = answers
        self._costs = costs
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._arrival = asyncio.Event()
        self._at_work: list[_Batch] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def items(self) -> list[Item]:
        """All images at work."""
        return [item for batch in self._at_work for item in batch.items]

    def read_load(self) -> EngineLoad:
        """What the engine does now."""
        now, spec = self._clock(), self._slot.engine.spec
        running = tuple((len(batch.items), now - batch.start) for batch in self._at_work)
        return EngineLoad(running, spec.instances, spec.max_batch_size)

    def start(self, admission: Admission) -> None:
        """Starts them, on the running event loop; ``admission`` says what a batch is made of."""
        self._tasks = [
            asyncio.create_task(self._work(admission))
            for _ in range(self._slot.engine.spec.instances)
        ]

    async def stop(self) -> None:
        """Ends them; runs under way are left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell_arrival(self) -> None:
        """An image entered the queue."""
        self.idle.clear()
        self._observer.queue_changed(len(self._queue))
        self._arrival.set()

    def note_queue(self) -> None:
        """The queue has become shorter, or a batch has ended."""
        self._observer.queue_changed(len(self._queue))
        if not self._queue and not self._at_work:
            self.idle.set()

    async def _work(self, admission: Admission) -> None:
        thread = await _start_thread()
        try:
            while True:
                await self._slot.usable.wait()
                size = await self._wait_for_batch()
                if self._slot.broken is not None:
                    continue
                batch = _Batch(admission.take(size), self._clock())
                # At work before the queue is noted: a drain must not see neither.
                self._at_work.append(batch)
                self._slot.calm.clear()
                lives = True
                try:
                    lives = not batch.items or await self._run(batch, thread)
                finally:
                    self._at_work.remove(batch)
                    if not self._at_work:
                        self._slot.calm.set()
                    self.note_queue()
                if not lives:
                    thread.stop()
                    thread = await _start_thread()
        finally:
            thread.stop()

    async def _wait_for_batch(self) -> int:
        """Until a preferred size is there, or the oldest image has waited ``delay_s``."""
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

    async def _run(self, batch: _Batch, thread: EngineThread[Run]) -> bool:
        """Runs a batch and answers it; False where ``thread`` is of no more use."""
        engine, items = self._slot.engine, batch.items
        self._observer.queue_changed(len(self._queue))
        call = thread.call(lambda: infer(engine, items, self._clock))
        try:
            run = await asyncio.wait_for(asyncio.shield(call), self._limits.run_timeout_s)
        except asyncio.TimeoutError:
            self._slot.leave_behind(call, engine)
            self._slot.report_failure("timeout")
            why = f"a run did not end within {self._limits.run_timeout_s:g} s"
            self._answers.fail(items, EngineFailed(f"{why} (setting engine_timeout_s)"))
            self._slot.give_up(engine, why)
            return False
        except EngineThreadDied as error:
            self._slot.report_failure("died")
            self._answers.fail(items, EngineFailed(f"the engine's thread ended: {error}"))
            self._slot.give_up(engine, f"its thread ended: {error}")
            return False
        except Exception as error:
            if not isinstance(error, SegserveError):
                error = EngineFailed(f"inference failed: {type(error).__name__}: {error}")
            self._answers.fail(items, error)
            if isinstance(error, EngineFailed):
                self._slot.report_failure(error.kind)
                self._slot.count_failure(engine, str(error))
            return True
        if run.not_finite:
            self._slot.report_failure("not_finite")
        if len(run.not_finite) == len(items):
            self._slot.count_failure(engine, _NOT_FINITE)
        else:
            self._slot.count_success(engine)
        spent = self._clock() - batch.start
        self._costs.learn(len(items), spent)
        for index, item in enumerate(items):
            queued = batch.start - item.arrived
            if index in run.not_finite:
                # Its batch mates have their answers: one picture can overflow fp16 alone.
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
