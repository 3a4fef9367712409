"""gRPC, asked by the generated stub and by tritonclient."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2 as pb_health
from PIL import Image
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.errors import ServiceNotFound
from serving.grpc.health import HealthServicer
from tests.support.band_model import CLASSES, Served, band_labels, bands, encode, png_header

SIZE = (100, 160)
JPEG = encode(bands(*SIZE), "JPEG")


def request(data: bytes, format: str = "raw", model: str = "bands") -> pb.SegmentRequest:
    return pb.SegmentRequest(model=model, image=data, format=format)


@pytest.fixture
def stub(served: Served) -> Iterator[segserve_pb2_grpc.SegmenterStub]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(served.grpc, options) as channel:
        yield segserve_pb2_grpc.SegmenterStub(channel)


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.grpc) as client:
        yield client


def test_segment_answers_in_the_photos_size(stub: segserve_pb2_grpc.SegmenterStub) -> None:
    answer = stub.Segment(request(encode(bands(*SIZE)), format=""))
    assert (answer.image_height, answer.image_width) == SIZE
    assert (answer.mask_height, answer.mask_width) == SIZE
    assert (answer.model, answer.version, answer.media_type) == ("bands", 1, "image/png")
    labels = np.asarray(Image.open(io.BytesIO(answer.body)))
    assert (labels == band_labels(*SIZE)).mean() > 0.95
    assert set(answer.stage_seconds) == {
        "decode", "preprocess", "queue", "infer", "restore", "encode",
    }  # fmt: skip


def test_options_mean_what_they_mean_over_http(stub: segserve_pb2_grpc.SegmenterStub) -> None:
    small = stub.Segment(
        pb.SegmentRequest(
            model="bands", image=encode(bands(*SIZE)), format="raw", size=pb.SIZE_MODEL,
            smooth=False, classes=["band1", "3"],
        )
    )  # fmt: skip
    assert (small.mask_height, small.mask_width) == (32, 48)
    assert set(small.body) == {1, 3, 255}


def test_answers_over_four_megabytes_arrive(stub: segserve_pb2_grpc.SegmenterStub) -> None:
    photo = bands(2200, 2000)
    answer = stub.Segment(request(encode(photo)))
    assert len(answer.body) == 2200 * 2000
    assert (np.frombuffer(answer.body, np.uint8).reshape(2200, 2000)[:, 0] == 0).all()


def test_requests_over_four_megabytes_arrive(stub: segserve_pb2_grpc.SegmenterStub) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (1300, 1300, 3), np.uint8)
    data = encode(noise)
    assert len(data) > 4 << 20
    assert len(stub.Segment(request(data)).body) == 1300 * 1300


def test_describe_tells_classes_and_sizes(stub: segserve_pb2_grpc.SegmenterStub) -> None:
    answer = stub.Describe(pb.DescribeRequest(model="bands"))
    assert tuple(item.name for item in answer.classes) == CLASSES
    assert answer.classes[1].color == 0x800000
    assert (answer.height, answer.width, answer.ignore_label) == (32, 48, 255)
    assert answer.has_logits
    assert "overlay" in answer.formats


@pytest.mark.parametrize(
    ("bad", "code", "text"),
    [
        (request(b""), grpc.StatusCode.INVALID_ARGUMENT, "empty"),
        (request(b"no image"), grpc.StatusCode.INVALID_ARGUMENT, "JPEG"),
        (request(JPEG[: len(JPEG) // 2]), grpc.StatusCode.INVALID_ARGUMENT, "truncated"),
        (
            request(png_header(30000, 30000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "max_image_megapixels",
        ),
        (request(encode(bands(*SIZE), "GIF")), grpc.StatusCode.INVALID_ARGUMENT, "JPEG"),
        (request(encode(bands(*SIZE)), model="nope"), grpc.StatusCode.NOT_FOUND, "bands"),
        (request(b"x", format="tiff"), grpc.StatusCode.INVALID_ARGUMENT, "overlay"),
    ],
    ids=["empty", "text", "truncated", "30000x30000", "gif", "unknown model", "unknown format"],
)
def test_errors_have_the_right_code_and_the_server_goes_on(
    stub: segserve_pb2_grpc.SegmenterStub,
    bad: pb.SegmentRequest,
    code: grpc.StatusCode,
    text: str,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(bad)
    assert caught.value.code() == code
    assert text in caught.value.details()
    assert stub.Segment(request(encode(bands(*SIZE)))).body


def test_a_grpc_deadline_ends_the_wait(
    stub: segserve_pb2_grpc.SegmenterStub, served: Served
) -> None:
    served.engine.hold.clear()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Segment(request(encode(bands(*SIZE))), timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        served.engine.hold.set()
    assert stub.Segment(request(encode(bands(*SIZE)))).body


def test_tritonclient_sends_pixels_and_encoded_images(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bands")
    assert not client.is_model_ready("nope")
    pixels = triton.InferInput("image", [1, 32, 48, 3], "UINT8")
    pixels.set_data_from_numpy(bands(32, 48)[None])
    result = client.infer("bands", [pixels], request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("mask")[0], band_labels(32, 48))
    assert result.as_numpy("logits").shape == (1, 8, 32, 48)
    assert result.get_response().id == "seven"
    files = triton.InferInput("image", [1], "BYTES")
    files.set_data_from_numpy(np.array([encode(bands(64, 96))], object))
    outputs = [triton.InferRequestedOutput(name) for name in ("png", "mask")]
    result = client.infer("bands", [files], outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("mask")[0], band_labels(32, 48))
    picture = np.asarray(Image.open(io.BytesIO(result.as_numpy("png")[0])))
    np.testing.assert_array_equal(picture, band_labels(64, 96))


def test_tritonclient_reads_metadata_and_config(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("bands")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("mask", "UINT8", [-1, 32, 48]),
        ("confidence", "UINT8", [-1, 32, 48]),
        ("logits", "FP32", [-1, 8, 32, 48]),
    ]
    assert client.get_model_config("bands").config.max_batch_size == 4
    assert client.get_server_metadata().name == "segserve"


def test_tritonclient_gets_clear_errors(client: triton.InferenceServerClient) -> None:
    wrong = triton.InferInput("image", [1, 4, 4, 3], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"\[n,32,48,3\]") as caught:
        client.infer("bands", [wrong])
    assert "INVALID_ARGUMENT" in caught.value.status()
    with pytest.raises(triton.InferenceServerException, match="unknown model") as caught:
        client.get_model_metadata("nope")
    assert "NOT_FOUND" in caught.value.status()


async def test_health_is_not_serving_while_the_server_stops() -> None:
    """Whatever else says that it is ready: clients are to go elsewhere."""
    stopping = asyncio.Event()
    ready = True
    health = HealthServicer(("one",), lambda: ready, stopping)
    statuses = pb_health.HealthCheckResponse

    async def check(service: str) -> int:
        return (await health.Check(pb_health.HealthCheckRequest(service=service), None)).status

    assert [await check(name) for name in ("", "one")] == [statuses.SERVING] * 2
    ready = False
    assert await check("one") == statuses.NOT_SERVING
    ready = True
    watch = health.Watch(pb_health.HealthCheckRequest(), None)
    assert (await anext(watch)).status == statuses.SERVING
    stopping.set()
    assert [await check(name) for name in ("", "one")] == [statuses.NOT_SERVING] * 2
    # Who watches is told, and then the call ends.
    assert [answer.status async for answer in watch] == [statuses.NOT_SERVING]
    with pytest.raises(ServiceNotFound, match="'two'; known: one"):
        await check("two")
    watch = health.Watch(pb_health.HealthCheckRequest(service="two"), None)
    assert [answer.status async for answer in watch] == [statuses.SERVICE_UNKNOWN]
