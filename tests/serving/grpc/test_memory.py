"""Nothing of a call that was refused, cancelled or broken stays in memory, without a collection."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from tests.support.band_model import Served, bands, encode
from tests.support.raw_grpc import (
    CHECK,
    INDEX,
    INFER,
    INFER_STREAM,
    SEGMENT,
    SEGMENT_STREAM,
    Messages,
    call,
    part,
)
from tests.support.raw_grpc import open_channel as open_raw
from tests.support.waiting import wait_for

SIZE = 20 << 20
CALLS = 8
BULK = bytes(SIZE)
# What nobody knows: it makes every message a long one.
LONG = part(500, BULK)
PHOTO = encode(bands(32, 48))
SEGMENT_FRAME = pb.SegmentRequest(model="bands", image=PHOTO).SerializeToString()


def infer(**fields: object) -> bytes:
    request = oip.ModelInferRequest(model_name="bands", **fields)
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 32, 48, 3])
    return request.SerializeToString()


REFUSALS: dict[str, tuple[str, bytes]] = {
    "unknown model": (SEGMENT, pb.SegmentRequest(model="nope", image=BULK).SerializeToString()),
    "no image": (SEGMENT, pb.SegmentRequest(model="bands", image=BULK).SerializeToString()),
    "unknown format": (SEGMENT, pb.SegmentRequest(model="bands", format="x").SerializeToString()
                       + LONG),
    "wrong size": (INFER, infer(raw_input_contents=[BULK])),
    "too many raw contents": (INFER, infer(raw_input_contents=[BULK, b""])),
    "too many fields": (INFER, infer(raw_input_contents=[BULK]) + b"\x32\x00" * 5000),
    "no message": (INFER, infer(raw_input_contents=[BULK]) + b"\xff"),
    "not UTF-8": (SEGMENT, LONG + b"\x0a\x01\xff"),
    "too large": (SEGMENT, pb.SegmentRequest(model="bands", image=BULK * 4).SerializeToString()),
    "unknown repository": (INDEX, oip.RepositoryIndexRequest(repository_name="x")
                           .SerializeToString() + LONG),
    "unknown service": (CHECK, b"\x0a\x03abc" + LONG),
    "a bad frame": (SEGMENT_STREAM, pb.SegmentRequest(model="x", image=BULK).SerializeToString()),
    "a bad frame's fields": (SEGMENT_STREAM, b"\x42\x00" * 5000 + LONG),
    "a bad inference in a stream": (INFER_STREAM, infer(raw_input_contents=[BULK])),
}  # fmt: skip


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with open_raw(served.grpc) as channel:
        yield channel


def read_rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def check_nothing_is_kept(once: Callable[[], object]) -> None:
    """Runs ``once`` often, with no collection of cycles; the frames of the server that are left in
    cycles are none, and the process grows by far less than the messages."""
    for _ in range(4):
        once()
    gc.collect()
    gc.disable()
    try:
        before = read_rss()
        for _ in range(CALLS):
            once()
        # The server ends a call a moment after its client knows.
        wait_for(lambda: read_rss() - before < CALLS * SIZE * 0.6, 20.0)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        held = [item for item in gc.garbage if is_of_the_server(item)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert held == []


def is_of_the_server(item: object) -> bool:
    """Whether a frame is one of the server's, or an object holds a message."""
    if type(item).__name__ in {"OpenCall", "Call", "RPCState", "_ServicerContext", "Item"}:
        return True
    code = getattr(item, "f_code", None)
    return code is not None and "/serving/" in code.co_filename


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refused_call(channel: grpc.Channel, reason: str) -> None:
    method, message = REFUSALS[reason]
    is_frame = reason in ("a bad frame", "a bad inference in a stream")

    def once() -> None:
        assert (call(channel, method, message).code == "OK") == is_frame

    check_nothing_is_kept(once)


@pytest.mark.parametrize("method", [SEGMENT, SEGMENT_STREAM])
def test_a_call_whose_deadline_passes(channel: grpc.Channel, served: Served, method: str) -> None:
    served.engine.hold.clear()
    try:
        check_nothing_is_kept(lambda: call(channel, method, SEGMENT_FRAME + LONG, timeout=0.4))
    finally:
        served.engine.hold.set()


def test_a_call_whose_client_leaves(channel: grpc.Channel, served: Served) -> None:
    inflight = served.server.metrics.registry.get_sample_value

    def once() -> None:
        stream = channel.stream_stream(SEGMENT)(iter([SEGMENT_FRAME + LONG]))
        wait_for(lambda: inflight("segserve_inflight_requests") == 1)
        stream.cancel()
        wait_for(lambda: inflight("segserve_inflight_requests") == 0)

    served.engine.hold.clear()
    try:
        check_nothing_is_kept(once)
    finally:
        served.engine.hold.set()


@pytest.mark.parametrize("method", [SEGMENT, SEGMENT_STREAM, INFER, INFER_STREAM])
def test_a_call_that_a_defect_breaks(
    channel: grpc.Channel, served: Served, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def break_down(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(served.server.segmenter), "segment", break_down)
    monkeypatch.setattr(type(served.server.dataplane), "find", break_down)

    def once() -> None:
        assert call(channel, method, part(1, b"bands") + LONG).code == "INTERNAL"

    check_nothing_is_kept(once)


def test_an_engine_that_fails(channel: grpc.Channel, served: Served) -> None:
    request = oip.ModelInferRequest(model_name="bands")
    request.inputs.add(name="image", datatype="BYTES", shape=[2])
    request.inputs[0].contents.bytes_contents.extend([PHOTO, b"no image"])
    message = request.SerializeToString() + LONG

    def once() -> None:
        assert call(channel, INFER, message).code == "INVALID_ARGUMENT"

    check_nothing_is_kept(once)


def test_a_quiet_stream_keeps_no_frame(channel: grpc.Channel) -> None:
    """Neither the last message nor its answer stays while the next is waited for."""
    # The client's sender keeps it too: one object for all.
    message = SEGMENT_FRAME + LONG
    before = read_rss()
    streams = []
    for _ in range(CALLS):
        messages = Messages(message)
        stream = channel.stream_stream(SEGMENT_STREAM)(messages)
        assert next(stream)
        streams.append((stream, messages))
    wait_for(lambda: read_rss() - before < CALLS * SIZE * 0.6, 20.0)
    for stream, messages in streams:
        messages.close()
        assert list(stream) == []


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/v2/models/nope/segment", BULK),
        ("/v2/models/bands/segment", BULK),
        ("/v2/models/bands/infer", BULK),
    ],
)
def test_a_refused_request_over_http(served: Served, path: str, data: bytes) -> None:
    with httpx.Client(base_url=f"http://{served.http}", timeout=60) as client:

        def once() -> None:
            assert client.post(path, content=data).status_code in (400, 404, 413)
            time.sleep(0.01)

        check_nothing_is_kept(once)
