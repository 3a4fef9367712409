"""Pixels that a request has reserved are given back, also where it ends before its images do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving import preparation
from serving.imaging.still import StillImage
from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.waiting import wait_for

SLOW, QUICK = encode(bands(320, 480)), encode(bands(32, 48))
SEGMENT = "/v2/models/bands/segment"


class HeldHeaders:
    """Reads headers as ever; of the slow image only once it is let go."""

    def __init__(self, read) -> None:
        self.read = read
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, data: bytes, formats: frozenset[str]) -> StillImage:
        still: StillImage = self.read(data, formats)
        if still.width == 480:
            self.begun.set()
            assert self.go.wait(60)
        return still


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> HeldHeaders:
    held = HeldHeaders(preparation.read_still)
    monkeypatch.setattr(preparation, "read_still", held)
    return held


@pytest.fixture
def server(tmp_path: Path, held: HeldHeaders) -> Iterator[Server]:
    write_model(tmp_path)
    chosen = free_ports(tmp_path).model_copy(update={"pool_threads": 4})
    with ServerThread(chosen, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        yield server
        held.go.set()


def leave_http(server: Server, held: HeldHeaders) -> None:
    """The client closes its connection."""
    head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SLOW)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.ports.http)) as connection:
        connection.sendall(head.encode() + SLOW)
        assert held.begun.wait(60)


def leave_grpc(server: Server, held: HeldHeaders) -> None:
    """The client cancels its call."""
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        stub = segserve_pb2_grpc.SegmenterStub(channel)
        call = stub.Segment.future(pb.SegmentRequest(model="bands", image=SLOW))
        assert held.begun.wait(60)
        call.cancel()


def fail_beside(server: Server, held: HeldHeaders) -> None:
    """Another image of the same request is broken."""
    request = service_pb2.ModelInferRequest(model_name="bands")
    request.inputs.add(name="image", datatype="BYTES", shape=[2])
    for image in (SLOW, b"no image"):
        request.inputs[0].contents.bytes_contents.append(image)
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert held.begun.wait(60)


@pytest.mark.parametrize("end", [leave_http, leave_grpc, fail_beside])
def test_nothing_is_reserved_for_a_request_that_has_ended(
    server: Server, held: HeldHeaders, end
) -> None:
    """A thread that is still at its image must not reserve for it: nobody would give it back."""
    admission, turns = server.admission, server.preparer._turns
    idle = turns._free
    end(server, held)
    wait_for(lambda: admission.inflight == 0)
    held.go.set()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=60) as http:
        with ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(http.post, SEGMENT, content=QUICK) for _ in range(16)]
        assert {answer.result().status_code for answer in sent} == {200}
    # The late thread has gone its way.
    wait_for(lambda: turns._free == idle)
    assert admission._pixels == 0
