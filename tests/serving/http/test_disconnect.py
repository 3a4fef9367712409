"""A client that hangs up takes its work with it: a place in the queue, or what is left of tiles."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

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
from tests.support.waiting import wait_for

SHAPE = (MODEL_SIZE.height, MODEL_SIZE.width)
TILES = (SHAPE[0] * 10, SHAPE[1] * 10)  # more than max_views_in_flight


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Served]:
    """A server whose engine waits until it is let go, one image at a time."""
    write_model(tmp_path, resize="tile")
    engine = FakeEngine(MODEL_SIZE, max_batch_size=1)
    with ServerThread(free_ports(tmp_path), serve_fake(engine)) as server:
        engine.hold.clear()
        try:
            yield Served(server, engine)
        finally:
            engine.hold.set()


def send(served: Served, path: str, body: bytes) -> socket.socket:
    """A whole request on a socket of its own."""
    connection = socket.create_connection(("127.0.0.1", served.server.ports.http), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def metric(served: Served, name: str) -> float:
    page = httpx.get(f"http://{served.http}/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def segment_request() -> tuple[str, bytes]:
    return "/v2/models/bands/segment", encode(bands(*SHAPE))


def infer_request() -> tuple[str, bytes]:
    item = triton.InferInput("image", [1, *SHAPE, 3], "UINT8")
    item.set_data_from_numpy(bands(*SHAPE)[None], binary_data=False)
    body, _ = triton.InferenceServerClient.generate_request_body([item])
    return "/v2/models/bands/infer", body


@pytest.mark.parametrize("make", [segment_request, infer_request])
def test_a_queued_image_leaves_with_its_client(
    held: Served, make: Callable[[], tuple[str, bytes]]
) -> None:
    first = send(held, *make())
    wait_for(lambda: len(held.engine.batch_sizes) == 1)
    second, third = send(held, *make()), send(held, *make())
    wait_for(lambda: metric(held, 'segserve_queue_length{model="bands"}') == 2)
    second.close()
    wait_for(lambda: metric(held, 'segserve_queue_length{model="bands"}') == 1)
    wait_for(lambda: metric(held, 'segserve_requests_total{code="cancelled",model="bands"}') == 1)
    held.engine.hold.set()
    for connection in (first, third):
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()
    assert held.engine.batch_sizes == [1, 1]


def test_tiles_that_have_not_begun_leave_with_their_client(held: Served) -> None:
    image = np.ascontiguousarray(bands(*TILES))
    connection = send(held, "/v2/models/bands/segment", encode(image))
    in_flight = held.server.settings.max_views_in_flight
    wait_for(lambda: metric(held, 'segserve_queue_length{model="bands"}') == in_flight - 1)
    connection.close()
    wait_for(lambda: metric(held, 'segserve_queue_length{model="bands"}') == 0)
    wait_for(lambda: metric(held, "segserve_inflight_requests") == 0)
    held.engine.hold.set()
    answer = httpx.post(
        f"http://{held.http}/v2/models/bands/segment", content=encode(bands(*SHAPE))
    )
    assert answer.status_code == 200
    # The tile that was being inferred, and the next client's image.
    assert held.engine.batch_sizes == [1, 1]


def test_a_connection_that_is_kept_answers_one_request_after_the_other(held: Served) -> None:
    held.engine.hold.set()
    path, image = segment_request()
    with httpx.Client(base_url=f"http://{held.http}") as client:
        for _ in range(5):
            assert client.post(path, content=image).status_code == 200
    assert metric(held, 'segserve_requests_total{code="ok",model="bands"}') == 5
