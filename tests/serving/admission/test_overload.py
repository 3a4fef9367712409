"""Batching and overload by real requests: every transport, and an engine that is held."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving.models.repository import ModelFolder
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, encode, serve_fake, write_model
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment?format=raw"
RED = encode(np.full((32, 48, 3), 5, np.uint8))


def photo(label: int) -> bytes:
    return encode(np.full((20 + label, 30, 3), label * 32 + 5, np.uint8))


async def post(http: httpx.AsyncClient, data: bytes = RED, **headers: str) -> httpx.Response:
    return await http.post(SEGMENT, content=data, headers=headers)


async def occupy(http: httpx.AsyncClient, engine: FakeEngine) -> asyncio.Task[httpx.Response]:
    engine.hold.clear()
    before = len(engine.batch_sizes)
    task = asyncio.create_task(post(http))
    await until(lambda: len(engine.batch_sizes) > before)
    return task


async def test_different_photos_of_one_batch_get_their_own_answers(repository: Path) -> None:
    engine = FakeEngine(MODEL_SIZE, max_batch_size=8)
    async with running(repository, serve_fake(engine)) as (server, http):
        first = await occupy(http, engine)
        tasks = [asyncio.create_task(post(http, photo(label))) for label in range(8)]
        await until(lambda: server.registry.get("bands").batcher.waiting == 8)
        engine.hold.set()
        answers = await asyncio.gather(*tasks)
        assert (await first).status_code == 200
    assert engine.batch_sizes == [1, 8]
    for label, answer in enumerate(answers):
        assert answer.content == bytes([label]) * ((20 + label) * 30)


async def call_with_deadline(transport: str, server: Server, http: httpx.AsyncClient) -> str:
    """Asks with a deadline of 50 ms that passes; the answer's code."""
    address = f"127.0.0.1:{server.ports.grpc}"
    pixels = np.full((1, 32, 48, 3), 5, np.uint8)
    if transport == "segment header":
        answer = await post(http, **{"X-Timeout-Ms": "50"})
        return f"{answer.status_code} {answer.json()['code']}"
    if transport == "infer header":
        body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 48, 3],
                            "data": pixels.tolist()}]}  # fmt: skip
        url = "/v2/models/bands/infer"
        answer = await http.post(url, json=body, headers={"X-Timeout-Ms": "50"})
        return f"{answer.status_code} {answer.json()['code']}"
    if transport == "segment gRPC":
        async with grpc.aio.insecure_channel(address) as channel:
            stub = segserve_pb2_grpc.SegmenterStub(channel)
            try:
                await stub.Segment(pb.SegmentRequest(model="bands", image=RED), timeout=0.05)
            except grpc.aio.AioRpcError as error:
                return error.code().name
    module = triton_http if transport == "infer parameter HTTP" else triton_grpc
    where = server.ports.http if module is triton_http else server.ports.grpc
    async with module.InferenceServerClient(f"127.0.0.1:{where}") as client:
        item = module.InferInput("image", [1, 32, 48, 3], "UINT8")
        item.set_data_from_numpy(pixels)
        limit = {"client_timeout": 0.05} if transport == "infer gRPC" else {"timeout": 50_000}
        try:
            await client.infer("bands", [item], **limit)
        except InferenceServerException as error:
            return str(error.status())
    return "answered"


@pytest.mark.parametrize(
    ("transport", "code"),
    [
        ("segment header", "504 deadline_exceeded"),
        ("infer header", "504 deadline_exceeded"),
        ("segment gRPC", "DEADLINE_EXCEEDED"),
        ("infer gRPC", "StatusCode.DEADLINE_EXCEEDED"),
        ("infer parameter HTTP", "504"),
        ("infer parameter gRPC", "StatusCode.DEADLINE_EXCEEDED"),
    ],
)
async def test_a_deadline_passes_while_the_engine_is_busy(
    repository: Path, transport: str, code: str
) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine)) as (server, http):
        busy = await occupy(http, engine)
        batcher = server.registry.get("bands").batcher
        assert await call_with_deadline(transport, server, http) == code
        await until(lambda: batcher.waiting == 0)
        assert not busy.done()
        engine.hold.set()
        assert (await busy).status_code == 200
    assert engine.batch_sizes == [1]


async def test_a_grpc_client_that_leaves_takes_its_image_out_of_the_queue(
    repository: Path,
) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine)) as (server, http):
        busy = await occupy(http, engine)
        batcher = server.registry.get("bands").batcher
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            stub = segserve_pb2_grpc.SegmenterStub(channel)
            request = pb.SegmentRequest(model="bands", image=RED)

            async def frames():
                yield request
                await asyncio.Event().wait()

            call = stub.Segment(request)
            stream = stub.SegmentStream(frames())
            reading = asyncio.create_task(stream.read())
            mate = asyncio.create_task(post(http, photo(3)))
            await until(lambda: batcher.waiting == 3)
            call.cancel()
            await until(lambda: batcher.waiting == 2)
            stream.cancel()
            await until(lambda: batcher.waiting == 1)
            await asyncio.gather(reading, return_exceptions=True)
        engine.hold.set()
        assert (await mate).content == b"\3" * 23 * 30
        assert (await busy).status_code == 200
    assert engine.batch_sizes == [1, 1]


async def test_a_full_queue_names_the_setting_and_when_to_come_again(repository: Path) -> None:
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    async with running(repository, serve_fake(engine), max_queue_size=1) as (server, http):
        busy = await occupy(http, engine)
        batcher = server.registry.get("bands").batcher
        waiting = asyncio.create_task(post(http))
        await until(lambda: batcher.waiting == 1)
        batcher.costs.learn(1, 600.0)
        refused = await post(http, b"not even decoded")
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert "max_queue_size" in refused.json()["error"]
        assert 1795 <= int(refused.headers["retry-after"]) <= 1800
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            stub = segserve_pb2_grpc.SegmenterStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Segment(pb.SegmentRequest(model="bands", image=RED))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = dict(caught.value.trailing_metadata() or ())
        assert metadata["segserve-code"] == "queue_full"
        assert 1795 <= int(metadata["retry-after"]) <= 1800
        engine.hold.set()
        assert [(await task).status_code for task in (busy, waiting)] == [200, 200]


async def test_what_would_be_late_is_refused_with_the_prediction(repository: Path) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine)) as (server, http):
        busy = await occupy(http, engine)
        server.registry.get("bands").batcher.costs.learn(1, 500.0)
        refused = await post(http, b"not even decoded", **{"X-Timeout-Ms": "1000"})
        assert (refused.status_code, refused.json()["code"]) == (429, "predicted_late")
        # Behind the one at work, which has just begun.
        assert re.search(r"in (99\d|1000)\d\d\d ms .* in 1000 ms", refused.json()["error"])
        assert "shed_late_requests" in refused.json()["error"]
        assert 990 <= int(refused.headers["retry-after"]) <= 999
        page = (await http.get("/metrics")).text
        assert 'segserve_rejected_total{model="bands",reason="predicted_late"} 1.0' in page
        engine.hold.set()
        assert (await busy).status_code == 200
    assert engine.batch_sizes == [1]


@pytest.mark.parametrize("path", [SEGMENT, "/v2/models/bands/infer"])
async def test_the_upload_counts_for_the_deadline(repository: Path, path: str) -> None:
    engine = FakeEngine(MODEL_SIZE)
    item = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 48, 3],
            "data": [0] * (32 * 48 * 3)}  # fmt: skip
    body = RED if path == SEGMENT else json.dumps({"inputs": [item]}).encode()
    async with running(repository, serve_fake(engine)) as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports.http)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Timeout-Ms: 30\r\nConnection: close\r\n"
        head += "Expect: 100-continue\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        # It waits for the body: the time has begun.
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body[:10])
        await asyncio.sleep(0.1)
        writer.write(body[10:])
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"deadline_exceeded" in answer
    assert engine.batch_sizes == []


async def test_with_shedding_off_what_would_be_late_waits_for_its_deadline(
    repository: Path,
) -> None:
    engine = FakeEngine(MODEL_SIZE)
    served = running(repository, serve_fake(engine), shed_late_requests=False)
    async with served as (server, http):
        busy = await occupy(http, engine)
        server.registry.get("bands").batcher.costs.learn(1, 500.0)
        late = await post(http, **{"X-Timeout-Ms": "50"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        engine.hold.set()
        assert (await busy).status_code == 200


async def test_a_model_whose_queue_is_full_leaves_the_others_alone(tmp_path: Path) -> None:
    engines = {name: FakeEngine(MODEL_SIZE, max_batch_size=1) for name in ("bands", "other")}

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
        return engines[folder.name]

    for name in engines:
        write_model(tmp_path, name)
    async with running(tmp_path, open_engine, max_queue_size=4) as (server, http):
        busy = await occupy(http, engines["bands"])
        batcher = server.registry.get("bands").batcher
        waiting = [asyncio.create_task(post(http)) for _ in range(4)]
        await until(lambda: batcher.waiting == 4)
        for _ in range(20):
            answer = await http.post(SEGMENT.replace("bands", "other"), content=RED)
            assert answer.status_code == 200
            assert (await post(http)).status_code == 429
        engines["bands"].hold.set()
        assert {(await task).status_code for task in (busy, *waiting)} == {200}
    assert len(engines["other"].batch_sizes) == 20


async def test_a_flood_of_one_model_leaves_the_other_its_turns(tmp_path: Path) -> None:
    """They share the threads that decode and answer; each has a queue and an engine of its own."""
    engines = {
        "bands": FakeEngine(MODEL_SIZE, max_batch_size=1, delay_s=0.2),
        "other": FakeEngine(MODEL_SIZE),
    }
    for name in engines:
        write_model(tmp_path, name)
    async with running(tmp_path, lambda f, v, s: engines[f.name]) as (server, http):
        flood = [asyncio.create_task(post(http)) for _ in range(150)]
        await until(lambda: server.registry.get("bands").batcher.waiting > 50)
        for _ in range(10):
            answer = await http.post(SEGMENT.replace("bands", "other"), content=RED)
            assert answer.status_code == 200
        # The flood takes thirty seconds; the other did not wait for its end.
        assert len(engines["bands"].batch_sizes) < 150
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await until(lambda: server.registry.get("bands").batcher.waiting == 0)


async def test_what_answering_takes_counts_for_the_deadline(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By form: what is slow to write makes nothing else look late."""
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    async with running(repository, serve_fake(engine)) as (server, http):
        for form, seconds in (("raw", 0.0), ("polygons", 500.0)):
            forms = ("bands", (form,))
            moments = iter([0.0, seconds])
            monkeypatch.setattr(
                "serving.admission.admission.perf_counter", lambda m=moments: next(m)
            )
            with server.admission.costs.measure(*forms, pixels=32 * 48):
                pass
        monkeypatch.undo()
        busy = await occupy(http, engine)
        server.registry.get("bands").batcher.costs.learn(1, 0.01)
        url = SEGMENT.replace("raw", "polygons")
        refused = await http.post(url, content=b"not decoded", headers={"X-Timeout-Ms": "60000"})
        assert (refused.status_code, refused.json()["code"]) == (429, "predicted_late")
        assert re.search(r"in 500\d\d\d ms", refused.json()["error"])
        waiting = asyncio.create_task(post(http, **{"X-Timeout-Ms": "60000"}))
        await until(lambda: server.registry.get("bands").batcher.waiting == 1)
        engine.hold.set()
        assert (await busy).status_code == (await waiting).status_code == 200


async def test_tiles_that_would_not_all_be_done_are_not_begun(tmp_path: Path) -> None:
    write_model(tmp_path, resize="tile")
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    large = encode(np.full((MODEL_SIZE.height * 4, MODEL_SIZE.width * 4, 3), 5, np.uint8))
    async with running(tmp_path, serve_fake(engine)) as (server, http):
        busy = await occupy(http, engine)
        batcher = server.registry.get("bands").batcher
        batcher.costs.learn(1, 10.0)
        # One tile would be in time, behind the one at work; sixteen and more are not.
        hurried = {"X-Timeout-Ms": "60000"}
        refused = await post(http, large, **hurried)
        assert (refused.status_code, refused.json()["code"]) == (429, "predicted_late")
        assert batcher.waiting == 0
        single = asyncio.create_task(post(http, RED, **hurried))
        await until(lambda: batcher.waiting == 1)
        engine.hold.set()
        assert (await busy).status_code == (await single).status_code == 200
        # An engine that is free begins, whatever was learnt.
        assert (await post(http, large, **hurried)).status_code == 200
