"""Decides which images enter a queue, and which are still worth running when a batch is taken.

Admission is asked for a reservation before an image is decoded: what would be refused costs next
to nothing then. A reservation counts until its image enters the queue, so that the images being
decoded count too. The server also asks, by a request's head, before the body is there.

First come, first served, with deadlines, serves nobody under overload: whoever reaches the head of
the queue has waited until just before its deadline, and is answered after it. So, with
``shed_late``, an image is refused at once if by the last batches' times its answer would be late,
with a margin; and one that reaches the head with too little time left is refused instead of run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serving.batching.engine_runner import EngineSlot
from serving.batching.queue import BatchLimits, BatchObserver, Item, RequestQueue
from serving.errors import PredictedLate, QueueFull

# At the entry with a margin: refusing one more costs no answer as long as others wait.
ENTRY_SPREADS = 2.0
# One more than it must be is refused here with its photo decoded, so with less of a margin.
TAKE_SPREADS = 1.0
# The weight of the newest observation: about the last ten count.
WEIGHT = 0.2


class Average:
    """An exponential average of seconds, and of their distance from it.

    Source: the estimators of TCP's retransmission timer (V. Jacobson, SIGCOMM 1988).
    """

    def __init__(self) -> None:
        self.mean: float | None = None
        self._spread = 0.0

    def learn(self, seconds: float) -> None:
        """Adds one observation."""
        if self.mean is None:
            self.mean = seconds
            return
        self._spread += WEIGHT * (abs(seconds - self.mean) - self._spread)
        self.mean += WEIGHT * (seconds - self.mean)

    def predict(self, spreads: float = 0.0) -> float | None:
        """Returns the mean and ``spreads`` spreads, from 0 to twice the mean; None at first.

        One hiccup may not let everything look impossible: hence the bound.
        """
        if self.mean is None:
            return None
        return self.mean + max(-self.mean, min(spreads * self._spread, self.mean))


class CostModel:
    """A model of what a batch of each size costs an instance, in seconds, learnt from the last."""

    def __init__(self) -> None:
        self._batches: dict[int, Average] = {}

    def learn(self, size: int, seconds: float) -> None:
        """Adds one batch that has been run."""
        self._batches.setdefault(size, Average()).learn(seconds)

    def predict(self, size: int, spreads: float = 0.0) -> float | None:
        """Returns the seconds of a batch; None before the first.

        A size that has not been seen costs what the nearest one did, image by image.
        """
        if not self._batches:
            return None
        nearest = min(self._batches, key=lambda known: (abs(known - size), known))
        seconds = self._batches[nearest].predict(spreads)
        return None if seconds is None else seconds * size / nearest

    def predict_done(
        self,
        ahead: int,
        running: Sequence[tuple[int, float]],
        instances: int,
        max_batch_size: int,
        spreads: float = 0.0,
    ) -> float | None:
        """Returns the seconds until an image with ``ahead`` others before it has been inferred.

        Args:
            running: size, and seconds since its start, of every batch that is running.
            spreads: how cautious: see :meth:`Average.predict`.
        """
        full = self.predict(max_batch_size, spreads)
        if full is None:
            return None
        free = [max(0.0, (self.predict(size, spreads) or 0.0) - since) for size, since in running]
        free += [0.0] * (instances - len(free))
        heapq.heapify(free)
        for _ in range(ahead // max_batch_size):
            heapq.heapreplace(free, free[0] + full)
        return free[0] + (self.predict(ahead % max_batch_size + 1, spreads) or 0.0)


class Reservation:
    """Room in the queue for one image that is being prepared; ``with`` it, or release it."""

    def __init__(self, admission: QueueAdmission) -> None:
        self._admission: QueueAdmission | None = admission
        admission.reserved += 1

    def release(self) -> None:
        """Ends the reservation: the image enters the queue now, or never will. May be repeated."""
        if self._admission is not None:
            self._admission.reserved -= 1
            self._admission = None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *ended: object) -> None:
        self.release()


class QueueAdmission:
    """The admission to one queue. ``reserved`` counts the images that have a reservation."""

    def __init__(
        self,
        queue: RequestQueue,
        slot: EngineSlot,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self.costs = CostModel()
        self.reserved = 0
        self._queue = queue
        self._slot = slot
        self._limits = limits
        self._observer = observer
        self._clock = clock

    def check(self, size: int, level: int | None, timeout_s: float | None, answer_s: float) -> None:
        """Checks whether an image of ``size`` bytes that comes now may wait, and is in time.

        Args:
            level: None where it is not known yet: then only what holds at every level counts.

        Raises:
            QueueFull: the images that wait or have a reservation fill the queue.
            PredictedLate: it would be answered after its deadline.
        """
        # What an idle instance takes at once never waits.
        load = self._slot.read_load(self._clock())
        self._check_room(size, level, max(0, self.reserved - load.free))
        self.check_time(level, timeout_s, answer_s)

    def reserve(
        self, size: int, level: int, timeout_s: float | None, answer_s: float
    ) -> Reservation:
        """Reserves room for an image; arguments and errors as for :meth:`check`."""
        self.check(size, level, timeout_s, answer_s)
        return Reservation(self)

    def enter(self, image: npt.NDArray[np.uint8], level: int, reservation: Reservation) -> Item:
        """Puts an image into the queue, in exchange for its reservation.

        Raises:
            QueueFull: the queue has filled up since: its bounds hold for every image.
        """
        reservation.release()
        self._check_room(image.nbytes, level)
        return self._queue.add(image, self._clock(), level)

    def _check_room(self, size: int, level: int | None, reserved: int = 0) -> None:
        lack = self._queue.find_lack(size, level, reserved)
        if lack is not None:
            reason, text = lack
            self._observer.rejected(reason)
            raise QueueFull(f"{text}; try again later", self._predict(len(self._queue) + reserved))

    def check_time(
        self, level: int | None, timeout_s: float | None, answer_s: float, images: int = 1
    ) -> None:
        """Checks whether ``images`` that come to ``level`` now would be answered in time.

        An idle engine takes every image: what was learnt in a bad moment must not last.

        Raises:
            PredictedLate: they would not; the message has the prediction (``shed_late``).
        """
        if not self._limits.shed_late or timeout_s is None:
            return
        ahead = self._queue.count_before(level) + self.reserved
        if not ahead and self._slot.read_load(self._clock()).is_idle:
            return
        inferred_s = self._predict(ahead + images - 1, ENTRY_SPREADS)
        if inferred_s is None:
            return
        done_s = inferred_s + answer_s
        if done_s > timeout_s:
            self._observer.rejected("predicted_late")
            raise PredictedLate(
                f"the answer would come in {done_s * 1000:.0f} ms by the last batches' times, "
                f"the deadline is in {timeout_s * 1000:.0f} ms (setting shed_late_requests)",
                done_s - timeout_s,
            )

    def take(self, size: int) -> list[Item]:
        """Takes the next batch, of ``size`` images at most; those that would be late are refused.

        One that could just be late goes behind those that will be in time, into what they leave
        of the batch: there are mostly enough of them, as an image that came later has more time.
        What finds no room there would be late in the next batch, unless another instance takes
        it; and none may lose its turn to an image of a lower priority.
        """
        load = self._slot.read_load(self._clock())
        is_sure = load.instances == 1 and self._limits.scheduling.priority_levels <= 1
        margin = TAKE_SPREADS if is_sure else 0.0
        taken: list[Item] = []
        risky: list[Item] = []
        late: list[Item] = []
        now = self._clock()
        while len(taken) < size and (items := self._queue.take(size - len(taken))):
            for item in items:
                if not self._is_late(item, size, now, margin):
                    taken.append(item)
                else:
                    (late if self._is_late(item, size, now, 0.0) else risky).append(item)
        while risky and len(taken) < size:
            taken.append(risky.pop())
        late += risky
        if late and not taken and not load.running:
            # Nothing else would show whether batches still take as long.
            late.sort(key=lambda item: item.deadline or 0.0)
            taken.append(late.pop())
        for item in late:
            self._observer.rejected("predicted_late")
            item.future.set_exception(
                PredictedLate(
                    "the answer would come too late by the last batches' times "
                    "(setting shed_late_requests)"
                )
            )
        return taken

    def _is_late(self, item: Item, size: int, now: float, spreads: float) -> bool:
        if not self._limits.shed_late or item.deadline is None:
            return False
        return now + (self.costs.predict(size, spreads) or 0.0) > item.deadline

    def _predict(self, ahead: int, spreads: float = 0.0) -> float | None:
        load = self._slot.read_load(self._clock())
        return self.costs.predict_done(
            ahead, load.running, load.instances, load.max_batch_size, spreads
        )
