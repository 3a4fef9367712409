"""Runs an image's views through the batcher, as ordinary items, and blends the answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from itertools import islice

from serving.batching.admission import Reservation
from serving.batching.batcher import Batcher
from serving.batching.queue import Inferred
from serving.imaging.blending import Blender
from serving.observability.request_context import Timings
from serving.preparation import Pixels, Views


async def blend_views(
    views: Views,
    blender: Blender,
    batcher: Batcher,
    pool: Executor,
    timings: Timings,
    *,
    in_flight: int,
    deadline: float | None = None,
    reservation: Reservation | None = None,
) -> None:
    """Infers every view and adds it to ``blender``; no more than ``in_flight`` at once.

    ``timings`` get the engine's time for these views (``infer``: a batch's divided by its images)
    and the longest that one of them waited (``queue``).

    Args:
        in_flight: views that wait, are inferred, or are answered and not yet blended.
        deadline: by the event loop's clock.
        reservation: of the image, whose views were found to be in time.

    Raises:
        SegserveError: of the first view that fails; the others leave the queue.
    """
    loop = asyncio.get_running_loop()

    async def see(index: int) -> tuple[int, Inferred, Timings]:
        own = Timings()
        pixels = await loop.run_in_executor(pool, _cut, views, index, own)
        left = None if deadline is None else deadline - loop.time()
        return index, await batcher.submit(pixels, timeout_s=left, reservation=reservation), own

    indices = iter(range(len(views.plan.views)))
    tasks: set[asyncio.Task[tuple[int, Inferred, Timings]]] = set()
    queued = 0.0
    try:
        while True:
            tasks |= {loop.create_task(see(k)) for k in islice(indices, in_flight - len(tasks))}
            if not tasks:
                break
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, inferred, own = task.result()
                logits = inferred.prediction.logits
                assert logits is not None
                # A part of a batch would keep all of the batch.
                blender.add(index, logits if inferred.batch_size == 1 else logits.copy())
                timings.add("preprocess", own.seconds["preprocess"])
                timings.add("infer", inferred.infer_seconds / inferred.batch_size)
                queued = max(queued, inferred.queue_seconds)
            if blender.can_advance:
                await loop.run_in_executor(pool, _advance, blender, timings)
            # Only now may others follow: what is answered and not blended counts too.
            tasks -= done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    timings.add("queue", queued)


def _cut(views: Views, index: int, timings: Timings) -> Pixels:
    with timings.measure("preprocess"):
        return views.pixels(index)


def _advance(blender: Blender, timings: Timings) -> None:
    with timings.measure("restore"):
        blender.advance()
