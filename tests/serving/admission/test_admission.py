"""Shedding in the batcher itself: at the entry, and when a batch is taken."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest

from serving.batching.batcher import Batcher
from serving.batching.queue import BatchLimits, Inferred
from serving.errors import NotReady, PredictedLate, QueueFull
from serving.imaging.geometry import Size
from serving.testing import FakeEngine
from tests.support.batching import Notes, batching
from tests.support.waiting import until

# Nothing here takes long; what hangs is to be red soon.
pytestmark = pytest.mark.timeout(60)

SIZE = Size(4, 6)
IMAGE = np.zeros((4, 6, 3), np.uint8)
SHEDDING = BatchLimits(100, 1 << 20, 20_000, shed_late=True)


async def occupy(batcher: Batcher, engine: FakeEngine) -> asyncio.Task[Inferred]:
    engine.hold.clear()
    before = len(engine.batch_sizes)
    task = asyncio.create_task(batcher.submit(IMAGE))
    await until(lambda: len(engine.batch_sizes) > before)
    return task


async def enter(batcher: Batcher, timeout_s: float | None) -> asyncio.Task[Inferred]:
    """A task whose image is in the queue."""
    before = batcher.waiting
    task = asyncio.create_task(batcher.submit(IMAGE, timeout_s=timeout_s))
    await until(lambda: batcher.waiting > before or task.done())
    return task


async def test_what_would_be_late_is_refused_at_the_door() -> None:
    engine, notes = FakeEngine(SIZE, max_batch_size=1), Notes()
    async with batching(engine, SHEDDING, notes) as batcher:
        busy = await occupy(batcher, engine)
        early = await enter(batcher, 20.0)  # nothing is known yet
        batcher.costs.learn(1, 100.0)
        text = r"in (29\d|300)\d\d\d ms .* in 150000 ms"
        with pytest.raises(PredictedLate, match=text) as caught:
            batcher.reserve(IMAGE.nbytes, timeout_s=150.0)
        assert 140 <= int(caught.value.retry_after) <= 150
        with pytest.raises(PredictedLate, match="shed_late_requests"):
            await batcher.submit(IMAGE, timeout_s=150.0)
        unhurried = await enter(batcher, None)  # no deadline, no prediction
        patient = await enter(batcher, 1000.0)
        engine.hold.set()
        await asyncio.gather(busy, unhurried, patient)
        await asyncio.gather(early, return_exceptions=True)
    assert notes.rejections[:2] == ["predicted_late"] * 2


async def test_what_follows_inference_is_part_of_the_answer() -> None:
    """100 s at work and 100 s of its own: with 30 s more for the answer it takes 230 s."""
    engine, notes = FakeEngine(SIZE, max_batch_size=1), Notes()
    async with batching(engine, SHEDDING, notes) as batcher:
        busy = await occupy(batcher, engine)
        batcher.costs.learn(1, 100.0)
        for answer_s, timeout_s, refused in (
            (0.0, 195.0, True),
            (0.0, 205.0, False),
            (30.0, 205.0, True),
            (30.0, 225.0, True),
            (30.0, 235.0, False),
        ):
            if refused:
                with pytest.raises(PredictedLate):
                    batcher.reserve(1, timeout_s=timeout_s, answer_s=answer_s)
            else:
                batcher.reserve(1, timeout_s=timeout_s, answer_s=answer_s).release()
        # And by when the image must have been inferred.
        before = asyncio.create_task(batcher.submit(IMAGE, timeout_s=500.0, answer_s=30.0))
        await until(lambda: batcher.waiting)
        (item,) = batcher._queue._items
        assert item.deadline == item.arrived + 470.0
        engine.hold.set()
        await asyncio.gather(busy, before)
    assert notes.rejections == ["predicted_late"] * 3


async def test_images_of_one_request_are_in_time_together_or_not_at_all() -> None:
    engine = FakeEngine(SIZE, max_batch_size=2)
    async with batching(engine, SHEDDING) as batcher:
        busy = await occupy(batcher, engine)
        for size in (1, 2):
            batcher.costs.learn(size, 100.0)
        # One or two share the next batch: 200 s with the one at work; three take another.
        for images, seconds in ((1, 200), (2, 200), (3, 300), (4, 300), (5, 400)):
            with pytest.raises(PredictedLate):
                batcher.check_time(images, seconds - 5.0, 0.0)
            batcher.check_time(images, seconds + 5.0, 0.0)
            with pytest.raises(PredictedLate):
                batcher.check_time(images, seconds + 5.0, 10.0)
        batcher.check_time(99, None, 0.0)
        engine.hold.set()
        await busy


async def test_caution_is_larger_before_decoding_than_after() -> None:
    """A mean of 120 s and a spread of 20: two spreads at the entry, where nothing is lost yet."""
    engine = FakeEngine(SIZE, max_batch_size=1)
    async with batching(engine, SHEDDING) as batcher:
        busy = await occupy(batcher, engine)
        for seconds in (100.0, 200.0):
            batcher.costs.learn(1, seconds)
        # Both the one at work and its own: 2 x (120 + 2 x 20).
        with pytest.raises(PredictedLate):
            batcher.reserve(1, timeout_s=315.0)
        batcher.reserve(1, timeout_s=325.0).release()
        engine.hold.set()
        await busy


async def test_an_image_that_is_being_decoded_counts() -> None:
    engine = FakeEngine(SIZE, max_batch_size=1)
    limits = BatchLimits(2, 1 << 20, 20_000, shed_late=True)
    async with batching(engine, limits) as batcher:
        busy = await occupy(batcher, engine)
        batcher.costs.learn(1, 100.0)
        with batcher.reserve(IMAGE.nbytes, timeout_s=250.0):
            with pytest.raises(PredictedLate):
                batcher.reserve(IMAGE.nbytes, timeout_s=250.0)
            with batcher.reserve(IMAGE.nbytes), pytest.raises(QueueFull, match="max_queue_size"):
                batcher.reserve(IMAGE.nbytes)
        reservation = batcher.reserve(IMAGE.nbytes, timeout_s=250.0)
        waiting = asyncio.create_task(
            batcher.submit(IMAGE, timeout_s=250.0, reservation=reservation)
        )
        await until(lambda: batcher.waiting)
        # It counts once, not twice.
        with batcher.reserve(IMAGE.nbytes):
            pass
        reservation.release()
        engine.hold.set()
        await asyncio.gather(busy, waiting)


async def test_a_place_is_left_when_its_image_is_refused() -> None:
    engine = FakeEngine(SIZE, max_batch_size=1)
    async with batching(engine, BatchLimits(1, 1 << 20, 20_000)) as batcher:
        busy = await occupy(batcher, engine)
        for _ in range(3):
            with pytest.raises(ValueError, match="no image"), batcher.reserve(IMAGE.nbytes):
                raise ValueError("no image")
        engine.hold.set()
        await busy
        await batcher.drain()
        with pytest.raises(NotReady):
            batcher.reserve(IMAGE.nbytes)


async def test_idle_instances_take_more_than_may_wait() -> None:
    engine = FakeEngine(SIZE, max_batch_size=2, instances=2)
    async with batching(engine, BatchLimits(1, 1 << 20, 20_000)) as batcher:
        reservations = [batcher.reserve(IMAGE.nbytes) for _ in range(5)]
        with pytest.raises(QueueFull):
            batcher.reserve(IMAGE.nbytes)
        for reservation in reservations:
            reservation.release()


async def test_an_idle_engine_takes_every_image_whatever_was_learnt() -> None:
    engine = FakeEngine(SIZE)
    async with batching(engine, SHEDDING) as batcher:
        batcher.costs.learn(1, 1000.0)
        assert (await batcher.submit(IMAGE, timeout_s=20.0)).batch_size == 1
        # And so learns better.
        for _ in range(40):
            await batcher.submit(IMAGE)
        assert (batcher.costs.predict(1) or 0.0) < 20.0


async def test_whoever_cannot_be_answered_in_time_leaves_the_place_to_others() -> None:
    engine, notes = FakeEngine(SIZE, max_batch_size=2), Notes()
    async with batching(engine, SHEDDING, notes) as batcher:
        busy = await occupy(batcher, engine)
        entered = [await enter(batcher, seconds) for seconds in (20.0, 21.0, 2000.0, None, 22.0)]
        # The one at work will be learnt with a fifth of the weight.
        for size in (1, 2):
            batcher.costs.learn(size, 1000.0)
        engine.hold.set()
        results = await asyncio.gather(busy, *entered, return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds == [Inferred, PredictedLate, PredictedLate, Inferred, Inferred, Inferred]
    # The last of them found nobody else: a run tells whether batches still take so long.
    assert engine.batch_sizes == [1, 2, 1]
    assert notes.rejections == ["predicted_late"] * 2
    assert all(
        re.search("setting shed_late_requests", str(result))
        for result in results
        if isinstance(result, PredictedLate)
    )


async def test_without_shedding_all_are_run() -> None:
    engine = FakeEngine(SIZE, max_batch_size=2)
    async with batching(engine) as batcher:
        busy = await occupy(batcher, engine)
        entered = [await enter(batcher, 20.0) for _ in range(2)]
        batcher.costs.learn(2, 1000.0)
        engine.hold.set()
        await asyncio.gather(busy, *entered)
    assert engine.batch_sizes == [1, 2]


async def test_who_could_just_be_late_goes_behind_who_will_be_in_time() -> None:
    engine, notes = FakeEngine(SIZE, max_batch_size=3), Notes()
    async with batching(engine, SHEDDING, notes) as batcher:
        busy = await occupy(batcher, engine)
        entered = [await enter(batcher, seconds) for seconds in (1100.0, 1200.0, 2000.0, 2000.0)]
        # A mean of 1080 s and a spread of 80; the one at work does not count for batches of three.
        for seconds in (1000.0, 1400.0):
            batcher.costs.learn(3, seconds)
        batcher.costs.learn(1, 0.001)
        engine.hold.set()
        results = await asyncio.gather(busy, *entered, return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds == [Inferred, PredictedLate, Inferred, Inferred, Inferred]
    assert engine.batch_sizes == [1, 3]
    assert notes.rejections == ["predicted_late"]


async def test_with_several_instances_another_may_take_who_could_just_be_late() -> None:
    engine, notes = FakeEngine(SIZE, max_batch_size=1, instances=2), Notes()
    async with batching(engine, SHEDDING, notes) as batcher:
        busy = [await occupy(batcher, engine), await occupy(batcher, engine)]
        entered = [await enter(batcher, 900.0) for _ in range(2)]
        for seconds in (1000.0, 1400.0):
            batcher.costs.learn(1, seconds)
        # Once those at work are learnt: 691 s to 864, and spreads of 280 and more.
        engine.hold.set()
        results = await asyncio.gather(*busy, *entered, return_exceptions=True)
    assert {type(result) for result in results} == {Inferred}
