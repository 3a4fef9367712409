"""Clients that are slow, half gone, too long or too many, on raw sockets to a real server."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import numpy as np
import onnx
import pytest
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    MODEL_SIZE,
    Served,
    band_labels,
    bands,
    encode,
    free_ports,
    serve_fake,
    write_model,
)
from tests.support.contract_graph import make_graph
from tests.support.waiting import wait_for

SEGMENT = "/v2/models/bands/segment?format=raw"
DATA = encode(bands(32, 48))
HEAD = f"POST {SEGMENT} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(DATA)}\r\n".encode()
LIMITS = {"max_http_connections": 8, "max_grpc_connections": 4, "max_header_bytes": 4096}
# An honest request has to be there within them, however busy the machine is.
TIMES = {
    "header_timeout_s": 1.5,
    "send_timeout_s": 0.5,
    "upload_timeout_s": 1.5,
    "keep_alive_s": 2.0,
}


@contextmanager
def serve_limited(folder: Path, limits: dict[str, float]) -> Iterator[Served]:
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    settings = free_ports(folder).model_copy(update=limits)
    with ServerThread(settings, serve_fake(engine)) as server:
        yield Served(server, engine)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Takes few connections, and gives them time."""
    with serve_limited(tmp_path_factory.mktemp("limited"), LIMITS) as served:
        yield served


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Takes few connections, and gives them little time."""
    with serve_limited(tmp_path_factory.mktemp("hurried"), {**LIMITS, **TIMES}) as served:
        yield served


def connect(served: Served) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", served.server.ports.http))
    found.settimeout(60)
    return found


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def rejected(served: Served, reason: str) -> float:
    registry = served.server.metrics.registry
    labels = {"model": "_unknown", "reason": reason}
    return registry.get_sample_value("segserve_rejected_total", labels) or 0.0


def check_alive(served: Served) -> None:
    # Those of the test may still count.
    wait_for(lambda: open_connections(served) < LIMITS["max_http_connections"])
    answer = httpx.post(f"http://{served.http}{SEGMENT}", content=DATA)
    assert answer.content == band_labels(32, 48).tobytes()


def open_connections(served: Served) -> float:
    return served.server.metrics.registry.get_sample_value("segserve_http_connections") or 0.0


@pytest.mark.parametrize("before", ["nothing", "a request", "blank lines"])
def test_a_slow_header_is_ended(hurried: Served, before: str) -> None:
    """Slow loris: a byte now and then, and never the end."""
    count = rejected(hurried, "header_timeout")
    with connect(hurried) as connection:
        if before == "a request":
            connection.sendall(HEAD + b"\r\n" + DATA)
            first = b""
            while not first.endswith(band_labels(32, 48).tobytes()):
                first += connection.recv(1 << 16)
        answer = b""
        connection.settimeout(0.1)
        for byte in b"\r\n" * 200 if before == "blank lines" else HEAD * 4:
            try:
                connection.send(bytes([byte]))
                answer += connection.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
        assert b" 408 " in answer
        assert b"header_timeout_s" in answer
    assert rejected(hurried, "header_timeout") == count + 1
    check_alive(hurried)


def test_a_slow_header_behind_a_request_waits_for_its_answer(hurried: Served) -> None:
    """The clock of a pipelined request begins when the answer before it has been given."""
    count, runs = rejected(hurried, "header_timeout"), len(hurried.engine.batch_sizes)
    hurried.engine.hold.clear()
    try:
        with connect(hurried) as connection:
            connection.sendall(HEAD + b"\r\n" + DATA)
            wait_for(lambda: len(hurried.engine.batch_sizes) > runs)
            connection.sendall(HEAD)
            time.sleep(TIMES["header_timeout_s"] * 1.5)
            hurried.engine.hold.set()
            answer = read_all(connection)
    finally:
        hurried.engine.hold.set()
    first, _, second = answer.partition(band_labels(32, 48).tobytes())
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 408 ")
    assert rejected(hurried, "header_timeout") == count + 1


def test_slow_headers_keep_nobody_out(hurried: Served) -> None:
    wait_for(lambda: open_connections(hurried) == 0)
    slow = [connect(hurried) for _ in range(LIMITS["max_http_connections"])]
    try:
        for connection in slow:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nX-A: ")
        assert all(b" 408 " in read_all(connection) for connection in slow)
    finally:
        for connection in slow:
            connection.close()
    check_alive(hurried)


@pytest.mark.parametrize(
    "header",
    [
        b"GET /v2 HTTP/1.1\r\nX-A: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nX-A: " + b"a" * 5000,
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"A:\r\n" * 2000,
    ],
    ids=["one", "unfinished", "path", "many"],
)
def test_a_long_header_is_refused(limited: Served, header: bytes) -> None:
    count = rejected(limited, "header_bytes")
    with connect(limited) as connection:
        connection.sendall(header)
        answer = read_all(connection)
    assert b" 431 " in answer
    assert b"max_header_bytes" in answer
    assert rejected(limited, "header_bytes") == count + 1
    check_alive(limited)


def test_what_is_no_http_is_refused(limited: Served) -> None:
    with connect(limited) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b" 400 " in read_all(connection)
    check_alive(limited)


def test_a_slow_upload_is_ended(hurried: Served) -> None:
    with connect(hurried) as connection:
        connection.sendall(HEAD + b"\r\n" + DATA[:10])
        answer = read_all(connection)
    assert b" 408 " in answer
    assert b"upload_timeout_s" in answer
    registry = hurried.server.metrics.registry
    labels = {"model": "bands", "reason": "upload_timeout"}
    assert registry.get_sample_value("segserve_rejected_total", labels) == 1
    check_alive(hurried)


def test_a_body_that_goes_on_behind_its_refusal_is_counted_once(tmp_path: Path) -> None:
    with serve_limited(tmp_path, {"max_request_bytes": 20_000}) as served:
        with connect(served) as connection:
            connection.sendall(HEAD.replace(str(len(DATA)).encode(), b"1000000") + b"\r\n")
            answer = connection.recv(4096)
            assert b" 413 " in answer
            with contextlib.suppress(ConnectionError):
                for _ in range(10):
                    connection.sendall(bytes(10_000))
            wait_for(lambda: open_connections(served) == 0)
        samples = [s for family in served.server.metrics.registry.collect() for s in family.samples]
        assert sum(
            sample.value for sample in samples
            if sample.name == "segserve_rejected_total"
        ) == 1  # fmt: skip


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n" + DATA[:20]])
def test_a_half_closed_client_is_let_go(limited: Served, sent: bytes) -> None:
    with connect(limited) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert b"200 OK" not in read_all(connection)
        wait_for(lambda: open_connections(limited) == 0)
    check_alive(limited)


def test_a_client_that_reads_nothing_is_let_go(hurried: Served) -> None:
    count = rejected(hurried, "send_timeout")
    large = encode(bands(3000, 4000))
    with connect(hurried) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = HEAD.replace(str(len(DATA)).encode(), str(len(large)).encode())
        connection.sendall(head + b"\r\n" + large)
        wait_for(lambda: rejected(hurried, "send_timeout") == count + 1)
        wait_for(lambda: open_connections(hurried) == 0)
    check_alive(hurried)


def test_an_idle_connection_is_closed(hurried: Served) -> None:
    with connect(hurried) as connection:
        connection.sendall(HEAD + b"\r\n" + DATA)
        assert b"200 OK" in connection.recv(1 << 16)
        read_all(connection)
    check_alive(hurried)


def test_one_connection_too_many_is_refused_by_name(limited: Served) -> None:
    wait_for(lambda: open_connections(limited) == 0)
    count = rejected(limited, "connections")
    held = []
    try:
        for _ in range(LIMITS["max_http_connections"]):
            held.append(connect(limited))
        wait_for(lambda: open_connections(limited) == len(held))
        with connect(limited) as one_more:
            answer = read_all(one_more)
        assert b" 503 " in answer
        assert b"max_http_connections" in answer
        assert rejected(limited, "connections") == count + 1
    finally:
        for connection in held:
            connection.close()
    wait_for(lambda: open_connections(limited) == 0)
    check_alive(limited)


def test_grpc_connections_are_bounded(limited: Served) -> None:
    # A channel of its own pool each: gRPC would share one connection.
    channels = [
        grpc.insecure_channel(limited.grpc, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(LIMITS["max_grpc_connections"] + 3)
    ]
    answered, codes = 0, set()
    try:
        for number, channel in enumerate(channels):
            stub = segserve_pb2_grpc.SegmenterStub(channel)
            # Those that are let in are waited for.
            seconds = 60 if number < LIMITS["max_grpc_connections"] else 2
            try:
                stub.Describe(pb.DescribeRequest(model="bands"), timeout=seconds)
                answered += 1
            except grpc.RpcError as error:
                codes.add(error.code())
    finally:
        for channel in channels:
            channel.close()
    assert answered == LIMITS["max_grpc_connections"]
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_long_grpc_metadata_is_refused(limited: Served) -> None:
    with grpc.insecure_channel(limited.grpc) as channel:
        stub = segserve_pb2_grpc.SegmenterStub(channel)
        request = pb.DescribeRequest(model="bands")
        with pytest.raises(grpc.RpcError) as error:
            # Waits for its connection: those of the test before may still count.
            stub.Describe(request, metadata=(("x-a", "a" * 5000),), timeout=60, wait_for_ready=True)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Describe(request, timeout=60).model == "bands"


CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "image" data_type: TYPE_UINT8 dims: [ 4, 6, 3 ] }
output { name: "mask" data_type: TYPE_UINT8 dims: [ 4, 6 ] }
output { name: "logits" data_type: TYPE_FP32 dims: [ 3, 4, 6 ] }
dynamic_batching { }
"""


def write_small_model(folder: Path) -> None:
    """A real graph: the class is the strongest of red, green and blue."""
    (folder / "1").mkdir(parents=True)
    onnx.save(make_graph(), str(folder / "1" / "model.onnx"))
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")


def test_a_thousand_connections_at_once(tmp_path: Path) -> None:
    """Each is open before the first asks; each gets the answer to its own image."""
    number = 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * number + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may open {hard} files here, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    write_small_model(tmp_path / "small")
    photos = [encode(np.full((7, 9, 3), np.eye(3)[label] * 200, np.uint8)) for label in range(3)]

    def request(photo: bytes) -> bytes:
        return (
            f"POST /v2/models/small/segment?format=raw HTTP/1.1\r\nHost: here\r\n"
            f"Content-Length: {len(photo)}\r\nConnection: close\r\n\r\n"
        ).encode() + photo

    async def ask_all(port: int) -> list[bytes]:
        opened = []
        for _ in range(number // 50):
            opened += await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", port) for _ in range(50))
            )

        async def ask(
            index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> bytes:
            writer.write(request(photos[index % 3]))
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

        return await asyncio.gather(*(ask(index, *pair) for index, pair in enumerate(opened)))

    settings = free_ports(tmp_path).model_copy(
        update={"max_inflight_requests": number, "max_queue_size": number, "header_timeout_s": 60.0}
    )
    try:
        with ServerThread(settings) as server:
            answers = asyncio.run(ask_all(server.ports.http))
            batches = server.metrics.registry.get_sample_value(
                "segserve_batch_size_count", {"model": "small"}
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(b" 200 " in answer for answer in answers)
    wrong = [i for i, answer in enumerate(answers) if not answer.endswith(bytes([i % 3]) * 63)]
    assert wrong == []
    # They shared batches.
    assert batches is not None
    assert batches < number
