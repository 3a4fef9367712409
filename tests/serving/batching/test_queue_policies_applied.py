"""Queue policies, ordering, shedding and broken engines, in the batcher itself."""

from __future__ import annotations

import asyncio
import math
import threading

import numpy as np
import numpy.typing as npt
import pytest

from serving.batching.batcher import Batcher
from serving.batching.queue import BatchLimits, QueuePolicy, Scheduling
from serving.errors import DeadlineExceeded, EngineFailed, NotReady, QueueFull
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.testing import FakeEngine
from tests.support.batching import Notes, batching
from tests.support.waiting import until

# Nothing here takes long; what hangs is to be red soon.
pytestmark = pytest.mark.timeout(60)

SIZE = Size(4, 6)
IMAGE = np.zeros((4, 6, 3), np.uint8)


def limits(scheduling: Scheduling, **others: float) -> BatchLimits:
    return BatchLimits(100, 1 << 20, 20_000, scheduling, **others)


async def settle() -> None:
    """Until every task has gone as far as it can without the engine or a timer."""
    for _ in range(20):
        await asyncio.sleep(0)


class Crowd:
    """Submits numbered images; ``done`` has the numbers in the order of the answers."""

    def __init__(self, batcher: Batcher, engine: FakeEngine) -> None:
        self.batcher, self.engine = batcher, engine
        self.done: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def occupy(self) -> None:
        self.engine.hold.clear()
        before = len(self.engine.batch_sizes)
        self.submit(-1)
        await until(lambda: len(self.engine.batch_sizes) > before)

    def submit(
        self, number: int, priority: int = 0, policy_timeout_s: float | None = None
    ) -> asyncio.Task[None]:
        async def run() -> None:
            await self.batcher.submit(
                IMAGE, priority=priority, policy_timeout_s=policy_timeout_s
            )  # fmt: skip
            self.done.append(number)

        self.tasks.append(asyncio.create_task(run()))
        return self.tasks[-1]

    async def release(self) -> list[int]:
        self.engine.hold.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return [number for number in self.done if number >= 0]


async def test_preferred_sizes_are_made_of_what_waits() -> None:
    engine = FakeEngine(SIZE, max_batch_size=8)
    scheduling = Scheduling(preferred_sizes=(2, 4))
    async with batching(engine, limits(scheduling)) as batcher:
        crowd = Crowd(batcher, engine)
        await crowd.occupy()
        for number in range(7):
            crowd.submit(number)
        await settle()
        assert await crowd.release() == list(range(7))
    assert engine.batch_sizes == [1, 4, 2, 1]


async def test_a_level_has_a_size_of_its_own() -> None:
    scheduling = Scheduling(
        priority_levels=2, default_level=2,
        policies={2: QueuePolicy("priority_queue_policy[2]", max_size=1)},
    )  # fmt: skip
    engine, notes = FakeEngine(SIZE), Notes()
    async with batching(engine, limits(scheduling), notes) as batcher:
        crowd = Crowd(batcher, engine)
        await crowd.occupy()
        crowd.submit(1)
        await settle()
        with pytest.raises(QueueFull, match=r"priority_queue_policy\[2\]\.max_queue_size"):
            await batcher.submit(IMAGE)
        crowd.submit(2, priority=1)
        assert await crowd.release() == [2, 1]
    assert notes.rejections == ["policy_queue_size"]


async def test_reject_refuses_what_has_waited_too_long_while_the_engine_is_busy() -> None:
    scheduling = Scheduling(default_policy=QueuePolicy(timeout_s=0.01, allows_override=True))
    engine, notes = FakeEngine(SIZE), Notes()
    async with batching(engine, limits(scheduling), notes) as batcher:
        crowd = Crowd(batcher, engine)
        await crowd.occupy()
        with pytest.raises(DeadlineExceeded, match=r"default_queue_policy\.default_timeout_micro"):
            await batcher.submit(IMAGE, policy_timeout_s=60.0)  # longer than it may be
        with pytest.raises(DeadlineExceeded, match="own deadline"):
            await batcher.submit(IMAGE, policy_timeout_s=0.005)
        assert batcher.waiting == 0
        await crowd.release()
    assert notes.rejections == ["deadline"] * 2
    assert engine.batch_sizes == [1]


async def test_delay_puts_what_has_waited_too_long_behind_the_others() -> None:
    scheduling = Scheduling(default_policy=QueuePolicy(delays=True))
    engine = FakeEngine(SIZE, max_batch_size=1)
    async with batching(engine, limits(scheduling)) as batcher:
        crowd = Crowd(batcher, engine)
        await crowd.occupy()
        crowd.submit(1, policy_timeout_s=0.001)
        crowd.submit(2)
        await settle()
        await until(lambda: batcher._queue._items[0].number == 2)
        crowd.submit(3)
        await settle()
        assert await crowd.release() == [2, 3, 1]


class Relay(FakeEngine):
    """Two instances; each run waits for its own event, by the red of its first pixel."""

    def __init__(self) -> None:
        super().__init__(SIZE, instances=2, max_batch_size=1)
        self.gates = {red: threading.Event() for red in range(4)}

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        found = super().run(batch)
        self.gates[int(batch[0, 0, 0, 0])].wait()
        return found


@pytest.mark.parametrize(("ordered", "expected"), [(False, [1, 0, 2]), (True, [0, 1, 2])])
async def test_preserve_ordering_holds_answers_back(ordered: bool, expected: list[int]) -> None:
    engine, done = Relay(), []
    async with batching(engine, limits(Scheduling(preserve_ordering=ordered))) as batcher:

        async def submit(number: int) -> None:
            await batcher.submit(np.full((4, 6, 3), number, np.uint8))
            done.append(number)

        tasks = [asyncio.create_task(submit(number)) for number in range(3)]
        gone = asyncio.create_task(submit(3))
        await settle()
        gone.cancel()  # holds nobody back
        for number in (1, 0, 2):
            engine.gates[number].set()
            await until(lambda n=number: len(engine.batch_sizes) == 3 or n != 1)
            if not ordered:
                await tasks[number]
        await asyncio.gather(*tasks)
    assert done == expected


async def test_a_full_queue_says_when_to_come_again() -> None:
    engine = FakeEngine(SIZE, max_batch_size=1)
    async with batching(engine, BatchLimits(2, 1 << 20, 20_000)) as batcher:
        crowd = Crowd(batcher, engine)
        await crowd.occupy()
        for number in (1, 2):
            crowd.submit(number)
        await settle()
        with pytest.raises(QueueFull) as unknown:
            await batcher.submit(IMAGE)
        assert unknown.value.retry_after == "1"
        batcher.costs.learn(1, 1000.0)
        with pytest.raises(QueueFull) as known:
            await batcher.submit(IMAGE)
        # The one at work has not begun long ago, two wait, and it would be the third.
        seconds = known.value.retry_after_s or 0.0
        assert 3990.0 < seconds <= 4000.0
        assert known.value.retry_after == str(math.ceil(seconds))
        await crowd.release()


async def test_runs_that_fail_in_a_row_break_the_engine_and_what_waits_runs_on_the_next() -> None:
    broken: list[str] = []
    engine = FakeEngine(SIZE, max_batch_size=1, failing_runs=frozenset({0, 2, 3}))
    async with batching(
        engine, limits(Scheduling(), max_failures=2), on_broken=broken.append
    ) as batcher:
        for works in (False, True, False):
            if works:
                await batcher.submit(IMAGE)  # the count begins anew
            else:
                with pytest.raises(EngineFailed):
                    await batcher.submit(IMAGE)
        assert not broken
        crowd = Crowd(batcher, engine)
        await crowd.occupy()
        crowd.submit(1)
        await settle()
        engine.hold.set()
        await until(lambda: broken)
        assert "2 runs in a row failed" in broken[0]
        with pytest.raises(NotReady, match="being reopened"):
            await batcher.submit(IMAGE)
        fresh = FakeEngine(SIZE, max_batch_size=1)
        await batcher.replace(fresh)
        assert await crowd.release() == [1]
        assert engine.closed
        assert (engine.batch_sizes, fresh.batch_sizes) == ([1] * 4, [1])


async def test_a_run_that_hangs_breaks_the_engine_and_is_left_behind() -> None:
    broken: list[str] = []
    engine = FakeEngine(SIZE, max_batch_size=1)
    async with batching(
        engine, limits(Scheduling(), run_timeout_s=0.02), on_broken=broken.append
    ) as batcher:
        engine.hold.clear()
        with pytest.raises(EngineFailed, match="engine_timeout_s"):
            await batcher.submit(IMAGE)
        assert "did not end" in broken[0]
        # The next may take its time.
        batcher.limits = limits(Scheduling())
        await batcher.replace(FakeEngine(SIZE, max_batch_size=1))
        assert (await batcher.submit(IMAGE)).batch_size == 1
        assert not engine.closed
        engine.hold.set()
        await until(lambda: engine.closed)
