"""Views of one image in the batcher: bounded, blended, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.batching.batcher import Batcher
from serving.batching.queue import Inferred
from serving.errors import DeadlineExceeded, EngineFailed
from serving.imaging.blending import Blender
from serving.imaging.geometry import PLAIN, Augmentation, Size, plan
from serving.imaging.restore import Prediction
from serving.observability.request_context import Timings
from serving.preparation import Views
from serving.testing import FakeEngine
from serving.tiling import blend_views
from tests.support.band_model import band_labels, bands
from tests.support.batching import LIMITS, Notes, batching
from tests.support.waiting import until

# Nothing here takes long; what hangs is to be red soon.
pytestmark = pytest.mark.timeout(60)

MODEL = Size(16, 24)
IMAGE = Size(50, 80)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(MODEL)


@pytest.fixture
async def batcher(engine: FakeEngine) -> AsyncIterator[Batcher]:
    async with batching(engine) as batcher:
        yield batcher


def tiles(augmentation: Augmentation = PLAIN) -> Views:
    photo = bands(IMAGE.height, IMAGE.width)
    return Views.of(photo, plan(IMAGE, MODEL, "tile", augmentation=augmentation))


class Counting(Blender):
    """Knows the most that it has held, with what its arrays are parts of."""

    most = 0

    def add(self, index: int, logits: np.ndarray) -> None:
        super().add(index, logits)
        assert logits.base is None or logits.base.nbytes == logits.nbytes, "it keeps all of a batch"
        wholes = {id(a if a.base is None else a.base): a if a.base is None else a.base
                  for a in self._held.values()}  # fmt: skip
        self.most = max(self.most, sum(whole.nbytes for whole in wholes.values()))


async def test_tiles_of_an_image_become_one_label_map(batcher, engine, pool) -> None:
    views, timings = tiles(), Timings()
    blender = Counting(views.plan, IMAGE, MODEL)
    await blend_views(views, blender, batcher, pool, timings, in_flight=3)
    np.testing.assert_array_equal(blender.labels, band_labels(IMAGE.height, IMAGE.width))
    assert sum(engine.batch_sizes) == views.plan.view_count == 20
    assert set(timings.seconds) == {"preprocess", "infer", "restore", "queue"}
    # Two rows of five tiles, and what is in flight.
    assert blender.most <= (10 + 3) * 8 * 16 * 24 * 4


async def test_the_engines_time_is_counted_once_however_many_share_a_run(pool) -> None:
    """By a clock that only runs go by: half a second each, for up to four of the 20 tiles."""
    now = 0.0

    class Slow(FakeEngine):
        def run(self, batch: np.ndarray) -> Prediction:
            nonlocal now
            found = super().run(batch)
            now += 0.5
            return found

    waits: list[float] = []

    class Watched(Batcher):
        async def submit(self, *arguments: object, **options: object) -> Inferred:
            inferred = await super().submit(*arguments, **options)  # type: ignore[arg-type]
            waits.append(inferred.queue_seconds)
            return inferred

    engine, views, timings = Slow(MODEL), tiles(), Timings()
    batcher = Watched(engine, LIMITS, Notes(), lambda: now)
    batcher.start()
    blender = Blender(views.plan, IMAGE, MODEL)
    await blend_views(views, blender, batcher, pool, timings, in_flight=8)
    await asyncio.wait_for(batcher.drain(), 20)
    assert max(engine.batch_sizes) > 1
    assert timings.seconds["infer"] == pytest.approx(0.5 * len(engine.batch_sizes))
    # The longest wait of one tile, not all of theirs.
    assert timings.seconds["queue"] == max(waits) > min(waits)


async def test_the_requests_place_is_left_by_its_first_view(batcher, engine, pool) -> None:
    views = tiles()
    reservation = batcher.reserve(1)
    blender = Blender(views.plan, IMAGE, MODEL)
    await blend_views(
        views, blender, batcher, pool, Timings(), in_flight=4, reservation=reservation
    )
    assert batcher._admission.reserved == 0
    np.testing.assert_array_equal(blender.labels, band_labels(IMAGE.height, IMAGE.width))


async def test_no_more_than_allowed_are_in_flight(batcher, engine, pool) -> None:
    views, seen = tiles(), []
    engine.hold.clear()
    blending = asyncio.create_task(
        blend_views(views, Blender(views.plan, IMAGE, MODEL), batcher, pool, Timings(), in_flight=3)
    )
    await until(lambda: sum(engine.batch_sizes) + len(batcher._queue) >= 3)
    await asyncio.sleep(0.05)
    seen.append(sum(engine.batch_sizes) + len(batcher._queue))
    engine.hold.set()
    await blending
    assert seen == [3]


async def test_flips_and_scales_agree_where_the_network_is_local(batcher, engine, pool) -> None:
    views = tiles(Augmentation((0.75, 1.0, 1.5), flip=True))
    blender = Blender(views.plan, IMAGE, MODEL, confidence=True)
    await blend_views(views, blender, batcher, pool, Timings(), in_flight=8)
    truth = band_labels(IMAGE.height, IMAGE.width)
    # Scales move the edges between bands by parts of a pixel.
    assert (blender.labels == truth).mean() > 0.95
    inner = (np.arange(IMAGE.width) % 10 > 2) & (np.arange(IMAGE.width) % 10 < 7)
    np.testing.assert_array_equal(blender.labels[:, inner], truth[:, inner])


async def test_a_cancelled_request_takes_its_tiles_out_of_the_queue(batcher, engine, pool) -> None:
    views = tiles()
    engine.hold.clear()
    blending = asyncio.create_task(
        blend_views(views, Blender(views.plan, IMAGE, MODEL), batcher, pool, Timings(), in_flight=8)
    )
    await until(lambda: len(batcher._queue) >= 4)
    blending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blending
    assert not batcher._queue
    engine.hold.set()
    await asyncio.sleep(0.02)
    assert sum(engine.batch_sizes) <= 4  # what was in the engine already


async def test_a_tile_that_fails_ends_the_request_and_the_other_tiles(pool) -> None:
    engine = FakeEngine(MODEL, failing_runs=frozenset({1}))
    views = tiles()
    blender = Blender(views.plan, IMAGE, MODEL)
    async with batching(engine) as batcher:
        with pytest.raises(EngineFailed, match="run 1"):
            await blend_views(views, blender, batcher, pool, Timings(), in_flight=4)
        assert not batcher._queue


async def test_the_deadline_is_the_requests_not_the_tiles(batcher, engine, pool) -> None:
    engine.delay_s = 0.02
    views, deadline = tiles(), asyncio.get_running_loop().time() + 0.03
    blender = Blender(views.plan, IMAGE, MODEL)
    with pytest.raises(DeadlineExceeded):
        await blend_views(views, blender, batcher, pool, Timings(), in_flight=1, deadline=deadline)
    assert sum(engine.batch_sizes) < views.plan.view_count
