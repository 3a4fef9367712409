"""Streams: order, errors in their place, bounded work, and the end of the server."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.errors import NotReady
from serving.grpc.stream import answer_in_order
from tests.support.band_model import Served, band_labels, bands, encode
from tests.support.waiting import until


def frame(data: bytes, **options: str) -> pb.SegmentRequest:
    return pb.SegmentRequest(model="bands", image=data, format="raw", **options)


@pytest.fixture
def stub(served: Served) -> Iterator[segserve_pb2_grpc.SegmenterStub]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield segserve_pb2_grpc.SegmenterStub(channel)


def test_frames_are_answered_in_order_and_a_bad_one_in_its_place(
    stub: segserve_pb2_grpc.SegmenterStub,
) -> None:
    # Large ones take longer than the small ones that follow.
    sizes = [(400, 600), (20, 30), (300, 300), (8, 8), (16, 40), (12, 12), (9, 9), (8, 16)] * 2
    frames = [frame(encode(bands(*size))) for size in sizes]
    frames[3] = frame(b"no image")
    frames[5] = pb.SegmentRequest(model="nope", image=frames[5].image)
    answers = list(stub.SegmentStream(iter(frames)))
    assert [answer.index for answer in answers] == list(range(len(sizes)))
    for index, (answer, size) in enumerate(zip(answers, sizes, strict=True)):
        if index in (3, 5):
            code = {3: "invalid_image", 5: "model_not_found"}[index]
            assert answer.error.code == code
            assert answer.error.message
        else:
            assert (answer.response.mask_height, answer.response.mask_width) == size


def test_a_slow_engine_stops_the_sender(
    stub: segserve_pb2_grpc.SegmenterStub, served: Served
) -> None:
    limit = served.server.settings.max_stream_frames
    # Each frame is larger than what HTTP/2 lets a sender have under way.
    data = encode(np.random.default_rng(1).integers(0, 255, (1500, 1500, 3), np.uint8), "BMP")
    sent = 0
    total = limit + 20
    taken = threading.Semaphore(0)

    def frames() -> Iterator[pb.SegmentRequest]:
        nonlocal sent
        for _ in range(total):
            sent += 1
            taken.release()
            yield frame(data, size=pb.SIZE_MODEL)

    served.engine.hold.clear()
    try:
        answers = stub.SegmentStream(frames())
        for _ in range(limit):
            assert taken.acquire(timeout=30)
        # Everything the server takes goes on being taken; nothing is answered.
        while taken.acquire(timeout=1.0):
            pass
        stalled = sent
        assert limit <= stalled < total
    finally:
        served.engine.hold.set()
    assert [answer.index for answer in answers] == list(range(total))
    assert sent == total


async def numbers(count: int) -> AsyncIterator[int]:
    for index in range(count):
        yield index


async def test_no_more_than_the_limit_is_at_work_while_the_reader_is_slow() -> None:
    started = 0

    async def work(index: int, request: int) -> int:
        nonlocal started
        started += 1
        await asyncio.sleep(0)
        return request * 10

    answers = answer_in_order(numbers(50), work, 4, asyncio.Event())
    for expected in range(50):
        assert await anext(answers) == expected * 10
        for _ in range(20):  # the reader does something else
            await asyncio.sleep(0)
        # What it has taken counts until it asks for the next.
        assert started <= expected + 4
    assert [answer async for answer in answers] == []


async def test_leaving_a_stream_ends_its_work() -> None:
    begun, cancelled = [], []

    async def work(index: int, request: int) -> int:
        begun.append(index)
        if index == 0:
            return 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return index

    answers = answer_in_order(numbers(50), work, 3, asyncio.Event())
    assert await anext(answers) == 0
    await until(lambda: len(begun) == 3)
    await answers.aclose()
    await until(lambda: len(cancelled) == 2)
    assert (begun, cancelled) == ([0, 1, 2], [1, 2])


async def test_a_stopping_server_answers_what_it_has_read() -> None:
    stopping, endless = asyncio.Event(), asyncio.Queue()
    endless.put_nowait(1)
    endless.put_nowait(2)

    async def requests() -> AsyncIterator[int]:
        while True:
            yield await endless.get()

    async def work(index: int, request: int) -> int:
        await asyncio.sleep(0.05)
        return request

    answers = answer_in_order(requests(), work, 4, stopping)
    assert await anext(answers) == 1
    stopping.set()
    assert await anext(answers) == 2
    with pytest.raises(NotReady, match="stopping"):
        await anext(answers)


def pixels(module: object, n: int = 1) -> object:
    data = np.stack([bands(32, 48)] * n)
    item = module.InferInput("image", list(data.shape), "UINT8")
    item.set_data_from_numpy(data)
    return item


@pytest.mark.parametrize("empty_final", [False, True])
def test_tritonclient_streams(served: Served, empty_final: bool) -> None:
    results: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: results.put((result, error)))
        for index in range(12):
            client.async_stream_infer(
                "nope" if index == 3 else "bands",
                [pixels(triton, 5 if index == 7 else 1)],
                request_id=str(index),
                enable_empty_final_response=empty_final,
            )
        answers = [results.get(timeout=30) for _ in range(12)]
        client.stop_stream()
    for index, (result, error) in enumerate(answers):
        if index in (3, 7):
            assert result is None
            assert {3: "unknown model 'nope'", 7: "batch-size"}[index] in str(error)
        else:
            assert error is None
            response = result.get_response()
            assert response.id == str(index)
            # The answer of a model that is not decoupled is the final one itself.
            assert response.parameters["triton_final_response"].bool_param
            np.testing.assert_array_equal(result.as_numpy("mask")[0], band_labels(32, 48))


async def test_tritonclients_asyncio_client(served: Served) -> None:
    async with triton_aio.InferenceServerClient(served.grpc) as client:
        assert await client.is_model_ready("bands")
        result = await client.infer("bands", [pixels(triton_aio)])
        np.testing.assert_array_equal(result.as_numpy("mask")[0], band_labels(32, 48))

        async def requests() -> AsyncIterator[dict[str, object]]:
            for index in range(6):
                model = "nope" if index == 2 else "bands"
                yield {"model_name": model, "inputs": [pixels(triton_aio)],
                       "request_id": str(index)}  # fmt: skip

        answers = [pair async for pair in client.stream_infer(requests())]
    assert [error is not None for _, error in answers] == [i == 2 for i in range(6)]
    ids = [result.get_response().id for result, error in answers if error is None]
    assert ids == ["0", "1", "3", "4", "5"]
