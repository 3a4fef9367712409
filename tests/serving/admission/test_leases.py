"""Whatever becomes of an image: nothing of it stays in the batcher, and the next one is answered.

One way to end a row. After each, the queue, its bytes, the reservations, the timers and what
waits for its turn are as before, and what the engine should not have run it has not run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from serving.batching.batcher import Batcher
from serving.batching.queue import BatchLimits, QueuePolicy, RequestQueue, Scheduling, WaitLimits
from serving.errors import (
    DeadlineExceeded,
    EngineFailed,
    NotReady,
    PredictedLate,
    QueueFull,
    SegserveError,
)
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.testing import FakeEngine
from tests.support.batching import Notes
from tests.support.waiting import until

# Nothing here takes a second; what hangs is to be red soon.
pytestmark = pytest.mark.timeout(60)

SIZE = Size(4, 6)
IMAGE = np.zeros((4, 6, 3), np.uint8)
LIMITS = BatchLimits(max_queue_size=3, max_queue_bytes=1 << 20, queue_timeout_ms=20_000)


class Engine(FakeEngine):
    """One image a run; the runs in ``deaths`` end their thread."""

    def __init__(self, **options: object) -> None:
        super().__init__(SIZE, max_batch_size=1, **options)  # type: ignore[arg-type]
        self.deaths: set[int] = set()

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        number = len(self.batch_sizes)
        found = super().run(batch)
        if number in self.deaths:
            raise SystemExit("as told")
        return found


@dataclass
class Case:
    """A batcher with an engine that is busy until ``release``; ``ended`` are its images' errors."""

    limits: BatchLimits
    engine: Engine = field(default_factory=Engine)
    notes: Notes = field(default_factory=Notes)
    busy: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Case:
        self.batcher = Batcher(self.engine, self.limits, self.notes, time.monotonic)
        self.batcher.start()
        return self

    async def __aexit__(self, *ended: object) -> None:
        self.engine.hold.set()
        await asyncio.wait_for(self.batcher.drain(), 20)

    async def occupy(self) -> None:
        self.engine.hold.clear()
        self.busy = asyncio.create_task(self.batcher.submit(IMAGE))
        await until(lambda: self.engine.batch_sizes)

    async def enter(self, **options: object) -> asyncio.Task[object]:
        before = self.batcher.waiting
        task: asyncio.Task[object] = asyncio.create_task(
            self.batcher.submit(IMAGE, **options)  # type: ignore[arg-type]
        )
        await until(lambda: self.batcher.waiting > before or task.done())
        return task

    async def release(self) -> None:
        self.engine.hold.set()
        if self.busy is not None:
            await asyncio.wait([self.busy], timeout=20)
        await asyncio.wait_for(self.batcher._workers.idle.wait(), 20)


async def expect(
    error: type[SegserveError], text: str, awaited: Awaitable[object] | asyncio.Task[object]
) -> None:
    with pytest.raises(error, match=text):
        await asyncio.wait_for(awaited, 20)


async def answered(case: Case) -> None:
    task = await case.enter()
    await case.release()
    await task


async def left_while_waiting(case: Case) -> None:
    task = await case.enter(timeout_s=20.0)
    task.cancel()
    await asyncio.wait([task])


async def left_while_running(case: Case) -> None:
    assert case.busy is not None
    case.busy.cancel()
    await asyncio.wait([case.busy])
    assert not case.batcher._workers.idle.is_set(), "its run is still under way"


async def own_deadline(case: Case) -> None:
    await expect(DeadlineExceeded, "own deadline", case.batcher.submit(IMAGE, timeout_s=0.02))


async def deadline_passed_before(case: Case) -> None:
    for seconds in (0.0, -1.0):
        await expect(DeadlineExceeded, "had passed", case.batcher.submit(IMAGE, timeout_s=seconds))


async def parameter_passed_before(case: Case) -> None:
    await expect(DeadlineExceeded, "had passed", case.batcher.submit(IMAGE, policy_timeout_s=0.0))


async def servers_timeout(case: Case) -> None:
    await expect(DeadlineExceeded, "queue_timeout_ms", case.batcher.submit(IMAGE))


async def policys_timeout(case: Case) -> None:
    await expect(DeadlineExceeded, "default_queue_policy", case.batcher.submit(IMAGE))


async def delayed_and_left(case: Case) -> None:
    task = await case.enter(policy_timeout_s=0.01)
    await until(lambda: case.batcher._queue._items[0].delayed)
    task.cancel()
    await asyncio.wait([task])


async def reservation_unused(case: Case) -> None:
    with case.batcher.reserve(IMAGE.nbytes):
        assert case.batcher._admission.reserved == 1
    with pytest.raises(ValueError, match="no image"), case.batcher.reserve(IMAGE.nbytes):
        raise ValueError("no image")
    reservation = case.batcher.reserve(IMAGE.nbytes)
    for _ in range(2):
        reservation.release()


async def reservation_used(case: Case) -> None:
    reservation = case.batcher.reserve(IMAGE.nbytes)
    task = await case.enter(reservation=reservation)
    assert case.batcher._admission.reserved == 0
    reservation.release()
    await case.release()
    await task


async def full(case: Case) -> None:
    waiting = [await case.enter() for _ in range(2)]
    with case.batcher.reserve(IMAGE.nbytes):
        with pytest.raises(QueueFull, match="max_queue_size"):
            case.batcher.reserve(IMAGE.nbytes)
        await expect(QueueFull, "max_queue_size", case.batcher.submit(IMAGE))
    await case.release()
    await asyncio.gather(*waiting)


async def full_of_bytes(case: Case) -> None:
    waiting = await case.enter()
    reservation = case.batcher.reserve(0)
    await expect(QueueFull, "max_queue_bytes", case.batcher.submit(IMAGE, reservation=reservation))
    await case.release()
    await waiting


async def late_at_the_head(case: Case) -> None:
    case.batcher.costs.learn(1, 1000.0)
    with pytest.raises(PredictedLate):
        case.batcher.reserve(IMAGE.nbytes, timeout_s=15.0)
    await expect(PredictedLate, "shed_late", case.batcher.submit(IMAGE, timeout_s=15.0))


async def late_when_taken(case: Case) -> None:
    doomed = [await case.enter(timeout_s=19.0) for _ in range(2)]
    case.batcher.costs.learn(1, 1000.0)
    await case.release()
    await expect(PredictedLate, "too late", doomed[0])
    await doomed[1]


async def failed_run(case: Case) -> None:
    case.engine.failing_runs = frozenset({1})
    doomed = await case.enter()
    await case.release()
    await expect(EngineFailed, "run 1 fails", doomed)


async def dead_thread(case: Case) -> None:
    case.engine.deaths = {1}
    doomed = await case.enter()
    await case.release()
    await expect(EngineFailed, "thread ended", doomed)
    await case.batcher.replace(Engine())


async def hanging_run(case: Case) -> None:
    assert case.busy is not None
    await expect(EngineFailed, "engine_timeout_s", case.busy)
    await case.batcher.replace(Engine())
    # The thread that was left behind ends, and its engine is closed then.
    case.engine.hold.set()
    await until(lambda: case.engine.closed)


@dataclass(frozen=True)
class End:
    """How one image ends, under which limits; what the observer saw, how often the engine ran."""

    end: Callable[[Case], Awaitable[None]]
    rejections: tuple[str, ...] = ()
    runs: int = 1
    limits: BatchLimits = LIMITS


def scheduled(**options: object) -> BatchLimits:
    return replace(LIMITS, scheduling=Scheduling(**options))  # type: ignore[arg-type]


ENDS = [
    End(answered, runs=2),
    End(answered, runs=2, limits=scheduled(preserve_ordering=True)),
    End(left_while_waiting),
    End(left_while_waiting, limits=scheduled(preserve_ordering=True)),
    End(left_while_running),
    End(left_while_running, limits=scheduled(preserve_ordering=True)),
    End(own_deadline, ("deadline",)),
    End(own_deadline, ("deadline",), limits=scheduled(preserve_ordering=True)),
    End(deadline_passed_before, ("deadline",) * 2),
    End(parameter_passed_before, ("deadline",)),
    End(servers_timeout, ("deadline",), limits=replace(LIMITS, queue_timeout_ms=20)),
    End(policys_timeout, ("deadline",),
        limits=scheduled(default_policy=QueuePolicy(timeout_s=0.02))),
    End(delayed_and_left, limits=scheduled(default_policy=QueuePolicy(delays=True))),
    End(reservation_unused),
    End(reservation_used, runs=2),
    End(full, ("queue_size",) * 2, runs=3),
    End(full_of_bytes, ("queue_bytes",), runs=2,
        limits=replace(LIMITS, max_queue_bytes=2 * IMAGE.nbytes - 1)),
    End(late_at_the_head, ("predicted_late",) * 2, limits=replace(LIMITS, shed_late=True)),
    End(late_when_taken, ("predicted_late",), runs=2, limits=replace(LIMITS, shed_late=True)),
    End(failed_run, runs=2),
    End(failed_run, runs=2, limits=scheduled(preserve_ordering=True)),
    End(dead_thread, runs=2),
    End(hanging_run, limits=replace(LIMITS, run_timeout_s=0.05)),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    ENDS,
    ids=lambda c: c.end.__name__ + ("_ordered" * c.limits.scheduling.preserve_ordering),
)
async def test_nothing_is_left_of_an_image(case: End) -> None:
    async with Case(case.limits) as made:
        await made.occupy()
        await case.end(made)
        await made.release()
        batcher = made.batcher
        assert tuple(made.notes.rejections) == case.rejections
        assert len(made.engine.batch_sizes) == case.runs
        assert (batcher.waiting, batcher._queue.bytes) == (0, 0)
        assert batcher._admission.reserved == 0
        assert made.notes.queue == 0, "what the metric shows"
        assert not batcher._answers._expected
        assert not batcher._answers._finished
        assert not batcher._slot.batches
        assert batcher._slot.idle.is_set()
        # As many as ever may wait again.
        reservations = [batcher.reserve(1) for _ in range(case.limits.max_queue_size)]
        for reservation in reservations:
            reservation.release()
        inferred = await asyncio.wait_for(batcher.submit(IMAGE), 20)
        assert inferred.batch_size == 1


@pytest.mark.parametrize("drained", ["in time", "too late"])
async def test_a_drained_batcher_has_nothing_left(drained: str) -> None:
    engine, notes = Engine(), Notes()
    batcher = Batcher(engine, LIMITS, notes, time.monotonic)
    batcher.start()
    engine.hold.clear()
    tasks = [asyncio.create_task(batcher.submit(IMAGE)) for _ in range(3)]
    await until(lambda: engine.batch_sizes and batcher.waiting == 2)
    draining = asyncio.create_task(batcher.drain(0.05 if drained == "too late" else 20.0))
    await until(batcher.is_closing)
    if drained == "in time":
        engine.hold.set()
    await draining
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(r, NotReady) for r in results] == [drained == "too late"] * 3
    # Nothing frees the memory that a run is still at work in.
    assert engine.closed == (drained == "in time")
    engine.hold.set()
    assert (batcher.waiting, batcher._queue.bytes) == (0, 0)
    assert not batcher._answers._expected
    assert len(engine.batch_sizes) == (3 if drained == "in time" else 1)


async def test_the_threads_of_a_drained_batcher_end() -> None:
    """Also the one that replaced a thread which was left behind in a run."""
    before = set(threading.enumerate())
    engine = Engine(instances=2)
    batcher = Batcher(engine, replace(LIMITS, run_timeout_s=0.05), Notes(), time.monotonic)
    batcher.start()
    await until(lambda: len(set(threading.enumerate()) - before) == 2)
    engine.hold.clear()
    await expect(EngineFailed, "engine_timeout_s", batcher.submit(IMAGE))
    await until(lambda: len(set(threading.enumerate()) - before) == 3)
    engine.hold.set()
    await batcher.replace(Engine(instances=2))
    await asyncio.wait_for(batcher.drain(), 20)
    await until(lambda: not set(threading.enumerate()) - before)


async def test_a_caller_who_left_is_not_counted_as_late() -> None:
    """The timer fires between the cancellation and the caller's own clean-up."""
    notes, removed = Notes(), []
    queue = RequestQueue(LIMITS)
    waits = WaitLimits(queue, LIMITS, notes, lambda: removed.append(len(queue)))
    left, stayed = (queue.add(IMAGE, 0.0, 0) for _ in range(2))
    for item in (left, stayed):
        waits.start(item, QueuePolicy(), 0.0, None)
    left.future.cancel()
    await until(lambda: len(removed) == 2)
    assert notes.rejections == ["deadline"]
    assert isinstance(stayed.future.exception(), DeadlineExceeded)
    assert queue.bytes == 0
    loop = asyncio.get_running_loop()
    for timer in (*left.timers, *stayed.timers):
        assert timer.cancelled() or timer.when() <= loop.time()


async def test_a_cancelled_elder_holds_no_answer_back() -> None:
    """In order: the older one's caller leaves during its run, the younger one is done."""
    gates = [threading.Event(), threading.Event()]

    class Relay(FakeEngine):
        def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
            found = super().run(batch)
            assert gates[int(batch[0, 0, 0, 0])].wait(20)
            return found

    engine = Relay(SIZE, instances=2, max_batch_size=1)
    batcher = Batcher(engine, scheduled(preserve_ordering=True), Notes(), time.monotonic)
    batcher.start()
    tasks = [
        asyncio.create_task(batcher.submit(np.full((4, 6, 3), number, np.uint8)))
        for number in range(2)
    ]
    await until(lambda: len(engine.batch_sizes) == 2)
    gates[1].set()
    await until(lambda: len(batcher._answers._finished) == 1)
    assert not tasks[1].done(), "the earlier one has no answer yet"
    tasks[0].cancel()
    assert (await asyncio.wait_for(tasks[1], 15)).batch_size == 1
    assert not gates[0].is_set()
    gates[0].set()
    await asyncio.wait_for(batcher.drain(), 20)
    assert not batcher._answers._finished
