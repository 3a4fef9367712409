"""A call's deadline: the engine never runs an image that nobody waits for, and it is counted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.observability.access_log import AccessLog
from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.raw_grpc import (
    INFER,
    INFER_STREAM,
    SEGMENT,
    SEGMENT_STREAM,
    Ended,
    Messages,
    call,
    drain,
    open_channel,
)
from tests.support.waiting import wait_for

PHOTO = encode(bands(32, 48))


def ask(method: str) -> bytes:
    if "Segmenter" in method:
        return pb.SegmentRequest(model="bands", image=PHOTO).SerializeToString()
    request = oip.ModelInferRequest(model_name="bands")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 32, 48, 3])
    request.raw_input_contents.append(bands(32, 48).tobytes())
    return request.SerializeToString()


@contextmanager
def held(folder: Path, *, shed: bool = False) -> Iterator[tuple[Server, FakeEngine, grpc.Channel]]:
    """A server whose engine is busy with one image and takes no other.

    Late requests wait, unless ``shed``: then what is looked at is the deadline itself.
    """
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    chosen = free_ports(folder).model_copy(update={"shed_late_requests": shed})
    with ServerThread(chosen, serve_fake(engine)) as server:
        server.contexts.log = AccessLog("json", io.StringIO())
        with open_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            engine.hold.clear()
            first = channel.stream_stream(SEGMENT)(iter([ask(SEGMENT)]))
            wait_for(lambda: engine.batch_sizes == [1])
            try:
                yield server, engine, channel
            finally:
                engine.hold.set()
                assert len(list(first)) == 1


def rejected(server: Server) -> float:
    """Counted with reason deadline, under whatever model."""
    return sum(
        sample.value
        for family in server.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "segserve_rejected_total" and sample.labels["reason"] == "deadline"
    )


def ask_late(server: Server, ask_for: Callable[[float], Ended]) -> tuple[Ended, dict[str, object]]:
    """How a call ended whose deadline the server sees pass, and its line in the log.

    On a busy machine the client's cancellation may come long before the server's own deadline, and
    count as a client that left: less so with more time.
    """
    for seconds in (0.5, 1.0, 2.0, 4.0, 8.0):
        text = io.StringIO()
        server.contexts.log = AccessLog("json", text)
        ended = ask_for(seconds)
        wait_for(text.getvalue)
        wait_for(lambda: server.admission.inflight == 1)
        if rejected(server):
            break
    return ended, json.loads(text.getvalue())


@pytest.mark.parametrize("method", [SEGMENT, INFER, SEGMENT_STREAM, INFER_STREAM])
def test_a_deadline_that_passes_in_the_queue(tmp_path: Path, method: str) -> None:
    with held(tmp_path) as (server, engine, channel):
        ended, _ = ask_late(
            server, lambda seconds: call(channel, method, ask(method), timeout=seconds)
        )
        # In a stream the refusal may come just before the deadline, in its place.
        assert ended.code == "DEADLINE_EXCEEDED" or len(ended.answers) == 1
        assert rejected(server) == 1
        engine.hold.set()
        assert call(channel, SEGMENT, ask(SEGMENT)).code == "OK"
        # The one that held the engine, and the one after: never the late one.
        assert engine.batch_sizes == [1, 1]
        assert rejected(server) == 1


@pytest.mark.parametrize("method", [SEGMENT_STREAM, INFER_STREAM])
def test_a_deadline_is_counted_once(tmp_path: Path, method: str) -> None:
    """It refuses the image of a stream that stays open, and ends the stream a moment later."""
    with held(tmp_path) as (server, _, channel):

        def ask_and_stay(seconds: float) -> Ended:
            messages = Messages(ask(method))
            ended = drain(channel.stream_stream(method)(messages, timeout=seconds))
            messages.close()
            return ended

        assert ask_late(server, ask_and_stay)[0].code == "DEADLINE_EXCEEDED"
        assert rejected(server) == 1


@pytest.mark.parametrize("method", [SEGMENT, INFER, SEGMENT_STREAM, INFER_STREAM])
def test_the_queue_knows_the_deadline(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC ends a call by itself; what would be late is refused long before."""
    with held(tmp_path, shed=True) as (server, engine, channel):
        # Of one message the head is enough to refuse it: here it has to come further.
        monkeypatch.setattr(server.admission, "check_head", lambda *_: None)
        server.registry.get("bands").batcher.costs.learn(1, 500.0)
        ended = call(channel, method, ask(method), timeout=10)
        if method in (SEGMENT, INFER):
            assert (ended.code, ended.trailing["segserve-code"]) == (
                "RESOURCE_EXHAUSTED", "predicted_late",
            )  # fmt: skip
        else:
            assert (ended.code, len(ended.answers)) == ("OK", 1)
            assert b"shed_late_requests" in ended.answers[0]
        assert engine.batch_sizes == [1]


@pytest.mark.parametrize("method", [SEGMENT, INFER])
def test_a_call_that_comes_too_late(tmp_path: Path, method: str) -> None:
    """A deadline of a few milliseconds: refused, counted once or never begun."""
    with held(tmp_path) as (_, engine, channel):
        for _ in range(5):
            assert call(channel, method, ask(method), timeout=0.02).code == "DEADLINE_EXCEEDED"
        engine.hold.set()
        assert call(channel, SEGMENT, ask(SEGMENT)).code == "OK"
        assert engine.batch_sizes == [1, 1]


@pytest.mark.parametrize("method", [SEGMENT, SEGMENT_STREAM])
def test_a_deadline_that_passes_while_nothing_is_sent(tmp_path: Path, method: str) -> None:
    with held(tmp_path) as (server, _, channel):

        def open_silent(seconds: float) -> Ended:
            messages = Messages()
            ended = drain(channel.stream_stream(method)(messages, timeout=seconds))
            messages.close()
            return ended

        assert ask_late(server, open_silent)[0].code == "DEADLINE_EXCEEDED"
        assert rejected(server) == 1


def test_the_log_tells_a_deadline_from_a_client_that_left(tmp_path: Path) -> None:
    with held(tmp_path) as (server, _, channel):
        _, late = ask_late(
            server, lambda seconds: call(channel, SEGMENT, ask(SEGMENT), timeout=seconds)
        )
        text = io.StringIO()
        server.contexts.log = AccessLog("json", text)
        stream = channel.stream_stream(SEGMENT)(iter([ask(SEGMENT)]))
        wait_for(lambda: server.admission.inflight == 2)
        stream.cancel()
        wait_for(text.getvalue)
        gone = json.loads(text.getvalue())
        assert (late["status"], late["code"]) == ("DEADLINE_EXCEEDED", "deadline_exceeded")
        assert (gone["status"], gone["code"]) == ("CANCELLED", "cancelled")
