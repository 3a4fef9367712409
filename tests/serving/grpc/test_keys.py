"""Keys over gRPC: which methods ask for one, and what becomes of calls whose key goes away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.errors import KeyLimitExceeded, Unauthenticated
from serving.observability.metrics import Metrics
from serving.observability.middleware import RequestContexts
from serving.observability.request_context import RequestContext
from serving.security.api_keys import KeyRing
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.raw_grpc import (
    CHECK,
    DESCRIBE,
    INDEX,
    INFER_STREAM,
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

ALICE, BOB = "alice-0123456789", "bob-0123456789abc"
OPEN = {READY, "/inference.GRPCInferenceService/ServerLive", CHECK, WATCH}
FRAME = pb.SegmentRequest(
    model="bands", image=encode(bands(32, 48)), format="raw"
).SerializeToString()
REFLECTION = next(name for name in METHODS if name.endswith("/ServerReflectionInfo"))
AS_ALICE, AS_BOB = [("x-api-key", ALICE)], [("authorization", f"Bearer {BOB}")]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    write_keys(path, f"alice {ALICE}\nbob {BOB}\n")
    return path


def write_keys(path: Path, text: str) -> None:
    """As `mv` does: never half a file."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.fixture
def server(tmp_path: Path, keys: Path) -> Iterator[Server]:
    write_model(tmp_path / "models")
    chosen = free_ports(tmp_path / "models").model_copy(update={"api_keys_file": keys})
    with ServerThread(chosen, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        yield server


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with open_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        yield channel


def test_every_method_asks_for_a_key_but_those_that_are_documented(channel: grpc.Channel) -> None:
    text = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
    for documented in ("grpc.health.v1.Health", "ServerLive", "ServerReady"):
        assert documented in text
    for method in METHODS:
        # Watch has no end of its own.
        answered = drain(channel.stream_stream(method)(iter([b""]), timeout=60), limit=1)
        assert (method, answered.code) == (
            method, "OK" if method in OPEN else "UNAUTHENTICATED",
        )  # fmt: skip
        if method not in OPEN:
            assert answered.trailing["segserve-code"] == "unauthenticated"
            assert answered.trailing["x-request-id"]
            for wrong in ([("x-api-key", ALICE + "x")], [("authorization", ALICE)]):
                assert call(channel, method, b"", metadata=wrong).code == "UNAUTHENTICATED"
            assert call(channel, method, b"", metadata=AS_ALICE).code != "UNAUTHENTICATED"


def test_no_message_is_taken_before_the_key_is_known(channel: grpc.Channel) -> None:
    messages = Messages()
    ended = drain(channel.stream_stream(SEGMENT)(messages))
    messages.close()
    assert ended.code == "UNAUTHENTICATED"


@pytest.mark.parametrize("method", [SEGMENT_STREAM, INFER_STREAM, REFLECTION])
def test_a_stream_ends_when_its_key_is_gone(channel: grpc.Channel, keys: Path, method: str) -> None:
    first = {SEGMENT_STREAM: FRAME, INFER_STREAM: oip.ModelInferRequest().SerializeToString()}
    message = first.get(method, b"")
    quiet, busy, other = Messages(message), Messages(message), Messages(message)
    streams = {
        "quiet": channel.stream_stream(method)(quiet, metadata=AS_ALICE),
        "busy": channel.stream_stream(method)(busy, metadata=AS_ALICE),
        "other": channel.stream_stream(method)(other, metadata=AS_BOB),
    }
    for stream in streams.values():
        assert next(stream)
    write_keys(keys, f"bob {BOB} requests_per_second=1000\n")

    def send() -> Ended | None:
        time.sleep(0.05)
        busy.send(message)
        try:
            next(streams["busy"])
        except grpc.RpcError:
            return drain(streams["busy"])
        return None

    for ended in (wait_for(send), drain(streams["quiet"])):
        assert ended.code == "UNAUTHENTICATED"
        assert "'alice' is not valid any more" in ended.text
        assert ended.trailing["segserve-code"] == "unauthenticated"
    other.send(message)
    assert next(streams["other"])
    for messages in (quiet, busy, other):
        messages.close()
    assert drain(streams["other"]).code == "OK"


def test_new_limits_hold_in_open_streams(channel: grpc.Channel, keys: Path) -> None:
    messages = Messages(FRAME)
    stream = channel.stream_stream(SEGMENT_STREAM)(messages, metadata=AS_ALICE)
    assert pb.SegmentStreamResponse.FromString(next(stream)).HasField("response")
    write_keys(keys, f"alice {ALICE} requests_per_second=0.001\nbob {BOB}\n")

    def is_refused() -> bool:
        messages.send(FRAME)
        time.sleep(0.05)
        return pb.SegmentStreamResponse.FromString(next(stream)).error.code == "key_limit_exceeded"

    wait_for(is_refused)
    messages.close()
    assert drain(stream).code == "OK"


def test_concurrent_counts_open_streams_of_the_key(channel: grpc.Channel, keys: Path) -> None:
    messages = Messages(FRAME)
    stream = channel.stream_stream(SEGMENT_STREAM)(messages, metadata=AS_ALICE)
    assert next(stream)
    # The stream that is open counts under the new limit as well.
    write_keys(keys, f"alice {ALICE} concurrent=1\nbob {BOB}\n")
    wait_for(lambda: call(channel, INDEX, b"", metadata=AS_ALICE).code == "RESOURCE_EXHAUSTED")
    assert call(channel, INDEX, b"", metadata=AS_BOB).code == "OK"
    messages.close()
    assert drain(stream).code == "OK"
    wait_for(lambda: call(channel, INDEX, b"", metadata=AS_ALICE).code == "OK")


@pytest.mark.parametrize("method", [SEGMENT, DESCRIBE, INDEX, SEGMENT_STREAM])
def test_however_a_call_ends_its_key_leaves_once(
    channel: grpc.Channel, server: Server, method: str
) -> None:
    assert server.contexts.keys is not None
    use = server.contexts.keys.find(ALICE)
    for message in (b"", b"\xff", FRAME, b"\x42\x00" * 5000):
        call(channel, method, message, metadata=AS_ALICE)
        call(channel, method, metadata=AS_ALICE)
    call(channel, method, FRAME, metadata=[*AS_ALICE, ("a", "b" * 40_000)])
    messages = Messages()
    silent = [channel.stream_stream(method)(messages, metadata=AS_ALICE) for _ in range(3)]
    wait_for(lambda: use.running == 3)
    for stream in silent:
        stream.cancel()
    wait_for(lambda: use.running == 0)
    messages.close()


def test_a_refused_call_takes_no_running_slot(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(f"alice {ALICE} concurrent=1 requests_per_second=1")
    use = KeyRing(path, clock).find(ALICE)
    use.enter()
    use.leave()
    for _ in range(3):
        with pytest.raises(KeyLimitExceeded, match="requests per second"):
            use.enter()
    assert use.running == 0
    clock.now = 1.0
    use.enter()
    with pytest.raises(KeyLimitExceeded, match="being worked on"):
        use.enter()
    assert use.running == 1


def test_a_call_that_was_not_admitted_does_not_leave(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice {ALICE} concurrent=1")
    contexts = RequestContexts(Settings(api_keys_file=path), Metrics())
    assert contexts.keys is not None
    use = contexts.keys.find(ALICE)

    def read(name: str) -> str:
        return ALICE if name == "x-api-key" else ""

    def enter() -> RequestContext:
        with contexts.begin("grpc", "POST", "/a/b", "127.0.0.1", read) as call:
            contexts.admit(call, read)
            if use.running == 1:
                with pytest.raises(KeyLimitExceeded):
                    enter()
            assert use.running == 1
            return call

    enter()
    assert use.running == 0
    enter()
    with pytest.raises(Unauthenticated):  # noqa: SIM117
        with contexts.begin("grpc", "POST", "/a/b", "127.0.0.1", lambda name: "") as call:
            contexts.admit(call, lambda name: "")
    assert use.running == 0


def test_a_key_that_comes_back_is_a_new_one(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    write_keys(path, f"alice {ALICE}\nbob {BOB}")
    ring = KeyRing(path, clock)
    use = ring.find(ALICE)
    ring.check(use)
    for text in (f"bob {BOB}", f"alice {ALICE}\nbob {BOB}"):
        write_keys(path, text)
        clock.now += 2.0
        with pytest.raises(Unauthenticated, match="'alice' is not valid any more"):
            ring.check(use)
    assert ring.find(ALICE) is not use
    # A file that is broken takes no key away.
    fresh = ring.find(ALICE)
    write_keys(path, "broken")
    clock.now += 2.0
    ring.check(fresh)
