"""Images and answers beyond gRPC's default of 4 MB, both ways."""

from __future__ import annotations

import io

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from segserve_client import Client
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

from tests.support.band_model import Served, encode

DEFAULT_LIMIT = 4 << 20
SIZE = (2000, 2500)
# Noise in patches: PNG cannot make it small, and every class occurs.
PIXELS = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)
PIXELS[..., 0] = np.random.default_rng(4).integers(0, 256, (20, 25)).repeat(100, 0).repeat(100, 1)
PHOTO = encode(PIXELS, "BMP")
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def check(format: str, body: bytes, labels: np.ndarray) -> None:
    assert len(body) > DEFAULT_LIMIT
    if format == "raw":
        np.testing.assert_array_equal(np.frombuffer(body, np.uint8).reshape(SIZE), labels)
    elif format == "npy":
        np.testing.assert_array_equal(np.load(io.BytesIO(body)), labels)
    else:
        assert Image.open(io.BytesIO(body)).size == (SIZE[1], SIZE[0])


@pytest.fixture(scope="module")
def labels(served: Served) -> np.ndarray:
    with Client(served.grpc, "bands") as client:
        mask = client.segment(PHOTO).mask
    assert set(np.unique(mask)) == set(range(8))
    return mask


def test_the_python_client(served: Served, labels: np.ndarray) -> None:
    assert len(PHOTO) > DEFAULT_LIMIT
    with Client(served.grpc, "bands") as client:
        files = client.encode_all(PHOTO, ("raw", "npy", "overlay"))
    for format, file in files.items():
        check(format, file.body, labels)


@pytest.mark.parametrize("format", ["raw", "npy", "overlay"])
def test_plain_stubs(served: Served, labels: np.ndarray, format: str) -> None:
    request = pb.SegmentRequest(model="bands", image=PHOTO, format=format)
    with grpc.insecure_channel(served.grpc, UNLIMITED) as channel:
        stub = SegmenterStub(channel)
        check(format, stub.Segment(request).body, labels)
        for answer in stub.SegmentStream(iter([request] * 2)):
            check(format, answer.response.body, labels)


def test_a_channel_with_the_default_limit_says_so_itself(served: Served) -> None:
    request = pb.SegmentRequest(model="bands", image=PHOTO, format="raw")
    with (
        grpc.insecure_channel(served.grpc) as channel,
        pytest.raises(grpc.RpcError, match="4194304") as caught,
    ):
        SegmenterStub(channel).Segment(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_tritonclient(served: Served, labels: np.ndarray) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (1500, 2000, 3), np.uint8)
    item = triton.InferInput("image", [4], "BYTES")
    item.set_data_from_numpy(np.array([encode(noise, "BMP")] * 4, np.object_))
    outputs = [triton.InferRequestedOutput("png")]
    with triton.InferenceServerClient(served.grpc) as client:
        pictures = client.infer("bands", [item], outputs=outputs).as_numpy("png")
    assert all(Image.open(io.BytesIO(picture)).size == (2000, 1500) for picture in pictures)


def test_a_message_above_the_servers_own_limit_is_refused(served: Served) -> None:
    limit = served.server.settings.max_request_bytes
    request = pb.SegmentRequest(model="bands", image=bytes(limit + 1))
    with (
        grpc.insecure_channel(served.grpc, UNLIMITED) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        SegmenterStub(channel).Segment(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "max_request_bytes" in caught.value.details()
