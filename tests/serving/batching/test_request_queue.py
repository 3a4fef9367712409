"""The queue by itself: who goes before whom, what has room, what is taken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from serving.batching.queue import BatchLimits, Item, QueuePolicy, RequestQueue, Scheduling


def image_of(size: int) -> npt.NDArray[np.uint8]:
    return np.zeros(size, np.uint8)


def made(levels: int = 3, **limits: float) -> RequestQueue:
    scheduling = Scheduling(
        priority_levels=levels,
        default_level=min(2, levels),
        policies={2: QueuePolicy("priority_queue_policy[2]", max_size=2)},
    )
    given = {"max_queue_size": 4, "max_queue_bytes": 100, "queue_timeout_ms": 1e3, **limits}
    return RequestQueue(BatchLimits(scheduling=scheduling, **given))


def fill(queue: RequestQueue, *levels: int, size: int = 10) -> list[Item]:
    return [queue.add(image_of(size), float(10 * n), level) for n, level in enumerate(levels, 1)]


async def test_levels_go_first_then_what_was_not_delayed_then_who_came_first() -> None:
    queue = made()
    items = fill(queue, 2, 1, 2, 3, 1)
    queue.delay(items[0])
    order = [items.index(item) for item in queue.take(9)]
    assert order == [1, 4, 2, 0, 3]
    assert len(queue) == queue.bytes == 0


@pytest.mark.parametrize(("level", "before"), [(1, 1), (2, 3), (3, 6), (None, 1)])
async def test_who_comes_goes_before_what_was_delayed(level: int | None, before: int) -> None:
    """One image of level 1, three of level 2 of which one is delayed, two of level 3."""
    queue = made(max_queue_size=9)
    items = fill(queue, 2, 1, 2, 3, 2, 3)
    queue.delay(items[2])
    assert queue.count_before(level) == before
    if level is not None:
        item = queue.add(image_of(10), 99.0, level)
        assert queue.take(9).index(item) == before


async def test_without_levels_nobody_goes_before_the_first() -> None:
    queue = made(levels=0)
    fill(queue, 0, 0)
    assert queue.count_before(0) == queue.count_before(None) == 2


async def test_the_oldest_is_who_came_first_wherever_it_waits() -> None:
    queue = made()
    items = fill(queue, 3, 1, 2)
    assert queue.oldest == 10.0
    assert queue.remove(items[0])
    assert not queue.remove(items[0]), "it is out already"
    assert queue.oldest == 20.0
    assert (len(queue), queue.bytes) == (2, 20)


async def test_a_queue_is_full_at_its_size_and_not_before() -> None:
    queue = made()
    fill(queue, 1, 1, 3)
    assert queue.find_lack(10, 1) is None
    assert queue.find_lack(10, 1, reserved=1) == (
        "queue_size", "4 images wait already (setting max_queue_size)",
    )  # fmt: skip
    fill(queue, 1)
    reason, text = queue.find_lack(10, 1) or ("", "")
    assert (reason, text) == ("queue_size", "4 images wait already (setting max_queue_size)")


async def test_a_queue_is_full_of_bytes_beyond_its_bound_and_not_at_it() -> None:
    queue = made()
    fill(queue, 1, 3, size=45)
    assert queue.find_lack(10, 1) is None
    assert queue.find_lack(11, 1) == (
        "queue_bytes", "90 bytes wait already (setting max_queue_bytes)",
    )  # fmt: skip


async def test_a_level_is_full_at_its_own_size() -> None:
    queue = made()
    fill(queue, 2, 1)
    assert queue.find_lack(10, 2) is None
    fill(queue, 2)
    assert queue.find_lack(10, 2) == (
        "policy_queue_size",
        "2 images wait already (dynamic_batching.priority_queue_policy[2].max_queue_size)",
    )
    assert queue.find_lack(10, 1) is None
    assert queue.find_lack(10, None) is None, "the level is not known yet"


async def test_only_what_somebody_waits_for_is_taken() -> None:
    queue = made()
    items = fill(queue, 1, 1, 1, 1)
    for item in (items[0], items[2]):
        item.future.cancel()
    assert queue.take(1) == [items[1]]
    assert (len(queue), queue.bytes) == (2, 20)
    assert queue.take(5) == [items[3]]
    assert queue.take(5) == []
