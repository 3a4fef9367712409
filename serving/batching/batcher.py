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
from serving.batching.batch import BatchLimits, BatchObserver, Inferred
from serving.batching.engine_runner import EngineSlot
from serving.batching.queue import Answers, RequestQueue, WaitLimits
from serving.batching.workers import Workers
from serving.engine import Engine
from serving.errors import DeadlineExceeded, NotReady

Image = npt.NDArray[np.uint8]

log = logging.getLogger("segserve")


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
            labels_suffice: the caller is content with a ``mask`` where the engine would give
                ``logits``; it may get these all the same.

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
            self._admission.check(image.nbytes, level, timeout_s, answer_s)
            reservation = Reservation(self._admission)
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
        self._admission.check(size, level, timeout_s, answer_s)
        return Reservation(self._admission)

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
            raise NotReady(f"the model's engine is being opened anew: {self.broken}")
        if timeout_s is not None and timeout_s <= 0.0:
            self.observer.rejected("deadline")
            raise DeadlineExceeded("the deadline had passed before the image reached the queue")

    async def replace(self, engine: Engine) -> None:
        """Puts an engine of the same ``spec`` in the broken one's place; what waits runs on it."""
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
