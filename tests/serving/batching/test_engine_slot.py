"""The engine behind a batcher: when it is broken, and when another one takes its place."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from serving.batching.engine_runner import Batch, EngineSlot
from serving.batching.queue import BatchLimits
from serving.errors import EngineFailed, NotReady
from serving.imaging.geometry import Size
from serving.testing import FakeEngine
from tests.support.batching import batching
from tests.support.waiting import until

# Nothing here takes a second; what hangs is to be red soon.
pytestmark = pytest.mark.timeout(60)

SIZE = Size(4, 6)
IMAGE = np.zeros((4, 6, 3), np.uint8)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Slots:
    """A slot, and the reasons that it gave for being broken."""

    def __init__(self, max_failures: int = 3) -> None:
        self.reasons: list[str] = []
        self.first, self.second = FakeEngine(SIZE), FakeEngine(SIZE)
        self.slot = EngineSlot(self.first, max_failures, self.reasons.append)


async def test_the_third_failure_in_a_row_breaks_an_engine() -> None:
    made = Slots()
    slot = made.slot
    for reason in ("a", "b"):
        slot.count_failure(made.first, reason)
    slot.count_success(made.first)
    for reason in ("c", "d"):
        slot.count_failure(made.first, reason)
        assert slot.broken is None
        assert slot.healthy.is_set()
    slot.count_failure(made.first, "e")
    assert slot.broken == "3 runs in a row failed, the last with: e"
    assert not slot.healthy.is_set()
    # What was under way ends as it may: the reason stays the first, and is reported once.
    slot.count_failure(made.first, "f")
    slot.give_up(made.first, "g")
    assert made.reasons == [slot.broken]


async def test_a_new_engine_begins_without_failures() -> None:
    made = Slots()
    slot = made.slot
    for _ in range(2):
        slot.count_failure(made.first, "as told")
    slot.give_up(made.first, "it hangs")
    await slot.replace(made.second)
    assert slot.engine is made.second
    assert made.first.closed
    assert slot.broken is None
    # What is left of the old one's runs counts for nobody.
    slot.count_failure(made.first, "late")
    slot.count_failure(made.second, "its own")
    slot.count_failure(made.second, "its own")
    assert slot.broken is None
    slot.count_success(made.first)
    slot.count_failure(made.second, "its own")
    assert slot.broken is not None


async def test_an_engine_that_was_replaced_cannot_break_the_next() -> None:
    made = Slots(max_failures=1)
    made.slot.give_up(made.first, "broken")
    await made.slot.replace(made.second)
    made.slot.count_failure(made.first, "late")
    made.slot.give_up(made.first, "later")
    assert made.slot.broken is None
    assert made.reasons == ["broken"]


async def test_nothing_goes_to_the_next_engine_before_the_old_one_is_done() -> None:
    made = Slots()
    slot = made.slot
    batch = Batch([], 0.0)
    slot.begin(batch)
    slot.give_up(made.first, "one of its instances failed")
    replacing = asyncio.create_task(slot.replace(made.second))
    await settle()
    assert not replacing.done()
    assert not made.first.closed
    assert not slot.healthy.is_set()
    assert slot.broken is not None
    slot.end(batch)
    await replacing
    assert made.first.closed
    assert not made.second.closed
    assert slot.healthy.is_set()


async def test_a_run_left_behind_closes_its_engine_when_it_ends() -> None:
    made = Slots()
    slot = made.slot
    calls = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for call in calls:
        slot.leave_behind(call, made.first)
    assert slot.has_stuck_run
    slot.give_up(made.first, "it hangs")
    await slot.replace(made.second)
    assert not made.first.closed, "a run is still in it"
    calls[0].set_exception(EngineFailed("at last"))
    await settle()
    assert not made.first.closed, "and another one"
    assert slot.has_stuck_run
    calls[1].cancel()
    await settle()
    assert made.first.closed
    assert not slot.has_stuck_run
    assert not made.second.closed


async def test_a_run_that_ends_while_its_engine_is_still_there_closes_nothing() -> None:
    made = Slots()
    call = asyncio.get_running_loop().create_future()
    made.slot.leave_behind(call, made.first)
    call.set_result(None)
    await settle()
    assert not made.first.closed
    assert not made.slot.has_stuck_run


async def test_an_instance_that_still_runs_is_waited_for() -> None:
    """Two instances: one run fails and breaks the engine, the other one is under way."""
    broken: list[str] = []
    engine = FakeEngine(SIZE, instances=2, max_batch_size=1, failing_runs=frozenset({1}))
    limits = BatchLimits(100, 1 << 20, 20_000, max_failures=1)
    async with batching(engine, limits, on_broken=broken.append) as batcher:
        engine.hold.clear()
        slow = asyncio.create_task(batcher.submit(IMAGE))
        await until(lambda: engine.batch_sizes)
        held, engine.hold = engine.hold, type(engine.hold)()
        engine.hold.set()
        with pytest.raises(EngineFailed, match="run 1 fails"):
            await batcher.submit(IMAGE)
        fresh = FakeEngine(SIZE, instances=2, max_batch_size=1)
        replacing = asyncio.create_task(batcher.replace(fresh))
        await settle()
        assert not replacing.done()
        assert not engine.closed
        with pytest.raises(NotReady, match="1 runs in a row failed"):
            await batcher.submit(IMAGE)
        held.set()
        assert (await slow).batch_size == 1
        await replacing
        assert engine.closed
        await batcher.submit(IMAGE)
    assert (engine.batch_sizes, fresh.batch_sizes) == ([1, 1], [1])
    assert len(broken) == 1


async def test_two_failures_are_bad_luck_and_the_third_breaks_the_engine() -> None:
    broken: list[str] = []
    engine = FakeEngine(SIZE, max_batch_size=1, failing_runs=frozenset(range(9)))
    async with batching(engine, on_broken=broken.append) as batcher:
        for failures in (1, 2, 3):
            with pytest.raises(EngineFailed):
                await batcher.submit(IMAGE)
            assert len(broken) == (failures == 3)
        await batcher.replace(FakeEngine(SIZE))
