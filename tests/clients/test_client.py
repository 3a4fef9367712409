"""The Python client against a real gRPC server on a loopback port."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image
from segserve_client import Client, Form, Result, SegserveError, Tls
from segserve_client.errors import REASON_KEY
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from segserve_client.result import decode_map

from serving.formats import png
from serving.palette import plte

COLORS = ((128, 64, 128), (244, 35, 232), (70, 70, 70))
NAMES = ("road", "sidewalk", "building")


class RedSegmenter(segserve_pb2_grpc.SegmenterServicer):
    """Pixel values of red are the class ids; keeps the requests it gets."""

    def __init__(self) -> None:
        self.segment_requests: list[pb.SegmentRequest] = []
        self.describe_requests: list[pb.DescribeRequest] = []
        self.delay_s = 0.0
        self.stream_ended = threading.Event()
        self.metadata: dict[str, str] = {}

    def SegmentStream(self, requests, context):  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        context.add_callback(self.stream_ended.set)
        for request in requests:
            frame = pb.SegmentStreamResponse()
            if request.image == b"refused":
                frame.error.code, frame.error.message = "invalid_image", "no image"
            else:
                frame.response.CopyFrom(self.Segment(request, context))
            yield frame

    def Segment(self, request, context):  # noqa: N802
        self.segment_requests.append(request)
        time.sleep(self.delay_s)
        if request.model != "icnet":
            context.set_trailing_metadata(((REASON_KEY, "model_not_found"),))
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}; known: icnet")
        labels = np.asarray(Image.open(io.BytesIO(request.image)).convert("RGB"))[..., 0]
        encoded = {
            "png": lambda: png.indexed(np.ascontiguousarray(labels), plte(COLORS, 255)),
            "confidence": lambda: png.gray(255 - labels),
            "stats": lambda: json.dumps({"confidence": request.confidence}).encode(),
            "raw": labels.tobytes,
        }
        formats = request.format.split(",")
        files = [pb.Part(name=format, body=encoded[format]()) for format in formats]
        return pb.SegmentResponse(
            body=files[0].body if len(files) == 1 else b"",
            parts=files if len(files) > 1 else (),
            model=request.model,
            version=request.version or 3,
            image_height=labels.shape[0],
            image_width=labels.shape[1],
            mask_height=labels.shape[0],
            mask_width=labels.shape[1],
            stage_seconds={"infer": 0.25},
        )

    def Describe(self, request, context):  # noqa: N802
        self.describe_requests.append(request)
        time.sleep(self.delay_s)
        return pb.DescribeResponse(
            model=request.model,
            version=request.version or 3,
            classes=[
                pb.Class(id=k, name=name, color=int.from_bytes(bytes(color), "big"))
                for k, (name, color) in enumerate(zip(NAMES, COLORS, strict=True))
            ],
            ignore_label=255,
            height=512,
            width=1024,
            has_logits=True,
            formats=["png", "stats"],
        )


@pytest.fixture
def servicer():
    return RedSegmenter()


@pytest.fixture
def health():
    """Answers of ServerReady, or status codes, one after the other; the last one stays."""
    return [b"\x08\x01"]


@pytest.fixture
def address(servicer, health):
    def ready(request, context):
        servicer.metadata = dict(context.invocation_metadata())
        answer = health.pop(0) if len(health) > 1 else health[0]
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "as told")
        return answer

    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, options=(("grpc.max_receive_message_length", -1),))
        segserve_pb2_grpc.add_SegmenterServicer_to_server(servicer, server)
        handler = grpc.unary_unary_rpc_method_handler(ready)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "inference.GRPCInferenceService", {"ServerReady": handler}
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.fixture
def unused_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        # Bound, it is nobody else's; nobody listens.
        yield f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def client(address):
    with Client(address, model="icnet") as client:
        yield client


@pytest.fixture
def image():
    """Class ids and one ignored pixel in red, noise in the other channels."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image[..., 0] = rng.integers(0, 3, (5, 7))
    image[0, 0, 0] = 255
    return image


def test_an_array_arrives_without_loss(client, image):
    result = client.segment(image)
    assert isinstance(result, Result)
    assert result.mask.dtype == np.uint8
    assert np.array_equal(result.mask, image[..., 0])
    assert (result.classes, result.palette) == (NAMES, COLORS)
    assert (result.model, result.version, result.image_size) == ("icnet", 3, (5, 7))
    assert result.timings == {"infer": 0.25}
    assert result.confidence is None


def test_a_gray_array_a_path_and_bytes_are_taken_too(client, image, servicer, tmp_path):
    gray = np.ascontiguousarray(image[..., 0])
    path = tmp_path / "street.png"
    Image.fromarray(image).save(path)
    for source in (gray, path, str(path), path.read_bytes()):
        assert np.array_equal(client.segment(source).mask, gray)
    assert servicer.segment_requests[-1].image == path.read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), "u1")],
)
def test_other_arrays_are_refused_here(client, wrong):
    with pytest.raises(ValueError, match=r"uint8 \[H,W,3\]"):
        client.segment(wrong)


def test_options_reach_the_server(client, image, servicer):
    client.segment(image, version=2, size="model", smooth=False, classes=("road", 2))
    client.segment(image)
    asked, plain = servicer.segment_requests
    assert (asked.version, asked.size, asked.smooth) == (2, pb.SIZE_MODEL, False)
    assert asked.HasField("smooth")
    assert list(asked.classes) == ["road", "2"]
    assert (plain.version, plain.format) == (0, "png")
    assert not plain.HasField("smooth")


def test_wrong_options_are_refused_here(client, image):
    with pytest.raises(ValueError, match="expected original or model"):
        client.segment(image, size="huge")
    with pytest.raises(ValueError, match=r"\('road',\)"):
        client.segment(image, classes="road")


def test_names_and_colours_are_asked_for_once_a_version(client, image, servicer):
    for version in (None, 3, None, 4):
        client.segment(image, version=version)
    assert [request.version for request in servicer.describe_requests] == [3, 4]


def test_confidence_comes_with_the_mask(client, image, servicer):
    result = client.segment(image, confidence=True)
    assert np.array_equal(result.mask, image[..., 0])
    assert np.array_equal(result.confidence, 255 - image[..., 0])
    assert [request.format for request in servicer.segment_requests] == ["png,confidence"]


def test_encode_returns_the_servers_bytes(client, image):
    assert client.encode(image, "raw") == image[..., 0].tobytes()
    assert json.loads(client.encode(image, "stats", confidence=True)) == {"confidence": True}


def test_several_files_come_from_one_request(client, image, servicer):
    files = client.encode_all(image, ("raw", "png"))
    assert list(files) == ["raw", "png"]
    assert files["raw"].body == image[..., 0].tobytes()
    assert len(servicer.segment_requests) == 1


def test_only_what_is_given_of_a_form_is_sent(client, image, servicer):
    client.encode(image, "raw")
    client.encode(image, "raw", tta=("flip", 0.5), form=Form(opacity=0.0, min_area=3))
    client.encode(image, "raw", form=Form(image="jpeg", quality=7, legend=True, tolerance=1.5))
    plain, some, others = servicer.segment_requests
    names = ("quality", "opacity", "tolerance", "min_area")
    assert not any(plain.HasField(name) for name in names)
    assert [some.HasField(name) for name in names] == [False, True, False, True]
    assert (some.opacity, some.min_area, list(some.tta)) == (0.0, 3, ["flip", "0.5"])
    assert (others.image_format, others.quality, others.legend) == ("jpeg", 7, True)
    assert others.tolerance == 1.5


def test_describe(client):
    found = client.describe("pspnet", 7)
    assert (found.model, found.version, found.size) == ("pspnet", 7, (512, 1024))
    assert (found.classes, found.palette) == (NAMES, COLORS)
    assert found.has_logits
    assert found.formats == ("png", "stats")


def test_colours_and_the_saved_file_are_the_servers(client, image, tmp_path):
    result = client.segment(image)
    result.save(tmp_path / "mask.png")
    saved = Image.open(tmp_path / "mask.png")
    served = Image.open(io.BytesIO(client.encode(image, "png")))
    assert saved.mode == "P"
    assert np.array_equal(np.asarray(saved), result.mask)
    assert np.array_equal(np.asarray(saved.convert("RGB")), np.asarray(served.convert("RGB")))
    assert np.array_equal(result.colored(), np.asarray(served.convert("RGB")))


def test_the_ignored_label_has_its_colour_wherever_it_is():
    mask = np.array([[0, 3, 7], [1, 9, 2]], np.uint8)
    result = Result(mask, NAMES, COLORS, {}, "icnet", 1, (2, 3), ignore_label=7)
    colors = result.colored()
    assert colors.shape == (2, 3, 3)
    assert [tuple(c) for c in colors[0]] == [COLORS[0], (0, 0, 0), (224, 224, 192)]
    assert [tuple(c) for c in colors[1]] == [COLORS[1], (0, 0, 0), COLORS[2]]


@pytest.mark.parametrize("ignore_label", [-1, 0, 2, 3, 44, 255, 256, 300])
def test_colours_are_the_servers_for_every_ignored_label(ignore_label, tmp_path):
    every = np.arange(256, dtype=np.uint8).reshape(8, 32)
    result = Result(every, NAMES, COLORS, {}, "icnet", 1, (8, 32), ignore_label)
    expected = np.frombuffer(plte(COLORS, ignore_label), np.uint8).reshape(8, 32, 3)
    assert np.array_equal(result.colored(), expected)
    result.save(tmp_path / "mask")
    saved = Image.open(tmp_path / "mask")
    assert np.array_equal(np.asarray(saved), every)
    assert np.array_equal(np.asarray(saved.convert("RGB")), expected)


def test_a_label_map_is_an_indexed_or_gray_file(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    with pytest.raises(ValueError, match="of mode RGB"):
        decode_map(buffer.getvalue())
    gray = io.BytesIO()
    Image.fromarray(image[..., 0]).save(gray, "PNG")
    assert np.array_equal(decode_map(gray.getvalue()), image[..., 0])
    damaged = bytearray(gray.getvalue())
    damaged[20] ^= 255
    for broken in (b"no image", bytes(damaged), gray.getvalue()[:40]):
        with pytest.raises(OSError, match=r"PNG|truncated|file"):
            decode_map(broken)


def test_more_than_four_megabytes_go_through(client):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    assert len(client.encode(noise, "raw")) == 1500 * 1500
    assert np.array_equal(client.segment(noise[:, :, [0, 0, 0]]).mask, noise[..., 0])


def test_the_servers_error_keeps_code_text_and_reason(client, image):
    with pytest.raises(SegserveError, match="no model 'unet'; known: icnet") as caught:
        client.segment(image, model="unet")
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "model_not_found")


def test_without_a_server_the_error_names_address_and_remedy(image, unused_address):
    with Client(unused_address, model="icnet") as client:
        with pytest.raises(SegserveError, match=f"{unused_address}.*segserve serve") as caught:
            client.segment(image)
        assert caught.value.code == "UNAVAILABLE"
        for call in (client.describe, lambda: list(client.segment_stream([image]))):
            with pytest.raises(SegserveError, match=f"{unused_address}.*segserve serve"):
                call()
        with pytest.raises(SegserveError, match=r"does not answer after 0\.3 s"):
            client.wait_until_ready(0.3)


def test_a_slow_answer_names_the_limit(address, image, servicer):
    servicer.delay_s = 0.5
    with (
        Client(address, model="icnet", timeout_s=0.1) as client,
        pytest.raises(SegserveError, match=r"within 0\.1 s") as caught,
    ):
        client.segment(image)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_slow_description_names_the_limit(address, servicer):
    servicer.delay_s = 0.5
    with (
        Client(address, model="icnet", timeout_s=0.1) as client,
        pytest.raises(SegserveError, match=rf"{address} within 0\.1 s; raise timeout_s"),
    ):
        client.describe()


def test_waiting_ends_when_the_models_are_loaded(client, health):
    health[:] = [b"", b"", b"\x08\x01"]
    client.wait_until_ready(60)
    assert health == [b"\x08\x01"]
    health[:] = [b""]
    with pytest.raises(SegserveError, match="is still loading") as caught:
        client.wait_until_ready(1.0)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_proxy_that_has_no_server_yet_is_asked_again(client, health):
    health[:] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, b"\x08\x01"]
    client.wait_until_ready(60)
    assert health == [b"\x08\x01"]


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "UNIMPLEMENTED", "PERMISSION_DENIED"])
def test_what_waiting_does_not_mend_is_an_error_at_once(client, health, code):
    health[:] = [grpc.StatusCode[code]]
    with pytest.raises(SegserveError, match="as told") as caught:
        client.wait_until_ready(600)
    assert caught.value.code == code


def test_a_server_that_starts_later_is_found(servicer, image):
    """While nobody listens, and once somebody does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[grpc.Server] = []

    def start() -> None:
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "inference.GRPCInferenceService", {"ServerReady": handler}
                ),
            )
        )
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        server.start()
        started.append(server)

    timer = threading.Timer(0.7, start)
    timer.start()
    try:
        with Client(f"127.0.0.1:{port}", model="icnet") as client:
            client.wait_until_ready(60)
            assert started, "ready before there was a server"
    finally:
        timer.join()
        for server in started:
            server.stop(None).wait()


@pytest.mark.parametrize("tls", [None, Tls()])
def test_connecting_is_tried_again_every_two_seconds(monkeypatch, tls):
    """gRPC's own pauses grow to two minutes; and messages may have any size."""
    given: dict[str, int] = {}
    name = "insecure_channel" if tls is None else "secure_channel"
    opened = getattr(grpc, name)

    def watch(*arguments, options):
        given.update(options)
        return opened(*arguments, options=options)

    monkeypatch.setattr(grpc, name, watch)
    Client("127.0.0.1:1", tls=tls).close()
    assert 50 <= given["grpc.initial_reconnect_backoff_ms"] <= 500
    assert 500 <= given["grpc.max_reconnect_backoff_ms"] <= 5000
    assert given["grpc.max_send_message_length"] == given["grpc.max_receive_message_length"] == -1


def test_every_call_carries_the_key(address, servicer, image):
    """Also the question whether the server is ready: a gateway in front may ask for it."""
    with Client(address, model="icnet", api_key="secret") as client:
        client.wait_until_ready(30)
        assert servicer.metadata["authorization"] == "Bearer secret"
        servicer.metadata = {}
        list(client.segment_stream([image]))
        assert servicer.metadata["authorization"] == "Bearer secret"


def test_a_stream_that_is_left_ends_at_the_server(client, servicer, image):
    """While the client lives on, and whoever else still refers to the call."""
    calls, open_stream = [], client._stub.SegmentStream

    def keep(*arguments, **options):
        calls.append(open_stream(*arguments, **options))
        return calls[-1]

    client._stub.SegmentStream = keep

    def endless():
        while not servicer.stream_ended.wait(0.01):
            yield image

    answers = client.segment_stream(endless())
    for _ in range(2):
        assert isinstance(next(answers), Result)
    assert not servicer.stream_ended.is_set()
    answers.close()
    assert servicer.stream_ended.wait(20)
    assert client.segment(image).model == "icnet"


def test_a_refused_frame_is_in_its_place(client, image):
    first, refused, last = client.segment_stream([image, b"refused", image])
    assert isinstance(first, Result)
    assert isinstance(last, Result)
    assert isinstance(refused, SegserveError)
    assert (str(refused), refused.code, refused.reason) == ("no image", "", "invalid_image")


def test_waiting_has_one_deadline_however_often_it_asks(client, health, monkeypatch):
    health[:] = [b"", b"", b"", b"\x08\x01"]
    left, open_call = [], client._channel.unary_unary

    def watched(method):
        call = open_call(method)

        def ask(*arguments, timeout, **options):
            left.append(timeout)
            return call(*arguments, timeout=timeout, **options)

        return ask

    monkeypatch.setattr(client._channel, "unary_unary", watched)
    client.wait_until_ready(60)
    assert len(left) == 4
    assert left[0] <= 60
    # A tenth of a second lies between two questions.
    assert (np.diff(left) < -0.05).all()


def test_a_model_must_be_named(address, image):
    with Client(address) as client:
        with pytest.raises(ValueError, match="no model is given"):
            client.segment(image)
        assert client.segment(image, model="icnet").model == "icnet"


def test_an_http_address_is_refused():
    with pytest.raises(ValueError, match="gRPC address"):
        Client("http://localhost:8000")
