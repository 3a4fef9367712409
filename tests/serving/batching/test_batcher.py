"""The batcher, with an engine whose answers tell which image they belong to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from serving.batching.batcher import Batcher
from serving.batching.queue import BatchLimits, Execution, Scheduling
from serving.errors import DeadlineExceeded, EngineFailed, NotReady, QueueFull
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.testing import FakeEngine
from tests.support.batching import LIMITS, Notes, batching
from tests.support.waiting import until

# Nothing here takes long; what hangs is to be red soon.
pytestmark = pytest.mark.timeout(60)

SIZE = Size(4, 6)


def image_of(label: int) -> npt.NDArray[np.uint8]:
    return np.full((SIZE.height, SIZE.width, 3), label * 32 + 5, np.uint8)


async def label_of(batcher: Batcher, label: int, timeout_s: float | None = None) -> int:
    inferred = await batcher.submit(image_of(label), timeout_s=timeout_s)
    assert inferred.prediction.logits is not None
    labels = np.unique(inferred.prediction.logits.argmax(0))
    assert labels.size == 1
    return int(labels[0])


async def occupy(batcher: Batcher, engine: FakeEngine) -> asyncio.Task[int]:
    """Keeps the engine busy until ``engine.hold`` is set."""
    engine.hold.clear()
    task = asyncio.create_task(label_of(batcher, 7))
    await until(lambda: engine.batch_sizes)
    return task


async def test_many_different_images_get_their_own_answers() -> None:
    engine, notes = FakeEngine(SIZE, delay_s=0.002), Notes()
    async with batching(engine, notes=notes) as batcher:
        labels = [i % 8 for i in range(50)]
        assert await asyncio.gather(*(label_of(batcher, n) for n in labels)) == labels
    assert max(engine.batch_sizes) == 4
    assert sum(notes.batches) == 50
    assert notes.queue == 0
    assert engine.closed


async def test_images_that_wait_run_as_one_batch() -> None:
    engine = FakeEngine(SIZE)
    async with batching(engine) as batcher:
        first = await occupy(batcher, engine)
        others = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2, 3)]
        await until(lambda: batcher.waiting == 3)
        engine.hold.set()
        assert await asyncio.gather(first, *others) == [7, 1, 2, 3]
    assert engine.batch_sizes == [1, 3]


async def test_the_delay_waits_for_company() -> None:
    limits = BatchLimits(100, 1 << 20, 20_000, Scheduling(delay_s=60.0))
    engine = FakeEngine(SIZE)
    async with batching(engine, limits) as batcher:
        tasks = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0.02)
        assert engine.batch_sizes == []
        # The fourth makes the batch full: nobody waits the minute.
        tasks.append(asyncio.create_task(label_of(batcher, 4)))
        assert await asyncio.wait_for(asyncio.gather(*tasks), 30) == [1, 2, 3, 4]
    assert engine.batch_sizes == [4]


async def test_the_delay_is_the_oldest_image_s_whoever_else_arrives() -> None:
    """Others keep coming within the delay; were it theirs, the oldest would never leave."""
    delay_s, engine = 0.3, FakeEngine(SIZE, max_batch_size=10_000)
    limits = BatchLimits(10_000, 1 << 30, 20_000, Scheduling(delay_s=delay_s))
    async with batching(engine, limits) as batcher:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        tasks = [asyncio.create_task(batcher.submit(image_of(1)))]
        while not engine.batch_sizes and loop.time() < begin + 20 * delay_s:
            await asyncio.sleep(delay_s / 30)
            tasks.append(asyncio.create_task(batcher.submit(image_of(2))))
        assert engine.batch_sizes, "the first image still waits"
        found = await asyncio.gather(*tasks)
        assert found[0].queue_seconds >= delay_s
        assert found[0].batch_size == engine.batch_sizes[0] > 1


async def test_times_are_seconds_of_the_batchers_clock() -> None:
    """An engine that takes half a second by that clock, after three seconds of waiting."""
    now = 100.0

    class Slow(FakeEngine):
        def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
            nonlocal now
            found = super().run(batch)
            now += 0.5
            return found

    @dataclass
    class Times(Notes):
        executions: list[Execution] = field(default_factory=list)

        def batch_done(self, execution: Execution) -> None:
            self.executions.append(execution)

    engine, notes = Slow(SIZE), Times()
    batcher = Batcher(engine, LIMITS, notes, lambda: now)
    batcher.start()
    running = await occupy(batcher, engine)
    waiting = [asyncio.create_task(batcher.submit(image_of(n))) for n in (1, 2)]
    await until(lambda: batcher.waiting == 2)
    now += 2.5
    engine.hold.set()
    found = await asyncio.gather(*waiting)
    await running
    assert [(f.queue_seconds, f.infer_seconds, f.batch_size) for f in found] == [(3.0, 0.5, 2)] * 2
    assert notes.executions == [Execution(1, 0.0, 3.0, 0.0), Execution(2, 0.0, 0.5, 0.0)]
    # The next that comes would wait for nobody.
    assert batcher.costs.predict(2) == 0.5
    await asyncio.wait_for(batcher.drain(), 20)


async def test_a_cancelled_caller_does_not_disturb_its_batch_mates() -> None:
    engine = FakeEngine(SIZE)
    async with batching(engine) as batcher:
        running = await occupy(batcher, engine)
        waiting = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2, 3)]
        await until(lambda: batcher.waiting == 3)
        waiting[1].cancel()
        running.cancel()
        await until(lambda: batcher.waiting == 2 and running.done())
        engine.hold.set()
        assert await asyncio.gather(waiting[0], waiting[2]) == [1, 3]
        assert running.cancelled()
        assert waiting[1].cancelled()
    # The cancelled one had left the queue before the batch was made.
    assert engine.batch_sizes == [1, 2]


async def test_a_caller_cancelled_while_its_batch_runs_does_not_disturb_it() -> None:
    engine = FakeEngine(SIZE)
    async with batching(engine) as batcher:
        engine.hold.clear()
        mates = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2)]
        await until(lambda: engine.batch_sizes)
        mates[0].cancel()
        await asyncio.wait(mates[:1])
        engine.hold.set()
        assert await mates[1] == 2
        assert mates[0].cancelled()
        assert await label_of(batcher, 3) == 3
    assert engine.batch_sizes == [2, 1]


async def test_a_full_queue_refuses_and_names_the_setting() -> None:
    limits, notes, engine = BatchLimits(2, 1 << 20, 20_000), Notes(), FakeEngine(SIZE)
    async with batching(engine, limits, notes) as batcher:
        running = await occupy(batcher, engine)
        waiting = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2)]
        await until(lambda: batcher.waiting == 2)
        with pytest.raises(QueueFull, match="max_queue_size"):
            await label_of(batcher, 3)
        engine.hold.set()
        assert await asyncio.gather(running, *waiting) == [7, 1, 2]
        assert await label_of(batcher, 4) == 4
    assert notes.rejections == ["queue_size"]


async def test_a_queue_is_bounded_by_bytes() -> None:
    image_bytes = SIZE.height * SIZE.width * 3
    limits, notes, engine = BatchLimits(100, image_bytes * 3, 20_000), Notes(), FakeEngine(SIZE)
    async with batching(engine, limits, notes) as batcher:
        running = await occupy(batcher, engine)
        waiting = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2, 3)]
        await until(lambda: batcher.waiting == 3)
        with pytest.raises(QueueFull, match="max_queue_bytes"):
            await label_of(batcher, 4)
        engine.hold.set()
        assert await asyncio.gather(running, *waiting) == [7, 1, 2, 3]
    assert notes.rejections == ["queue_bytes"]


async def test_a_deadline_passes_while_the_engine_is_busy() -> None:
    notes, engine = Notes(), FakeEngine(SIZE)
    async with batching(engine, notes=notes) as batcher:
        running = await occupy(batcher, engine)
        patient = asyncio.create_task(label_of(batcher, 2))
        with pytest.raises(DeadlineExceeded, match="own deadline"):
            await asyncio.wait_for(label_of(batcher, 1, timeout_s=0.03), 30)
        assert not running.done()
        engine.hold.set()
        assert await asyncio.gather(running, patient) == [7, 2]
    assert notes.rejections == ["deadline"]
    assert engine.batch_sizes == [1, 1]


async def test_the_queue_timeout_holds_for_everybody() -> None:
    limits, engine = BatchLimits(100, 1 << 20, queue_timeout_ms=20), FakeEngine(SIZE)
    async with batching(engine, limits) as batcher:
        running = await occupy(batcher, engine)
        with pytest.raises(DeadlineExceeded, match="queue_timeout_ms"):
            await asyncio.wait_for(label_of(batcher, 1, timeout_s=60), 30)
        engine.hold.set()
        assert await running == 7


async def test_a_failed_run_fails_its_own_images_only() -> None:
    engine = FakeEngine(SIZE, failing_runs=frozenset({1}))
    async with batching(engine) as batcher:
        running = await occupy(batcher, engine)
        doomed = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2)]
        await until(lambda: batcher.waiting == 2)
        engine.hold.set()
        assert await running == 7
        for task in doomed:
            with pytest.raises(EngineFailed, match="run 1 fails"):
                await task
        assert await label_of(batcher, 5) == 5


async def test_instances_run_side_by_side() -> None:
    engine = FakeEngine(SIZE, instances=2, max_batch_size=1)
    async with batching(engine) as batcher:
        engine.hold.clear()
        tasks = [asyncio.create_task(label_of(batcher, n)) for n in (1, 2, 3)]
        await until(lambda: len(engine.batch_sizes) == 2)
        await asyncio.sleep(0.01)
        assert engine.batch_sizes == [1, 1]
        engine.hold.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3]


async def test_draining_answers_what_waits_and_takes_nothing_new() -> None:
    engine = FakeEngine(SIZE)
    async with batching(engine) as batcher:
        running = await occupy(batcher, engine)
        waiting = asyncio.create_task(label_of(batcher, 1))
        await until(lambda: batcher.waiting == 1)
        draining = asyncio.create_task(batcher.drain())
        await until(batcher.is_closing)
        with pytest.raises(NotReady):
            await label_of(batcher, 2)
        assert not draining.done()
        engine.hold.set()
        assert await asyncio.gather(running, waiting) == [7, 1]
        await asyncio.wait_for(draining, 30)
        assert engine.closed
