"""gRPC messages and `segment` options that nobody meant: an error that says so, never INTERNAL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import quote

import grpc
import httpx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from serving.grpc.server import HEALTH, SERVICES
from tests.support.band_model import Served, bands, encode

DATA = encode(bands(32, 48))
PIXELS = bands(32, 48).tobytes()
# What a caller may get for a request that is wrong, or that is right.
ANSWERS = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
WORDS = [
    "bands", "image", "mask", "logits", "png", "1", "-1", "UINT8", "BYTES", "FP32", "", "flip",
    "0.75", "1e9", "nan", "raw,stats", "overlay", "polygons", "rle", "jpeg", "band2", "timeout",
    "priority", "binary_data", "shared_memory_region", "é\0", "x" * 300,
]  # fmt: skip
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def scalars(field: FieldDescriptor) -> st.SearchStrategy[object]:
    """Values that a field's type allows."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.sampled_from([DATA, PIXELS, b"", DATA[:50]]), st.binary(max_size=40))
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.one_of(st.sampled_from(WORDS), st.text(max_size=6))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.floats(width=32)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 5)
    low, high = RANGES[field.cpp_type]
    return st.one_of(st.sampled_from([0, 1, 2, 3, 32, 48, low, high]), st.integers(low, high))


def spoil(draw: st.DrawFn, message: Message, depth: int = 0) -> None:
    """Clears, sets or adds to a few fields of a message and of those inside it."""
    fields = list(message.DESCRIPTOR.fields)
    for field in draw(st.lists(st.sampled_from(fields), max_size=3)) if fields else []:
        kind = draw(st.integers(0, 3))
        repeated = field.is_repeated
        if kind == 0:
            message.ClearField(field.name)
        elif field.message_type is None:
            value = draw(scalars(field))
            if repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
        elif depth < 3:
            inner = getattr(message, field.name)
            if field.message_type.GetOptions().map_entry:
                key, value = field.message_type.fields
                inside = draw(scalars(key))
                if value.message_type is not None:
                    spoil(draw, inner[inside], depth + 1)
            elif repeated:
                spoil(draw, inner.add() if kind == 1 or not inner else inner[0], depth + 1)
            else:
                inner.SetInParent()
                spoil(draw, inner, depth + 1)


@st.composite
def spoiled(draw: st.DrawFn, make: Callable[[], Message]) -> Message:
    message = make()
    for _ in range(draw(st.integers(1, 3))):
        spoil(draw, message)
    return message


def good_segment() -> pb.SegmentRequest:
    return pb.SegmentRequest(model="bands", image=DATA, format="raw")


def good_infer() -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=[1, 32, 48, 3]
    )
    wanted = oip.ModelInferRequest.InferRequestedOutputTensor(name="mask")
    return oip.ModelInferRequest(
        model_name="bands", inputs=[tensor], outputs=[wanted], raw_input_contents=[PIXELS]
    )


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.grpc) as opened:
        yield opened


def check(call: Callable[[], object]) -> None:
    try:
        call()
    except grpc.RpcError as error:
        code, text = error.code(), error.details()
    else:
        return
    assert code in ANSWERS, text
    assert text


def check_alive(channel: grpc.Channel) -> None:
    stub = segserve_pb2_grpc.SegmenterStub(channel)
    assert len(stub.Segment(good_segment(), timeout=20).body) == 32 * 48


@relaxed
@given(request=spoiled(good_segment))
def test_segment(channel: grpc.Channel, request: pb.SegmentRequest) -> None:
    stub = segserve_pb2_grpc.SegmenterStub(channel)
    check(lambda: stub.Segment(request, timeout=20))
    check_alive(channel)


@relaxed
@given(requests=st.lists(spoiled(good_segment), max_size=4))
def test_segment_stream(channel: grpc.Channel, requests: list[pb.SegmentRequest]) -> None:
    """An answer a frame, whatever is in them."""
    stub = segserve_pb2_grpc.SegmenterStub(channel)
    answers = list(stub.SegmentStream(iter(requests), timeout=20))
    assert [answer.index for answer in answers] == list(range(len(requests)))
    codes = {answer.error.code for answer in answers}
    assert not codes & {"internal", "engine_failed"}


@relaxed
@given(request=spoiled(good_infer))
def test_infer(channel: grpc.Channel, request: oip.ModelInferRequest) -> None:
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    check(lambda: stub.ModelInfer(request, timeout=20))
    check_alive(channel)


@relaxed
@given(requests=st.lists(spoiled(good_infer), max_size=3))
def test_infer_stream(channel: grpc.Channel, requests: list[oip.ModelInferRequest]) -> None:
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    answers = list(stub.ModelStreamInfer(iter(requests), timeout=20))
    assert len(answers) == len(requests)


OIP = "/inference.GRPCInferenceService"
STREAMS = {
    "/segserve.v1.Segmenter/Segment": "/segserve.v1.Segmenter/SegmentStream",
    f"{OIP}/ModelInfer": f"{OIP}/ModelStreamInfer",
}
CALLS = {
    "ServerLive": oip.ServerLiveRequest,
    "ServerReady": oip.ServerReadyRequest,
    "ServerMetadata": oip.ServerMetadataRequest,
    "ModelReady": oip.ModelReadyRequest,
    "ModelMetadata": oip.ModelMetadataRequest,
    "ModelConfig": oip.ModelConfigRequest,
    "ModelStatistics": oip.ModelStatisticsRequest,
    "RepositoryIndex": oip.RepositoryIndexRequest,
    "RepositoryModelLoad": oip.RepositoryModelLoadRequest,
    "RepositoryModelUnload": oip.RepositoryModelUnloadRequest,
    "SystemSharedMemoryStatus": oip.SystemSharedMemoryStatusRequest,
    "SystemSharedMemoryRegister": oip.SystemSharedMemoryRegisterRequest,
    "SystemSharedMemoryUnregister": oip.SystemSharedMemoryUnregisterRequest,
    "CudaSharedMemoryStatus": oip.CudaSharedMemoryStatusRequest,
    "CudaSharedMemoryRegister": oip.CudaSharedMemoryRegisterRequest,
    "CudaSharedMemoryUnregister": oip.CudaSharedMemoryUnregisterRequest,
    "TraceSetting": oip.TraceSettingRequest,
    "LogSettings": oip.LogSettingsRequest,
}


@pytest.mark.parametrize("name", CALLS)
@settings(relaxed, max_examples=15)
@given(data=st.data())
def test_every_other_call(channel: grpc.Channel, name: str, data: st.DataObject) -> None:
    request = data.draw(spoiled(CALLS[name]))
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    check(lambda: getattr(stub, name)(request, timeout=20))


def test_no_call_is_left_out(served: Served) -> None:
    """Whatever the server answers to has a test here."""
    spoilt = {"inference.GRPCInferenceService": {*CALLS, "ModelInfer", "ModelStreamInfer"}}
    spoilt["segserve.v1.Segmenter"] = {"Segment", "SegmentStream", "Describe"}
    spoilt["grpc.health.v1.Health"] = {"Check", "Watch"}
    for file in (oip, pb, health_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            assert {method.name for method in service.methods} == spoilt[service.full_name]
    assert {*SERVICES, HEALTH} == set(spoilt)


@relaxed
@given(service=st.one_of(st.sampled_from([*SERVICES, *WORDS]), st.text(max_size=20)))
def test_health(channel: grpc.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    stub = health_pb2_grpc.HealthStub(channel)
    check(lambda: stub.Check(request, timeout=20))
    # It goes on until the client leaves.
    watched = stub.Watch(request, timeout=20)
    check(lambda: next(watched))
    watched.cancel()


@relaxed
@given(request=spoiled(pb.DescribeRequest))
def test_describe(channel: grpc.Channel, request: pb.DescribeRequest) -> None:
    stub = segserve_pb2_grpc.SegmenterStub(channel)
    check(lambda: stub.Describe(request, timeout=20))


@relaxed
@given(body=st.binary(max_size=200), method=st.sampled_from(list(STREAMS)))  # fmt: skip
def test_bytes_that_are_no_message(channel: grpc.Channel, body: bytes, method: str) -> None:
    check(lambda: channel.unary_unary(method)(body, timeout=20))
    check(lambda: list(channel.stream_stream(STREAMS[method])(iter([body]), timeout=20)))
    for probe in ("/grpc.health.v1.Health/Check", f"{OIP}/ServerLive"):
        check(lambda probe=probe: channel.unary_unary(probe)(body, timeout=20))
    watched = channel.unary_stream("/grpc.health.v1.Health/Watch")(body, timeout=20)
    check(lambda: next(watched))
    watched.cancel()
    check_alive(channel)


OPTIONS = [
    "format", "size", "smooth", "confidence", "classes", "tta", "image", "quality", "opacity",
    "legend", "tolerance", "min_area", "colour",
]  # fmt: skip
values = st.one_of(
    st.sampled_from([*WORDS, "true", "false", "model", "original", "0", "100", "1e400", "-0"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:
        yield client


@relaxed
@given(
    query=st.lists(st.tuples(st.sampled_from(OPTIONS), values), max_size=4),
    accept=st.one_of(st.just("*/*"), st.text("abc/*;=q.,01 ", max_size=30)),
    timeout=st.one_of(st.none(), st.sampled_from(["0", "60000", "1e999", "nan", "-1", "x"])),
    body=st.sampled_from([DATA, b"", b"--x\r\n"]),
    kind=st.sampled_from(["image/png", "multipart/form-data; boundary=x", "multipart/form-data"]),
)
def test_segment_over_http(
    http: httpx.Client,
    query: list[tuple[str, str]],
    accept: str,
    timeout: str | None,
    body: bytes,
    kind: str,
) -> None:
    headers = {"Accept": accept.strip().encode(), "Content-Type": kind}
    if timeout is not None:
        headers["X-Timeout-Ms"] = timeout
    answer = http.post("/v2/models/bands/segment", params=query, content=body, headers=headers)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        assert set(answer.json()) == {"error", "code"}


@relaxed
@given(path=st.text(max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]))
def test_any_path(http: httpx.Client, path: str, method: str) -> None:
    answer = http.request(method, "/v2/" + quote(path))
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
