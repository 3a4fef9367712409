"""Each limit that refuses a request: the error names the setting, and a metric counts it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.waiting import wait_for

DATA = encode(bands(32, 48))
CHECKERS = encode((np.indices((32, 48)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2))
LARGE = encode(bands(320, 480))
LIMITS: dict[str, object] = {
    "max_request_bytes": 20_000,
    "max_image_megapixels": 0.1,
    "max_views": 2,
    "max_polygons": 10,
    "max_header_bytes": 2048,
    "max_grpc_calls": 2,
    "max_inflight_requests": 1,
    "max_shared_memory_regions": 1,
    "enable_shared_memory": True,
}


@dataclass(frozen=True)
class Refusal:
    """What a caller gets, over either transport."""

    status: str
    text: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, FakeEngine]]:
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    with ServerThread(free_ports(folder).model_copy(update=LIMITS), serve_fake(engine)) as server:
        yield server, engine


def rejected(server: Server, reason: str) -> float:
    metrics = server.metrics.registry.collect()
    return sum(
        sample.value
        for family in metrics
        for sample in family.samples
        if sample.name == "segserve_rejected_total" and sample.labels["reason"] == reason
    )


def over_http(server: Server, data: bytes, query: str = "", **headers: str) -> Refusal:
    url = f"http://127.0.0.1:{server.ports.http}/v2/models/bands/segment?{query}"
    answer = httpx.post(url, content=data, headers=headers)
    text = answer.json()["error"] if answer.status_code != 200 else ""
    return Refusal(str(answer.status_code), text)


def over_grpc(server: Server, call: Callable[[grpc.Channel], object]) -> Refusal:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}", options) as channel:
        try:
            call(channel)
        except grpc.RpcError as error:
            return Refusal(error.code().name, error.details())
    return Refusal("OK", "")


def segment(server: Server, data: bytes, *metadata: tuple[str, str], **fields: object) -> Refusal:
    request = pb.SegmentRequest(model="bands", image=data, **fields)
    return over_grpc(
        server,
        lambda channel: SegmenterStub(channel).Segment(request, metadata=metadata, timeout=60),
    )


@contextmanager
def occupied(server: Server, engine: FakeEngine, number: int) -> Iterator[None]:
    """While ``number`` requests are being worked on."""
    engine.hold.clear()
    callers = [threading.Thread(target=segment, args=(server, DATA)) for _ in range(number)]
    try:
        for caller in callers:
            caller.start()
        value = server.metrics.registry.get_sample_value
        wait_for(lambda: value("segserve_inflight_requests") == number)
        yield
    finally:
        engine.hold.set()
        for caller in callers:
            caller.join()


@pytest.mark.parametrize(
    ("setting", "reason", "refuse", "status"),
    [
        ("max_request_bytes", "request_bytes", lambda s: over_http(s, bytes(30_000)), "413"),
        ("max_request_bytes", "request_bytes", lambda s: segment(s, bytes(30_000)),
         "INVALID_ARGUMENT"),
        ("max_image_megapixels", "image_megapixels", lambda s: over_http(s, LARGE), "413"),
        ("max_image_megapixels", "image_megapixels", lambda s: segment(s, LARGE),
         "INVALID_ARGUMENT"),
        ("max_views", "views", lambda s: over_http(s, DATA, "tta=flip,0.5,0.75"), "413"),
        ("max_views", "views", lambda s: segment(s, DATA, tta=["flip", "0.5"]),
         "INVALID_ARGUMENT"),
        ("max_polygons", "polygons", lambda s: over_http(s, CHECKERS, "format=polygons"), "400"),
        ("max_polygons", "polygons", lambda s: segment(s, CHECKERS, format="polygons"),
         "INVALID_ARGUMENT"),
        ("max_header_bytes", "header_bytes", lambda s: over_http(s, DATA, a="b" * 3000), "431"),
        ("max_header_bytes", "header_bytes", lambda s: segment(s, DATA, ("a", "b" * 3000)),
         "RESOURCE_EXHAUSTED"),
    ],
)  # fmt: skip
def test_a_limit_is_told_and_counted_once(
    server: tuple[Server, FakeEngine],
    setting: str,
    reason: str,
    refuse: Callable[[Server], Refusal],
    status: str,
) -> None:
    serving, _ = server
    before = rejected(serving, reason)
    refusal = refuse(serving)
    assert refusal.status == status
    assert setting in refusal.text
    assert rejected(serving, reason) == before + 1
    assert segment(serving, DATA).status == "OK"


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_one_request_too_many(server: tuple[Server, FakeEngine], transport: str) -> None:
    serving, engine = server
    before = rejected(serving, "inflight")
    with occupied(serving, engine, 1):
        refusal = over_http(serving, DATA) if transport == "http" else segment(serving, DATA)
    assert refusal.status == {"http": "429", "grpc": "RESOURCE_EXHAUSTED"}[transport]
    assert "max_inflight_requests" in refusal.text
    assert rejected(serving, "inflight") == before + 1


def test_one_grpc_call_too_many(server: tuple[Server, FakeEngine]) -> None:
    serving, _ = server
    before = rejected(serving, "grpc_calls")
    ended = threading.Event()

    def frames() -> Iterator[pb.SegmentRequest]:
        yield pb.SegmentRequest(model="bands", image=DATA)
        ended.wait()

    with grpc.insecure_channel(f"127.0.0.1:{serving.ports.grpc}") as channel:
        streams = [SegmenterStub(channel).SegmentStream(frames()) for _ in range(2)]
        for stream in streams:
            next(stream)
        refusal = segment(serving, DATA)
        ended.set()
        for stream in streams:
            assert list(stream) == []
    assert refusal.status == "RESOURCE_EXHAUSTED"
    assert "max_grpc_calls" in refusal.text
    assert rejected(serving, "grpc_calls") == before + 1
    assert segment(serving, DATA).status == "OK"


def test_a_frame_that_is_too_long_ends_its_stream(server: tuple[Server, FakeEngine]) -> None:
    serving, _ = server
    before = rejected(serving, "request_bytes")
    frames = [pb.SegmentRequest(model="bands", image=data) for data in (DATA, bytes(30_000))]
    refusal = over_grpc(serving, lambda c: list(SegmenterStub(c).SegmentStream(iter(frames))))
    assert refusal.status == "INVALID_ARGUMENT"
    assert "max_request_bytes" in refusal.text
    assert rejected(serving, "request_bytes") == before + 1


def test_a_frame_of_too_many_pixels_is_counted_too(server: tuple[Server, FakeEngine]) -> None:
    serving, _ = server
    before = rejected(serving, "image_megapixels")
    frame = pb.SegmentRequest(model="bands", image=LARGE)
    with grpc.insecure_channel(f"127.0.0.1:{serving.ports.grpc}") as channel:
        (answer,) = SegmenterStub(channel).SegmentStream(iter([frame]))
    assert "max_image_megapixels" in answer.error.message
    assert rejected(serving, "image_megapixels") == before + 1


def test_shared_memory_regions(server: tuple[Server, FakeEngine], tmp_path: Path) -> None:
    serving, _ = server
    block = Path("/dev/shm") / f"segserve-limits-{tmp_path.name}"
    if not block.parent.is_dir():
        pytest.skip("no /dev/shm")
    block.write_bytes(bytes(64))
    before = rejected(serving, "shared_memory_regions")
    requests = [
        oip.SystemSharedMemoryRegisterRequest(name=name, key=f"/{block.name}", byte_size=64)
        for name in "ab"
    ]
    try:
        call = "SystemSharedMemoryRegister"
        first, second = (
            over_grpc(serving, lambda c, r=r: getattr(GRPCInferenceServiceStub(c), call)(r))
            for r in requests
        )
    finally:
        block.unlink()
    assert first.status == "OK"
    assert second.status == "INVALID_ARGUMENT"
    assert "max_shared_memory_regions" in second.text
    assert rejected(serving, "shared_memory_regions") == before + 1
