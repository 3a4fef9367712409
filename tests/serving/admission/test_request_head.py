"""Refusals by a request's head, before its body: who gets them, and what becomes of the body."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import strategies as st
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from serving.admission.admission import RequestHead
from serving.errors import QueueFull
from serving.grpc import wire
from serving.grpc.wire import scan, shape_of
from serving.observability.access_log import AccessLog
from serving.server import Server
from serving.testing import FakeEngine
from tests.support.band_model import CONFIG, MODEL_SIZE, encode, serve_fake
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment"
INFER = "/v2/models/bands/infer"
RED = encode(np.full((32, 48, 3), 5, np.uint8))
# More than the sockets between hold: its sender is still sending when it is refused.
LARGE = bytes(24 << 20)
KEY = "alice-0123456789"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


class Client:
    """One raw connection, which sends of a request what it has to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send_head(self, path: str = SEGMENT, length: int | None = len(RED), **headers: str) -> None:
        sized = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        more = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
        self.writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{sized}\r\n{more}\r\n".encode())

    async def read(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(status.split()[1]), headers, body)

    async def is_closed(self) -> bool:
        """Whether the server ends the connection, cleanly and without another word."""
        return await self.reader.read() == b""


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.ports.http)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def full(
    repository: Path, **settings: object
) -> AsyncIterator[tuple[Server, httpx.AsyncClient, FakeEngine]]:
    """A server whose engine is held and whose queue is full, until ``engine.hold`` is set."""
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    chosen = {"max_queue_size": 1, **settings}
    async with running(repository, serve_fake(engine), **chosen) as (server, http):
        engine.hold.clear()
        batcher = server.registry.get("bands").batcher
        pixels = np.full((32, 48, 3), 5, np.uint8)
        tasks = [asyncio.create_task(batcher.submit(pixels))]
        await until(lambda: engine.batch_sizes)
        tasks.append(asyncio.create_task(batcher.submit(pixels)))
        await until(lambda: batcher.waiting == 1)
        try:
            yield server, http, engine
        finally:
            engine.hold.set()
            await asyncio.gather(*tasks)


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    "path", [SEGMENT, SEGMENT + "?format=png,stats", INFER, "/v2/models/bands/versions/1/segment"]
)
async def test_a_head_is_refused_before_its_body(repository: Path, path: str) -> None:
    async with full(repository) as (server, _, engine), connected(server) as client:
        client.send_head(path, X_Request_Id="mine-1")
        refused = await client.read()
        assert (refused.status, refused.code) == (429, "queue_full")
        assert b"max_queue_size" in refused.body
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-request-id"] == "mine-1"
        assert refused.headers["content-type"] == "application/json"
        assert "connection" not in refused.headers
        # The body is dropped, and the connection of further use.
        client.writer.write(RED[:20])
        await asyncio.sleep(0.01)
        engine.hold.set()
        await until(lambda: server.registry.get("bands").batcher.waiting == 0)
        client.writer.write(RED[20:])
        client.send_head(SEGMENT + "?format=raw")
        client.writer.write(RED)
        answered = await client.read()
        assert (answered.status, answered.body) == (200, bytes(32 * 48))


async def test_a_refusal_is_reported_like_any_other(repository: Path) -> None:
    """As one that comes behind the body: metrics, statistics, and the line in the log."""
    async with full(repository) as (server, _, _), connected(server) as client:
        written = io.StringIO()
        server.contexts.log = AccessLog("json", written)
        client.send_head()
        await client.read()
        await until(written.getvalue)
        assert sample(server, "segserve_rejected_total", model="bands", reason="queue_size") == 1
        assert sample(server, "segserve_requests_total", model="bands", code="queue_full") == 1
        seconds = "segserve_request_duration_seconds_count"
        labels = {"model": "bands", "transport": "http", "outcome": "queue_full"}
        assert sample(server, seconds, **labels) == 1
        assert sample(server, "segserve_inflight_requests") == 0
        assert server.registry.get("bands").statistics.requests["fail"].count == 1
        line = json.loads(written.getvalue())
        assert (line["status"], line["code"], line["model"]) == (429, "queue_full", "bands")


async def test_the_same_verdict_as_behind_the_body(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the head not checked the request goes all the way, and gets the same answer."""
    headers = {"X-Timeout-Ms": "1000", "X-Request-Id": "same"}
    async with full(repository, max_queue_size=5) as (server, http, _):
        server.registry.get("bands").batcher.costs.learn(1, 500.0)
        early = await http.post(SEGMENT, content=RED, headers=headers)
        monkeypatch.setattr(server.admission, "check_head", lambda *anything: None)
        late = await http.post(SEGMENT, content=RED, headers=headers)
        assert early.status_code == late.status_code == 429
        assert early.json()["code"] == late.json()["code"] == "predicted_late"
        assert set(early.headers) == set(late.headers)
        reasons = {"model": "bands", "reason": "predicted_late"}
        assert sample(server, "segserve_rejected_total", **reasons) == 2


async def test_too_many_requests_are_refused_by_their_heads(repository: Path) -> None:
    async with full(repository, max_queue_size=9, max_inflight_requests=1) as (server, http, _):
        busy = asyncio.create_task(http.post(SEGMENT, content=RED))
        await until(lambda: sample(server, "segserve_inflight_requests") == 1)
        async with connected(server) as client:
            client.send_head()
            refused = await client.read()
        assert (refused.status, refused.code) == (429, "queue_full")
        assert b"max_inflight_requests" in refused.body
        assert sample(server, "segserve_rejected_total", model="bands", reason="inflight") == 1
        busy.cancel()


async def test_strangers_learn_nothing_of_the_queue(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice {KEY} requests_per_second=1")
    async with full(repository, api_keys_file=keys) as (server, _, _):
        async with connected(server) as client:
            client.send_head()
            assert (await client.read()).code == "unauthenticated"
        for code in ("queue_full", "key_limit_exceeded"):
            async with connected(server) as client:
                client.send_head(X_API_Key=KEY)
                assert (await client.read()).code == code


async def test_a_deadline_that_has_passed_is_left_to_the_way_of_all(repository: Path) -> None:
    """It is another error, and counted there."""
    async with full(repository) as (server, _, _):
        head = RequestHead("bands", None, -0.1)
        server.admission.check_head(head, "grpc")
        with pytest.raises(QueueFull):
            server.admission.check_head(replace(head, timeout_s=5.0), "grpc")
        assert sample(server, "segserve_rejected_total", model="bands", reason="deadline") == 0


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v2/models/nope/segment", {}, 404),
        ("/v2/models/bands/versions/7/segment", {}, 404),
        ("/v2/models/bands/versions/x/infer", {}, 400),
        (SEGMENT, {"X_Timeout_Ms": "soon"}, 400),
        (SEGMENT + "/more", {}, 404),
    ],
)
async def test_what_is_wrong_is_said_though_the_queue_is_full(
    repository: Path, path: str, headers: dict[str, str], status: int
) -> None:
    async with full(repository) as (server, _, _), connected(server) as client:
        client.send_head(path, **headers)
        client.writer.write(RED)
        assert (await client.read()).status == status


async def test_a_priority_in_the_body_is_waited_for(repository: Path) -> None:
    """A level that is full says nothing of one that the body may name."""
    levels = CONFIG.format(h=32, w=48).replace(
        "dynamic_batching { }",
        "dynamic_batching { priority_levels: 2 default_priority_level: 1"
        " priority_queue_policy { key: 1 value { max_queue_size: 1 } } }",
    )
    (repository / "bands" / "config.pbtxt").write_text(levels)
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 48, 3],
             "data": [0] * (32 * 48 * 3)}  # fmt: skip
    async with full(repository, max_queue_size=9) as (_, http, engine):
        first = await http.post(INFER, json={"inputs": [image]})
        assert (first.status_code, first.json()["code"]) == (429, "queue_full")
        body = {"inputs": [image], "parameters": {"priority": 2}}
        second = asyncio.create_task(http.post(INFER, json=body))
        await asyncio.sleep(0.05)
        assert not second.done()
        engine.hold.set()
        assert (await second).status_code == 200


async def test_a_client_that_waits_for_100_continue_sends_nothing(repository: Path) -> None:
    async with full(repository) as (server, _, engine):
        async with connected(server) as client:
            client.send_head(Expect="100-continue")
            refused = await client.read()
            assert (refused.status, refused.headers["connection"]) == (429, "close")
        engine.hold.set()
        await until(lambda: server.registry.get("bands").batcher.waiting == 0)
        async with connected(server) as client:
            client.send_head(SEGMENT + "?format=raw", Expect="100-continue")
            assert (await client.read()).status == 100
            client.writer.write(RED)
            answered = await client.read()
            assert (answered.status, answered.body) == (200, bytes(32 * 48))
            assert "connection" not in answered.headers


async def by_curl(server: Server) -> int:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    command = (curl, "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:",
               "--data-binary", "@-", f"http://127.0.0.1:{server.ports.http}{SEGMENT}")  # fmt: skip
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    printed, _ = await process.communicate(LARGE)
    assert process.returncode == 0
    return int(printed)


async def by_httpx(server: Server) -> int:
    async with httpx.AsyncClient(timeout=30) as http:
        url = f"http://127.0.0.1:{server.ports.http}{SEGMENT}"
        refused = [(await http.post(url, content=LARGE)).status_code for _ in range(2)]
    return refused[1]


async def by_tritonclient(server: Server) -> int:
    def ask() -> int:
        with triton_http.InferenceServerClient(f"127.0.0.1:{server.ports.http}") as client:
            item = triton_http.InferInput("image", [1, 1, len(LARGE) // 3, 3], "UINT8")
            item.set_data_from_numpy(np.zeros((1, 1, len(LARGE) // 3, 3), np.uint8))
            try:
                client.infer("bands", [item])
            except InferenceServerException as error:
                return int(error.status())
        return 200

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("ask", [by_curl, by_httpx, by_tritonclient])
async def test_clients_that_still_send_see_the_refusal(
    repository: Path, ask: Callable[[Server], object]
) -> None:
    async with full(repository) as (server, _, _):
        assert await ask(server) == 429


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_that_is_to_close_takes_the_whole_body_first(
    repository: Path, version: str
) -> None:
    """Or a reset, for bytes that nobody reads, could overtake the answer."""
    async with full(repository) as (server, _, _), connected(server) as client:
        head = f"POST {SEGMENT} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
        client.writer.write(f"{head}Content-Length: {len(LARGE)}\r\n\r\n".encode())
        assert (await client.read()).status == 429
        client.writer.write(LARGE)
        await client.writer.drain()
        assert await client.is_closed()


@pytest.mark.parametrize("limit", ["max_request_bytes", "upload_timeout_s"])
async def test_a_body_without_end_is_not_dropped_for_ever(repository: Path, limit: str) -> None:
    limits = {"max_request_bytes": 1 << 20} if limit == "max_request_bytes" else {limit: 0.2}
    reason = limit.removeprefix("max_").removesuffix("_s")
    async with full(repository, **limits) as (server, _, _), connected(server) as client:
        client.send_head(length=None)
        assert (await client.read()).status == 429
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"

        async def send() -> None:
            while limit == "max_request_bytes":
                client.writer.write(chunk)
                await client.writer.drain()

        sending = asyncio.create_task(send())
        try:
            assert await client.is_closed()
        except ConnectionError:
            assert limit == "max_request_bytes"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert sample(server, "segserve_rejected_total", model="_unknown", reason=reason) == 1


async def test_a_refused_client_may_idle_like_any_other(repository: Path) -> None:
    """What follows a dropped body is no unfinished header."""
    times = {"header_timeout_s": 0.2, "keep_alive_s": 1.0}
    async with full(repository, **times) as (server, _, _), connected(server) as client:
        client.send_head()
        assert (await client.read()).status == 429
        client.writer.write(RED)
        assert await client.is_closed()
        assert sample(server, "segserve_rejected_total", model="_unknown",
                      reason="header_timeout") == 0  # fmt: skip


def broken_segment() -> bytes:
    """Whole at the top level; the text of ``tta`` is not UTF-8, which parsing finds."""
    return pb.SegmentRequest(model="bands", image=RED).SerializeToString() + b"\x4a\x01\xff"


def broken_infer() -> bytes:
    """The same of ``id``."""
    return oip.ModelInferRequest(model_name="bands").SerializeToString() + b"\x1a\x01\xff"


@pytest.mark.parametrize(
    ("method", "message"), [(wire.SEGMENT, broken_segment()), (wire.INFER, broken_infer())]
)
async def test_a_grpc_message_is_refused_before_it_is_parsed(
    repository: Path, method: str, message: bytes
) -> None:
    async with (
        full(repository) as (server, _, engine),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel,
    ):
        call = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(message, metadata=(("x-request-id", "mine-1"),))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_queue_size" in str(refused.value.details())
        trailing = dict(refused.value.trailing_metadata() or ())
        assert trailing["segserve-code"] == "queue_full"
        assert int(trailing["retry-after"]) >= 1
        assert trailing["x-request-id"] == "mine-1"
        labels = {"model": "bands", "reason": "queue_size"}
        assert sample(server, "segserve_rejected_total", **labels) == 1
        assert sample(server, "segserve_requests_total", model="bands", code="queue_full") == 1
        engine.hold.set()
        await until(lambda: server.registry.get("bands").batcher.waiting == 0)
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await call(message)
        assert broken.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_over_grpc_too_the_key_comes_before_the_message(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice {KEY}")
    async with (
        full(repository, api_keys_file=keys) as (server, _, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel,
    ):
        ask = channel.stream_unary(wire.SEGMENT)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask()  # and sends nothing
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        silent = ask(metadata=(("x-api-key", KEY),))
        await silent.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as empty:
            await silent
        assert empty.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_grpc_deadlines_are_looked_at_before_the_message(repository: Path) -> None:
    async with full(repository, max_queue_size=9) as (server, _, _):
        server.registry.get("bands").batcher.costs.learn(1, 500.0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            asked = (
                segserve_pb2_grpc.SegmenterStub(channel).Segment(
                    pb.SegmentRequest(model="bands", image=b"not decoded"), timeout=20
                ),
                GRPCInferenceServiceStub(channel).ModelInfer(
                    oip.ModelInferRequest(model_name="bands"), timeout=20
                ),
            )
            for call in asked:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                trailing = dict(refused.value.trailing_metadata() or ())
                assert trailing["segserve-code"] == "predicted_late"


def read(method: str, data: bytes, timeout_s: float | None = None) -> RequestHead | None:
    """What a message's bytes announce."""
    kind = {wire.SEGMENT: pb.SegmentRequest, wire.INFER: oip.ModelInferRequest}[method]
    fields = scan(data, shape_of(kind.DESCRIPTOR), wire.list_wanted(method)).fields
    return wire.read_head(method, fields, timeout_s, len(data))


@given(
    model=st.text(max_size=20),
    version=st.integers(0, 2**63 - 1),
    image=st.binary(max_size=200),
    format=st.text(max_size=12),
    tta=st.lists(st.text(max_size=4), max_size=4),
    opacity=st.none() | st.floats(0, 1),
)
def test_a_segment_message_is_read_as_protobuf_does(
    model: str, version: int, image: bytes, format: str, tta: list[str], opacity: float | None
) -> None:
    message = pb.SegmentRequest(model=model, version=version, image=image, format=format, tta=tta)
    if opacity is not None:
        message.opacity = opacity
    found = read(wire.SEGMENT, message.SerializeToString(), 1.5)
    assert found is not None
    assert (found.model, found.version, found.timeout_s) == (model, version or None, 1.5)
    assert found.formats == (tuple(format.split(",")) if format else ("png",))


@given(st.lists(st.text(max_size=9), min_size=1, max_size=3), st.binary(max_size=99))
def test_of_repeated_fields_the_last_counts(names: list[str], raw: bytes) -> None:
    data = b"".join(
        oip.ModelInferRequest(model_name=name, raw_input_contents=[raw]).SerializeToString()
        for name in names
    )
    parsed = oip.ModelInferRequest.FromString(data)
    found = read(wire.INFER, data)
    assert found is not None
    assert found.model == parsed.model_name


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_announce_nothing_wrong(data: bytes) -> None:
    """Whatever is found is what a parser finds, where that takes the bytes at all."""
    try:
        parsed = pb.SegmentRequest.FromString(data)
    except Exception:
        return
    found = read(wire.SEGMENT, data)
    if found is not None:
        assert (found.model, found.version or 0) == (parsed.model, parsed.version)
