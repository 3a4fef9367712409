"""The dynamic batcher, the only scheduler between requests and an engine.

An image waits in one queue until an instance is free; the instance takes as many as the model's
``dynamic_batching`` says. The future lives in the queue item and is only set if it is not done, so
a caller who leaves, or whose deadline passes, never disturbs the others of its batch.

Where the engine breaks (``batching/engine_runner.py``), what waits keeps waiting for the next one.

Everything here runs on one event loop; only ``engine.run`` is on threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serving.batching.admission import CostModel, QueueAdmission, Reservation
from serving.batching.engine_runner import (
    Batch,
    EngineSlot,
    EngineThread,
    EngineThreadDied,
    Run,
    infer,
)
from serving.batching.queue import (
    Answers,
    BatchLimits,
    BatchObserver,
    Execution,
    Inferred,
    RequestQueue,
    WaitLimits,
)
from serving.engine import Engine
from serving.errors import DeadlineExceeded, EngineFailed, NotReady, SegserveError

Image = npt.NDArray[np.uint8]

log = logging.getLogger("segserve")

_THREAD_RETRY_S = 1.0
_NOT_FINITE = (
    "the network's logits are not finite (NaN or infinity); its weights or its precision are at "
    "fault"
)


class Batcher:
    """A batcher of single images for one engine. Create it, ``start()`` it, ``await drain()`` it.

    Args:
        on_broken: called once when the engine breaks, with the reason.
    """

    def __init__(
        self,
        engine: Engine,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float],
        on_broken: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.limits = limits
        self.observer = observer
        self._slot = EngineSlot(engine, limits.max_failures, on_broken)
        self._queue = RequestQueue(limits)
        self._admission = QueueAdmission(self._queue, self._slot, limits, observer, clock)
        self._answers = Answers(preserve_ordering=limits.scheduling.preserve_ordering)
        self._workers = Workers(
            self._slot, self._queue, self._admission, self._answers, limits, observer, clock
        )
        self._waits = WaitLimits(self._queue, limits, observer, self._workers.note_queue)
        self._closing = False

    @property
    def engine(self) -> Engine:
        """Returns the one that images go to now."""
        return self._slot.engine

    @property
    def broken(self) -> str | None:
        """Returns why the engine has to be replaced; None while it works."""
        return self._slot.broken

    @property
    def costs(self) -> CostModel:
        """Returns what has been learnt of the times of batches."""
        return self._admission.costs

    @property
    def waiting(self) -> int:
        """Returns how many images are in the queue."""
        return len(self._queue)

    def is_closing(self) -> bool:
        """Returns whether it takes no more images."""
        return self._closing

    def start(self) -> None:
        """Starts one worker an instance, on the running event loop."""
        self._workers.start()

    async def submit(
        self,
        image: Image,
        *,
        timeout_s: float | None = None,
        policy_timeout_s: float | None = None,
        priority: int = 0,
        answer_s: float = 0.0,
        reservation: Reservation | None = None,
        labels_suffice: bool = False,
    ) -> Inferred:
        """Infers one image, uint8 ``[H,W,3]`` of the engine's size.

        Args:
            timeout_s: the caller's own deadline.
            policy_timeout_s: the request's parameter ``timeout``, which the level's queue policy
                may not allow, or may answer by a delay.
            priority: 1 goes first; 0 is the model's default.
            answer_s: the part of ``timeout_s`` that the caller needs afterwards, for its answer.
            reservation: what :meth:`reserve` returned for the image, or for the image that it is a
                view of; released here. Without one it is made here.
            labels_suffice: a ``mask`` is enough where the engine would return ``logits``; it may
                return these all the same.

        Raises:
            QueueFull: by count or bytes; the message names the setting.
            PredictedLate: it would be answered after its deadline (``shed_late``).
            DeadlineExceeded: no instance took the image in time.
            EngineFailed: the run that held it raised, or did not end.
            NotReady: the batcher is closing.
        """
        level = self.limits.scheduling.level(priority)
        policy = self.limits.scheduling.policy(level)
        policy_timeout_s = policy.choose_timeout_s(policy_timeout_s)
        deadlines = [timeout_s, None if policy.delays else policy_timeout_s]
        deadline_s = min((d for d in deadlines if d is not None), default=None)
        self._check_open(deadline_s)
        if reservation is None:
            # The policy's timeout, as Triton's, is about the wait alone: nothing is predicted.
            reservation = self._admission.reserve(image.nbytes, level, timeout_s, answer_s)
        item = self._admission.enter(image, level, reservation)
        if timeout_s is not None:
            item.deadline = item.arrived + timeout_s - answer_s
        item.labels_suffice = labels_suffice
        self._answers.expect(item)
        self._waits.start(item, policy, timeout_s, policy_timeout_s)
        self._workers.note_arrival()
        try:
            return await item.future
        finally:
            # A caller that was cancelled leaves the queue.
            if self._queue.remove(item):
                self._workers.note_queue()
            self._answers.release()

    def reserve(
        self,
        size: int,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        answer_s: float = 0.0,
    ) -> Reservation:
        """Reserves room for an image of ``size`` bytes before it is decoded: what is refused then
        costs nothing. Give the reservation to :meth:`submit`, or release it.

        Raises:
            SegserveError: as ``submit``, whose arguments these are.
        """
        self._check_open(timeout_s)
        level = self.limits.scheduling.level(priority)
        return self._admission.reserve(size, level, timeout_s, answer_s)

    def check(
        self, size: int, *, timeout_s: float | None, priority: int | None, answer_s: float
    ) -> None:
        """Checks whether :meth:`reserve` would refuse now.

        Args:
            priority: None where it is not known yet: then only what holds for each counts.

        Raises:
            SegserveError: as ``reserve``, whose other arguments these are; a deadline that has
                passed is not an error here.
        """
        self._check_open(None)
        scheduling = self.limits.scheduling
        if priority is None and scheduling.priority_levels <= 1:
            priority = 0
        level = None if priority is None else scheduling.level(priority)
        self._admission.check(size, level, timeout_s, answer_s)

    def check_time(self, images: int, timeout_s: float | None, answer_s: float) -> None:
        """Checks whether ``images`` of one request would be answered in time.

        Raises:
            PredictedLate: rather none of them than some (``shed_late``).
        """
        level = self.limits.scheduling.level(0)
        self._admission.check_time(level, timeout_s, answer_s, images)

    def _check_open(self, timeout_s: float | None) -> None:
        if self._closing:
            raise NotReady("the model is being unloaded; try again shortly")
        if self.broken is not None:
            raise NotReady(f"the model's engine is being reopened: {self.broken}")
        if timeout_s is not None and timeout_s <= 0.0:
            self.observer.rejected("deadline")
            raise DeadlineExceeded("the deadline had passed before the image reached the queue")

    async def replace(self, engine: Engine) -> None:
        """Replaces the broken engine by one of the same ``spec``; what waits runs on it."""
        await self._slot.replace(engine)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Stops taking images, answers those it has, frees the engine.

        After ``timeout_s``, or with an engine that is broken, what is left is refused.
        """
        self._closing = True
        if self.broken is None:
            try:
                await asyncio.wait_for(self._workers.idle.wait(), timeout_s)
            except asyncio.TimeoutError:
                log.warning("images left after %g s are refused", timeout_s)
        running = [item for batch in self._slot.batches for item in batch.items]
        left = [*self._queue.take(len(self._queue)), *running]
        self._answers.fail(left, NotReady("the model is being unloaded; try again shortly"))
        is_busy = not self._slot.idle.is_set() or self._slot.has_stuck_run
        await self._workers.stop()
        if not is_busy:
            self.engine.close()


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
                self._answers.answer(item, EngineFailed(_NOT_FINITE, kind="not_finite"))
                continue
            answer = Inferred(run.prediction[index], queued, spent, len(items))
            self._answers.answer(item, answer)
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
