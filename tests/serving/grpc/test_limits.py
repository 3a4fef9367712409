"""gRPC calls that are open: all are counted, wait within limits, and leave room for real ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from segserve_client.proto import segserve_pb2 as pb

from serving.grpc import open_calls
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    MODEL_SIZE,
    Served,
    bands,
    encode,
    free_ports,
    serve_fake,
    write_model,
)
from tests.support.raw_grpc import (
    CHECK,
    INDEX,
    METHODS,
    READY,
    SEGMENT,
    SEGMENT_STREAM,
    WATCH,
    Ended,
    Messages,
    call,
    drain,
    open_channel,
)
from tests.support.waiting import wait_for

FRAME = pb.SegmentRequest(
    model="bands", image=encode(bands(32, 48)), format="raw"
).SerializeToString()
# Streams of these take one message or more from the client, the others one.
ONE_MESSAGE = [name for name, method in METHODS.items() if not method.client_streaming]


@contextmanager
def limited(folder: Path, **settings: object) -> Iterator[tuple[Server, FakeEngine]]:
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    chosen = free_ports(folder).model_copy(update=settings)
    with ServerThread(chosen, serve_fake(engine)) as server:
        yield server, engine


def address(server: Server) -> str:
    return f"127.0.0.1:{server.ports.grpc}"


def rejected(server: Server, reason: str) -> float:
    labels = {"model": "_unknown", "reason": reason}
    return server.metrics.registry.get_sample_value("segserve_rejected_total", labels) or 0.0


class Background:
    """A call on a thread of its own, and how it ended."""

    def __init__(self, stream: grpc.Call, limit: int | None = None) -> None:
        self.ended: Ended | None = None
        self._thread = threading.Thread(target=self._run, args=(stream, limit))
        self._thread.start()

    def _run(self, stream: grpc.Call, limit: int | None) -> None:
        self.ended = drain(stream, limit)

    def wait(self) -> Ended:
        self._thread.join(60)
        assert self.ended is not None
        return self.ended


def open_silent(channel: grpc.Channel, method: str, messages: Messages) -> grpc.Call:
    """A call whose headers are sent, and no message."""
    return channel.stream_stream(method)(messages)


@pytest.mark.parametrize("method", [SEGMENT, SEGMENT_STREAM, CHECK, INDEX, READY, WATCH])
def test_a_call_without_a_message_ends(tmp_path: Path, method: str) -> None:
    with limited(tmp_path, upload_timeout_s=0.4) as (server, _):
        before = rejected(server, "upload_timeout")
        with open_channel(address(server)) as channel:
            messages = Messages()
            ended = drain(open_silent(channel, method, messages))
            messages.close()
        assert ended.code == "DEADLINE_EXCEEDED"
        assert "upload_timeout_s" in ended.text
        assert ended.trailing["x-request-id"]
        assert rejected(server, "upload_timeout") == before + 1


@pytest.mark.parametrize("method", ONE_MESSAGE)
def test_a_call_that_closes_without_a_message(served: Served, method: str) -> None:
    with open_channel(served.grpc) as channel:
        ended = call(channel, method)
        assert ended.code == "INVALID_ARGUMENT"
        assert "before its message" in ended.text


@pytest.mark.parametrize("kind", ["calls", "probes"])
def test_silent_calls_give_way_to_real_ones(tmp_path: Path, kind: str) -> None:
    """From one connection or many: what has sent nothing holds nothing up."""
    silent, real = {"calls": (SEGMENT, INDEX), "probes": (CHECK, READY)}[kind]
    with ExitStack() as stack:
        server, _ = stack.enter_context(limited(tmp_path, max_grpc_calls=4))
        messages = Messages()
        stack.callback(messages.close)
        channels = [stack.enter_context(open_channel(address(server))) for _ in range(3)]
        calls = [
            Background(open_silent(channel, silent, messages))
            for channel in channels
            for _ in range(20)
        ]
        with open_channel(address(server)) as own:
            for _ in range(10):
                assert call(own, real, b"").code == "OK"
            # A call that has a message does not give way, however many come.
            stream_messages = Messages(FRAME)
            stream = own.stream_stream(SEGMENT_STREAM)(stream_messages)
            assert next(stream)
            for channel in channels:
                calls += [Background(open_silent(channel, silent, messages)) for _ in range(20)]
            stream_messages.send(FRAME)
            assert next(stream)
            stream_messages.close()
            assert list(stream) == []
        wait_for(lambda: sum(call.ended is not None for call in calls) >= len(calls) - 4)
        gone = [call.ended for call in calls if call.ended is not None]
        for ended in gone:
            assert ended.code == "RESOURCE_EXHAUSTED"
            assert "max_grpc_calls" in ended.text
            assert ended.trailing["retry-after"]
        assert rejected(server, "grpc_calls") >= len(gone)


def test_of_silent_calls_those_of_the_greediest_address_go_first() -> None:
    lane = open_calls.Lane("max_grpc_calls", 5)
    calls = [
        open_calls.OpenCall(lane, address, None, False, float(index))  # type: ignore[arg-type]
        for index, address in enumerate(("a", "b", "b", "a", "b"))
    ]
    for one in calls:
        lane.add(one)
    assert lane.find_idle(9.0) is calls[1]
    lane.remove(calls[1])
    lane.remove(calls[1])
    lane.note_message(calls[0])
    assert lane.find_idle(9.0) is calls[2]
    for one in calls[2:]:
        lane.note_message(one)
    assert lane.find_idle(9.0) is None
    for one in calls:
        lane.remove(one)
    assert (lane.calls, lane.addresses, lane.silent) == ({}, {}, {})


def test_a_quiet_stream_ends(tmp_path: Path) -> None:
    with limited(tmp_path, stream_idle_timeout_s=0.8) as (server, engine):
        with open_channel(address(server)) as channel:
            messages = Messages(FRAME)
            stream = channel.stream_stream(SEGMENT_STREAM)(messages)
            # Neither a client that is slow nor an engine that is makes a stream quiet.
            for _ in range(4):
                assert next(stream)
                time.sleep(0.4)
                messages.send(FRAME)
            assert next(stream)
            engine.hold.clear()
            messages.send(FRAME)
            threading.Timer(2.0, engine.hold.set).start()
            assert next(stream)
            ended = drain(stream)
            messages.close()
        assert ended.code == "DEADLINE_EXCEEDED"
        assert "stream_idle_timeout_s" in ended.text
        assert rejected(server, "stream_idle") == 1


def test_a_quiet_stream_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_calls, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(open_calls, "SWEEP_SECONDS", 0.1)
    with limited(tmp_path, max_grpc_calls=2) as (server, engine):
        with open_channel(address(server)) as channel:
            busy, quiet = Messages(FRAME), Messages(FRAME)
            first = channel.stream_stream(SEGMENT_STREAM)(quiet)
            assert next(first)
            second = channel.stream_stream(SEGMENT_STREAM)(busy)
            assert next(second)
            engine.hold.clear()
            busy.send(FRAME)
            wait_for(lambda: call(channel, INDEX, b"").code == "OK")
            engine.hold.set()
            assert next(second)
            ended = drain(first)
            busy.close()
            quiet.close()
            assert list(second) == []
        assert ended.code == "RESOURCE_EXHAUSTED"
        assert "max_grpc_calls" in ended.text


def test_watches_have_limits_of_their_own(tmp_path: Path) -> None:
    settings = {"max_grpc_watches": 6, "max_grpc_watches_per_address": 4, "max_grpc_calls": 3}
    request = health_pb2.HealthCheckRequest().SerializeToString()
    with ExitStack() as stack:
        server, _ = stack.enter_context(limited(tmp_path, **settings))
        watches = []
        for _ in range(10):
            channel = stack.enter_context(open_channel(address(server)))
            for _ in range(3):
                watches.append(channel.unary_stream(WATCH)(request))
        calls = [Background(watch) for watch in watches]
        wait_for(lambda: sum(one.ended is not None for one in calls) == 26)
        for one in calls:
            if one.ended is not None:
                assert one.ended.code == "RESOURCE_EXHAUSTED"
                assert "max_grpc_watches_per_address" in one.ended.text
        with open_channel(address(server)) as own:
            for method, message in ((CHECK, request), (READY, b""), (INDEX, b""), (SEGMENT, FRAME)):
                assert call(own, method, message).code == "OK"
        for watch in watches:
            watch.cancel()
        for one in calls:
            one.wait()
        # Those that leave make room.
        with open_channel(address(server)) as own:
            wait_for(lambda: Background(own.unary_stream(WATCH)(request), 1).wait().answers)


def test_watches_of_all_addresses(tmp_path: Path) -> None:
    settings = {"max_grpc_watches": 2, "max_grpc_watches_per_address": 64}
    with ExitStack() as stack:
        server, _ = stack.enter_context(limited(tmp_path, **settings))
        channel = stack.enter_context(open_channel(address(server)))
        watches = [channel.unary_stream(WATCH)(b"") for _ in range(2)]
        for watch in watches:
            assert next(watch)
        ended = drain(channel.unary_stream(WATCH)(b""))
        assert ended.code == "RESOURCE_EXHAUSTED"
        assert "(setting max_grpc_watches)" in ended.text
        for watch in watches:
            watch.cancel()


def test_a_client_that_takes_no_answer(tmp_path: Path) -> None:
    """It is told to end; what is stuck on its way stays counted until the client is gone."""
    noise = np.random.default_rng(1).integers(0, 255, (2500, 2500, 3), np.uint8)
    data = encode(noise, "BMP")
    frame = pb.SegmentRequest(model="bands", image=data, format="raw").SerializeToString()
    with limited(tmp_path, send_timeout_s=0.5, stream_idle_timeout_s=600.0) as (server, _):
        window = (("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0),
                  ("grpc.max_receive_message_length", -1))  # fmt: skip
        with open_channel(address(server), *window) as channel:
            messages = Messages(*[frame] * 3)
            stream = channel.stream_stream(SEGMENT_STREAM)(messages)
            wait_for(lambda: rejected(server, "send_timeout") == 1)
            stream.cancel()
            messages.close()
        with open_channel(address(server)) as channel:
            assert call(channel, SEGMENT, FRAME).code == "OK"


@pytest.fixture(scope="module")
def short_headers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with limited(tmp_path_factory.mktemp("repository"), max_header_bytes=2048) as (server, _):
        yield server


@pytest.mark.parametrize("method", METHODS)
def test_long_metadata_is_refused_by_every_method(short_headers: Server, method: str) -> None:
    before = rejected(short_headers, "header_bytes")
    with open_channel(address(short_headers)) as channel:
        ended = call(channel, method, b"", metadata=[("a", "b" * 3000)])
    assert ended.code == "RESOURCE_EXHAUSTED"
    assert "max_header_bytes" in ended.text
    assert ended.trailing["x-request-id"]
    assert rejected(short_headers, "header_bytes") == before + 1


def ping(server: Server, seconds: float) -> list[str]:
    """What becomes of a quiet stream of a client that pings every second."""
    options = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    found = []
    with open_channel(address(server), *options) as channel:
        messages = Messages(FRAME)
        stream = channel.stream_stream(SEGMENT_STREAM)(messages)
        assert next(stream)
        end = time.monotonic() + seconds
        while time.monotonic() < end and stream.is_active():
            time.sleep(0.1)
        if stream.is_active():
            messages.send(FRAME)
            assert next(stream)
        messages.close()
        found.append(drain(stream).text)
    return found


def test_keepalive_of_clients_is_a_setting(tmp_path: Path) -> None:
    """A ping a second: within a setting that allows it, and beyond one that does not."""
    with limited(tmp_path / "a", grpc_http2_min_recv_ping_interval_without_data_ms=500) as (s, _):
        assert ping(s, 5.0) == [""]
    strict = {
        "grpc_http2_min_recv_ping_interval_without_data_ms": 300_000,
        "grpc_http2_max_ping_strikes": 1,
    }
    with limited(tmp_path / "b", **strict) as (s, _):
        assert ping(s, 20.0) != [""]


def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    with (
        limited(tmp_path, grpc_connection_idle_s=1.0) as (server, _),
        open_channel(address(server)) as channel,
    ):
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        assert call(channel, INDEX, b"").code == "OK"
        wait_for(lambda: states and states[-1] is grpc.ChannelConnectivity.IDLE)
        # The next call opens another.
        assert call(channel, INDEX, b"").code == "OK"


def test_the_defaults_suit_a_client_that_pings_every_ten_seconds() -> None:
    settings = Settings()
    assert settings.grpc_http2_min_recv_ping_interval_without_data_ms < 10_000
    assert settings.grpc_keepalive_permit_without_calls
    for name, field in Settings.model_fields.items():
        assert field.description, name
