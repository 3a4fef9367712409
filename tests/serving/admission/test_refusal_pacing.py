"""Callers that ignore Retry-After are slowed, so that refusing them leaves time for answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import httpx
import pytest
from segserve_client.proto import segserve_pb2, segserve_pb2_grpc

from serving.errors import KeyLimitExceeded
from serving.http.middleware import longest_wait
from serving.observability.metrics import Metrics
from serving.observability.middleware import (
    BURST_S,
    MAX_DELAY_S,
    RefusalPacer,
    RequestContexts,
)
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, band_labels, bands, encode, serve_fake, write_model
from tests.support.running import running
from tests.support.waiting import until

DATA = encode(bands(32, 48))
SEGMENT = "/v2/models/bands/segment?format=raw"


async def fill(
    server: Server, engine: FakeEngine, http: httpx.AsyncClient, queued: int
) -> list[asyncio.Task[httpx.Response]]:
    """One image in the engine, which is held, and as many as may wait for it."""
    engine.hold.clear()
    waiting = [asyncio.create_task(http.post(SEGMENT, content=DATA))]
    await until(lambda: engine.batch_sizes)
    waiting += [asyncio.create_task(http.post(SEGMENT, content=DATA)) for _ in range(queued)]
    await until(lambda: server.registry.get("bands").batcher.waiting == queued)
    return waiting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_leaves_at_once_and_the_rest_at_the_rate() -> None:
    clock = Clock()
    pacer = RefusalPacer(10, clock)
    assert [pacer.reserve(60) for _ in range(11)] == pytest.approx([0.0] * 11)
    assert [pacer.reserve(60) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    clock.now += 100
    assert [pacer.reserve(60) for _ in range(11)] == pytest.approx([0.0] * 11)


def test_no_refusal_waits_too_long_and_a_flood_leaves_no_debt() -> None:
    clock = Clock()
    pacer = RefusalPacer(10, clock)
    delays = [pacer.reserve(float("inf")) for _ in range(10_000)]
    assert max(delays) == pytest.approx(MAX_DELAY_S)
    assert pacer.reserve(0.25) == 0.25
    clock.now += MAX_DELAY_S + BURST_S
    assert pacer.reserve(60) == 0.0


@pytest.mark.parametrize(
    ("timeout_ms", "seconds"), [("", float("inf")), ("1000", 0.5), ("soon", float("inf"))]
)
def test_a_refusal_comes_within_half_of_the_deadline(timeout_ms: str, seconds: float) -> None:
    assert longest_wait(timeout_ms) == seconds


async def test_callers_in_a_closed_loop_get_no_more_than_the_rate(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    rate, callers, seconds = 20, 30, 2.0
    refused = 0
    settings = {"max_queue_size": 2, "refusals_per_second": float(rate)}
    async with running(tmp_path, serve_fake(engine), **settings) as (server, http):
        waiting = await fill(server, engine, http, 2)
        end = time.monotonic() + seconds

        async def ask() -> None:
            nonlocal refused
            while time.monotonic() < end:
                answer = await http.post(SEGMENT, content=DATA)
                assert answer.status_code == 429
                assert int(answer.headers["retry-after"]) >= 1
                refused += 1

        begin = time.monotonic()
        await asyncio.gather(*(ask() for _ in range(callers)))
        took = time.monotonic() - begin
        # Others are not held: neither probes nor what is answered.
        assert (await http.get("/v2/health/live")).status_code == 200
        engine.hold.set()
        answers = await asyncio.gather(*waiting)
        assert [a.content for a in answers] == [band_labels(32, 48).tobytes()] * 3
    # The burst, the rate, and those that were on their way at the end.
    assert refused <= rate * (BURST_S + took) + callers
    assert refused >= rate


async def test_a_deadline_is_not_waited_beyond(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    settings = {"max_queue_size": 1, "refusals_per_second": 0.01}
    async with running(tmp_path, serve_fake(engine), **settings) as (server, http):
        waiting = await fill(server, engine, http, 1)
        begin, took = time.monotonic(), []
        for _ in range(3):
            answer = await http.post(SEGMENT, content=DATA, headers={"X-Timeout-Ms": "600"})
            assert answer.status_code == 429
            took.append(time.monotonic() - begin)
        # The second and third waited half of their deadlines.
        assert took[2] - took[0] >= 0.55
        engine.hold.set()
        await asyncio.gather(*waiting)


async def test_a_caller_that_leaves_while_its_refusal_waits_is_let_go(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    settings = {"max_queue_size": 1, "refusals_per_second": 0.01}
    async with running(tmp_path, serve_fake(engine), **settings) as (server, http):
        count = server.metrics.registry.get_sample_value
        waiting = await fill(server, engine, http, 1)
        assert (await http.post(SEGMENT, content=DATA)).status_code == 429
        with pytest.raises(httpx.TimeoutException):
            await http.post(SEGMENT, content=DATA, timeout=0.2)
        engine.hold.set()
        await asyncio.gather(*waiting)
        # The two that were answered, and the one whose refusal was read.
        await until(lambda: count("segserve_http_connections") <= 3)


async def test_callers_over_grpc_get_no_more_than_the_rate(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    rate, callers, seconds = 20, 30, 2.0
    statuses: list[grpc.StatusCode] = []
    settings = {"max_queue_size": 2, "refusals_per_second": float(rate)}
    async with running(tmp_path, serve_fake(engine), **settings) as (server, http):
        waiting = await fill(server, engine, http, 2)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            segmenter = segserve_pb2_grpc.SegmenterStub(channel)
            request = segserve_pb2.SegmentRequest(model="bands", image=DATA)
            end = time.monotonic() + seconds

            async def ask() -> None:
                while time.monotonic() < end:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await segmenter.Segment(request, timeout=30)
                    statuses.append(refused.value.code())

            begin = time.monotonic()
            await asyncio.gather(*(ask() for _ in range(callers)))
            took = time.monotonic() - begin
            # Half of a call's own deadline is the longest that its refusal waits.
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await segmenter.Segment(request, timeout=10)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        engine.hold.set()
        await asyncio.gather(*waiting)
    assert set(statuses) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert rate <= len(statuses) <= rate * (BURST_S + took) + callers


async def test_a_refusal_that_waits_is_none_of_its_keys_calls(tmp_path: Path) -> None:
    key = "a-key-of-sixteen-letters"
    (tmp_path / "keys").write_text(f"one {key} concurrent=1\n")
    settings = Settings(api_keys_file=tmp_path / "keys", refusals_per_second=0.01)
    contexts = RequestContexts(settings, Metrics())

    def read(name: str) -> str:
        return key if name == "x-api-key" else ""

    with contexts.begin("http", "POST", "/", "127.0.0.1", read) as refused:
        contexts.admit(refused, read)
        await contexts.delay_refusal(refused, 60.0)
        waiting = asyncio.create_task(contexts.delay_refusal(refused, 60.0))
        with contexts.begin("http", "POST", "/", "127.0.0.1", read) as other:
            contexts.admit(other, read)
            with (
                contexts.begin("http", "POST", "/", "127.0.0.1", read) as third,
                pytest.raises(KeyLimitExceeded),
            ):
                contexts.admit(third, read)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert refused.key is not None
    assert refused.key.running == 0
