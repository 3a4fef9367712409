"""Priority levels: from the configuration and the request to the order of the queue."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http

from serving.batching.queue import BatchLimits, Scheduling
from serving.errors import InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.models.repository import read_model
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, free_ports, serve_fake, write_model
from tests.support.batching import LIMITS, batching
from tests.support.waiting import until

SIZE = Size(4, 6)
LEVELS = BatchLimits(
    max_queue_size=100, max_queue_bytes=1 << 20, queue_timeout_ms=20_000,
    scheduling=Scheduling(priority_levels=3, default_level=2),
)  # fmt: skip


async def finish_order(limits: BatchLimits, priorities: list[int]) -> list[int]:
    """Numbers of the images as they were answered, all having waited for the same run."""
    engine = FakeEngine(SIZE, max_batch_size=1)
    engine.hold.clear()
    done: list[int] = []
    async with batching(engine, limits) as batcher:

        async def submit(number: int, priority: int) -> None:
            await batcher.submit(np.zeros((4, 6, 3), np.uint8), priority=priority)
            done.append(number)

        first = asyncio.create_task(submit(-1, 0))
        await until(lambda: engine.batch_sizes)
        rest = [asyncio.create_task(submit(i, level)) for i, level in enumerate(priorities)]
        await until(lambda: batcher.waiting == len(rest))
        engine.hold.set()
        await asyncio.gather(first, *rest)
    return done[1:]


async def test_a_higher_level_overtakes_and_equals_keep_their_order() -> None:
    # 0 is the default, 2; what is no level is the default too, as in Triton.
    assert await finish_order(LEVELS, [3, 0, 1, 2, 3, 1, 99]) == [2, 5, 1, 3, 6, 0, 4]


async def test_without_levels_priorities_change_nothing() -> None:
    assert await finish_order(LIMITS, [3, 0, 1, 2]) == [0, 1, 2, 3]


def with_queue(repository: Path, queue: str) -> Path:
    folder = write_model(repository)
    config = folder / "config.pbtxt"
    text = config.read_text().replace("dynamic_batching { }", f"dynamic_batching {{ {queue} }}")
    config.write_text(text.replace("max_batch_size: 4", "max_batch_size: 1"))
    return folder


@pytest.mark.parametrize(
    "queue",
    [
        "priority_levels: 2",
        "priority_levels: 2 default_priority_level: 3",
        "default_priority_level: 1",
    ],
)
def test_a_default_outside_the_levels_is_refused(tmp_path: Path, queue: str) -> None:
    with pytest.raises(InvalidModel, match="default_priority_level"):
        read_model(with_queue(tmp_path, queue))


class Recorder(FakeEngine):
    """Remembers the first value of each image, in the order of the runs."""

    def __init__(self) -> None:
        super().__init__(MODEL_SIZE, max_batch_size=1)
        self.seen: list[int] = []

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        self.seen.append(int(batch[0, 0, 0, 0]))
        return super().run(batch)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_tritonclients_priority_reaches_the_queue(tmp_path: Path, protocol: str) -> None:
    with_queue(tmp_path, "priority_levels: 2 default_priority_level: 2")
    engine = Recorder()
    module = {"http": triton_http, "grpc": triton_grpc}[protocol]
    with ServerThread(free_ports(tmp_path), serve_fake(engine)) as server:
        client = module.InferenceServerClient(f"127.0.0.1:{getattr(server.ports, protocol)}")
        queue = server.registry.get("bands").batcher

        async def infer(value: int, priority: int) -> None:
            item = module.InferInput("image", [1, 32, 48, 3], "UINT8")
            item.set_data_from_numpy(np.full((1, 32, 48, 3), value, np.uint8))
            await client.infer("bands", [item], priority=priority)

        engine.hold.clear()
        tasks = [asyncio.create_task(infer(1, 0))]
        await until(lambda: engine.seen)
        for waiting, (value, priority) in enumerate([(2, 0), (3, 1)], 1):
            tasks.append(asyncio.create_task(infer(value, priority)))
            await until(lambda n=waiting: queue.waiting == n)
        engine.hold.set()
        await asyncio.gather(*tasks)
        await client.close()
    assert engine.seen == [1, 3, 2]
