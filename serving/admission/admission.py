"""Who enters a queue, and who is still worth running when a batch is taken from it.

An image is asked for before it is decoded, and where its request's head tells enough before its
bytes are there (``request_head.py``): what would be refused anyway costs next to nothing then.
One that may come has a place until it enters the queue, so that the images being decoded count too.

First come, first served, with deadlines, serves nobody under overload: whoever reaches the head has
waited until just before its deadline, and is answered after it. So, with ``shed_late``, an image is
refused at once if by the last batches' times its answer would be late, with a margin; and one that
reaches the head with too little time left is refused instead of run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from serving.batching.batch import BatchLimits, BatchObserver
from serving.batching.cost_model import Average, CostModel
from serving.batching.queue import Item, RequestQueue
from serving.errors import PredictedLate, QueueFull

# At the door with a margin: refusing one more costs no answer as long as others wait.
ENTRY_SPREADS = 2.0
# One more than it must be is refused here with its photo decoded, so with less of a margin.
TAKE_SPREADS = 1.0


@dataclass(frozen=True)
class EngineLoad:
    """What the engine does now: size, and seconds since its start, of every batch at work."""

    running: Sequence[tuple[int, float]]
    instances: int
    max_batch_size: int

    @property
    def is_idle(self) -> bool:
        """Whether an instance is free."""
        return len(self.running) < self.instances

    @property
    def free(self) -> int:
        """Images that would run at once."""
        return max(0, self.instances - len(self.running)) * self.max_batch_size


class Place:
    """Room for one image that is being prepared; ``with`` it, or ``leave()`` it."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        admission.coming += 1

    def leave(self) -> None:
        """The image enters the queue now, or never will; a second time does nothing."""
        if self._admission is not None:
            self._admission.coming -= 1
            self._admission = None

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *ended: object) -> None:
        self.leave()


class Admission:
    """The door of one queue. ``coming`` counts the images that have a place."""

    def __init__(
        self,
        queue: RequestQueue,
        limits: BatchLimits,
        costs: CostModel,
        observer: BatchObserver,
        clock: Callable[[], float],
        load: Callable[[], EngineLoad],
    ) -> None:
        self.queue = queue
        self.limits = limits
        self.costs = costs
        self.observer = observer
        self.clock = clock
        self.load = load
        self.coming = 0

    def reserve(self, size: int, level: int, timeout_s: float | None, answer_s: float) -> Place:
        """A place for an image of ``size`` bytes that is not decoded yet.

        Raises:
            QueueFull, PredictedLate: as :meth:`check`.
        """
        self.check(size, level, timeout_s, answer_s)
        return Place(self)

    def check(self, size: int, level: int | None, timeout_s: float | None, answer_s: float) -> None:
        """The verdict on an image of ``size`` bytes that comes now.

        Args:
            level: None where it is not known yet: then only what holds at every level counts.

        Raises:
            QueueFull: the images that wait or have a place fill the queue.
            PredictedLate: it would be answered after its deadline.
        """
        # What an idle instance takes at once never waits.
        self.check_room(size, level, max(0, self.coming - self.load().free))
        self.check_time(level, timeout_s, answer_s)

    def check_room(self, size: int, level: int | None, coming: int = 0) -> None:
        """Whether one more may wait.

        Raises:
            QueueFull: by count or bytes; the message names the setting.
        """
        lack = self.queue.find_lack(size, level, coming)
        if lack is not None:
            reason, text = lack
            self.observer.rejected(reason)
            raise QueueFull(f"{text}; try again later", self._predict(len(self.queue) + coming))

    def check_time(
        self, level: int | None, timeout_s: float | None, answer_s: float, images: int = 1
    ) -> None:
        """Whether ``images`` that come to ``level`` now would be answered in time.

        An idle engine takes every image: what was learnt in a bad moment must not last.

        Raises:
            PredictedLate: the message has the prediction (``shed_late``).
        """
        if not self.limits.shed_late or timeout_s is None:
            return
        ahead = self.queue.count_before(level) + self.coming
        if not ahead and self.load().is_idle:
            return
        inferred_s = self._predict(ahead + images - 1, ENTRY_SPREADS)
        if inferred_s is None:
            return
        done_s = inferred_s + answer_s
        if done_s > timeout_s:
            self.observer.rejected("predicted_late")
            raise PredictedLate(
                f"the answer would come in {done_s * 1000:.0f} ms by the last batches' times, "
                f"the deadline is in {timeout_s * 1000:.0f} ms (setting shed_late_requests)",
                done_s - timeout_s,
            )

    def take(self, size: int) -> list[Item]:
        """The next batch, of ``size`` images at most; those that would be late are refused.

        One that could just be late goes behind those that will be in time, into what they leave
        of the batch: there are mostly enough of them, as an image that came later has more time.
        What finds no place there would be late in the next batch, unless another instance takes
        it; and none may lose its place to an image of a lower priority.
        """
        load = self.load()
        is_sure = load.instances == 1 and self.limits.scheduling.priority_levels <= 1
        margin = TAKE_SPREADS if is_sure else 0.0
        taken: list[Item] = []
        risky: list[Item] = []
        late: list[Item] = []
        now = self.clock()
        while len(taken) < size and (items := self.queue.take(size - len(taken))):
            for item in items:
                if not self._is_late(item, size, now, margin):
                    taken.append(item)
                else:
                    (late if self._is_late(item, size, now, 0.0) else risky).append(item)
        while risky and len(taken) < size:
            taken.append(risky.pop())
        late += risky
        if late and not taken and not load.running:
            # Nothing else would tell whether batches still take as long.
            late.sort(key=lambda item: item.deadline or 0.0)
            taken.append(late.pop())
        for item in late:
            self.observer.rejected("predicted_late")
            item.future.set_exception(
                PredictedLate(
                    "the answer would come too late by the last batches' times "
                    "(setting shed_late_requests)"
                )
            )
        return taken

    def _is_late(self, item: Item, size: int, now: float, spreads: float) -> bool:
        if not self.limits.shed_late or item.deadline is None:
            return False
        return now + (self.costs.predict(size, spreads) or 0.0) > item.deadline

    def _predict(self, ahead: int, spreads: float = 0.0) -> float | None:
        load = self.load()
        return self.costs.predict_done(
            ahead, load.running, load.instances, load.max_batch_size, spreads
        )


# What answering takes once an image has been inferred, learnt from the last answers.


class AnswerCosts:
    """Seconds to restore and encode, by model and forms: of an answer, and of a megapixel."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], Average] = {}
        self._megapixels: dict[tuple[str, ...], Average] = {}

    @contextmanager
    def measure(self, model: str, forms: Sequence[str], pixels: int) -> Iterator[None]:
        """Notes how long the block takes to make an answer of ``pixels``, unless it raises."""
        start = perf_counter()
        yield
        seconds, key = perf_counter() - start, _key(model, forms)
        self._answers.setdefault(key, Average()).learn(seconds)
        self._megapixels.setdefault(key, Average()).learn(seconds / pixels * 1e6)

    def predict_least(self, model: str, forms: Sequence[str]) -> float:
        """Of an image whose size is not known yet: rather too little, as sizes differ."""
        known = self._answers.get(_key(model, forms))
        return known.predict(-1.0) or 0.0 if known else 0.0

    def predict(self, model: str, forms: Sequence[str], pixels: int) -> float:
        """Of an answer of ``pixels``; 0 where nothing is known."""
        known = self._megapixels.get(_key(model, forms))
        return (known.predict() or 0.0) * pixels / 1e6 if known else 0.0


def _key(model: str, forms: Sequence[str]) -> tuple[str, ...]:
    # Both are known to the server, so there are not many.
    return model, *sorted(set(forms))
