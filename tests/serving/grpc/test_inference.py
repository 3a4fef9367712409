"""The Open Inference Protocol over gRPC, message by message; health and reflection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, Served, band_labels, bands, free_ports, serve_fake
from tests.support.waiting import wait_for

PIXELS = bands(32, 48)
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> oip_grpc.GRPCInferenceServiceStub:
    return oip_grpc.GRPCInferenceServiceStub(channel)


def request(**parameters: object) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="bands", id="q")
    message.inputs.add(name="image", datatype="UINT8", shape=(1, 32, 48, 3))
    message.outputs.add(name="mask")
    message.raw_input_contents.append(PIXELS.tobytes())
    for name, value in parameters.items():
        set_parameter(message.parameters[name], value)
    return message


def set_parameter(parameter: oip.InferParameter, value: object) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(parameter, kinds[type(value)], value)


def code_of(stub: oip_grpc.GRPCInferenceServiceStub, message: oip.ModelInferRequest) -> tuple:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message)
    return caught.value.code(), caught.value.details()


def test_contents_may_be_typed(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    message = request()
    del message.raw_input_contents[:]
    message.inputs[0].contents.uint_contents.extend(PIXELS.reshape(-1).tolist())
    answer = stub.ModelInfer(message)
    assert answer.raw_output_contents[0] == band_labels(32, 48).tobytes()
    message.inputs[0].contents.uint_contents[0] = 256
    assert "above 255" in code_of(stub, message)[1]
    message.inputs[0].contents.int_contents.append(1)
    assert "uint_contents, not int_contents" in code_of(stub, message)[1]


def test_contents_and_raw_contents_exclude_each_other(
    stub: oip_grpc.GRPCInferenceServiceStub,
) -> None:
    message = request()
    message.inputs[0].contents.uint_contents.append(1)
    assert "beside raw_input_contents" in code_of(stub, message)[1]
    message = request()
    message.raw_input_contents.append(b"more")
    assert "raw_input_contents holds 2" in code_of(stub, message)[1]


@pytest.mark.parametrize(
    ("parameters", "code", "text"),
    [
        ({"sequence_id": 7}, grpc.StatusCode.UNIMPLEMENTED, "sequence_id"),
        ({"sequence_id": "seven"}, grpc.StatusCode.UNIMPLEMENTED, "sequence_id"),
        ({"sequence_end": True}, grpc.StatusCode.UNIMPLEMENTED, "sequence_end"),
        ({"timeout": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "timeout"),
        ({"timeout": -5}, grpc.StatusCode.INVALID_ARGUMENT, "timeout"),
        ({"priority": 0.5}, grpc.StatusCode.INVALID_ARGUMENT, "priority"),
        ({"triton_x": 1}, grpc.StatusCode.INVALID_ARGUMENT, "triton_x"),
    ],
)
def test_parameters_that_mean_nothing_here_are_named(
    stub: oip_grpc.GRPCInferenceServiceStub,
    parameters: dict[str, object],
    code: grpc.StatusCode,
    text: str,
) -> None:
    found, details = code_of(stub, request(**parameters))
    assert found == code
    assert text in details


def test_a_timeout_passes_while_the_engine_is_busy(
    stub: oip_grpc.GRPCInferenceServiceStub, served: Served
) -> None:
    before = len(served.engine.batch_sizes)
    served.engine.hold.clear()
    try:
        first = stub.ModelInfer.future(request())
        # Only what waits can time out: a free engine would take the second at once.
        wait_for(lambda: len(served.engine.batch_sizes) > before)
        found, details = code_of(stub, request(timeout=1))
    finally:
        served.engine.hold.set()
    assert found == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline" in details
    assert first.result(60).id == "q"


def test_the_clients_own_parameters_have_no_effect(
    stub: oip_grpc.GRPCInferenceServiceStub,
) -> None:
    own = {"mine": "x", "half": 0.5, "priority": 3, "triton_enable_empty_final_response": True}
    answer = stub.ModelInfer(request(**own))
    assert answer.id == "q"
    assert not answer.parameters


def test_outputs_come_once_in_the_models_order(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    message = request()
    for name in ("logits", "mask"):
        message.outputs.add(name=name)
    answer = stub.ModelInfer(message)
    assert [output.name for output in answer.outputs] == ["mask", "logits"]
    assert [len(raw) for raw in answer.raw_output_contents] == [32 * 48, 8 * 32 * 48 * 4]


def test_classification_is_refused_by_name(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    message = request()
    set_parameter(message.outputs[0].parameters["classification"], 2)
    code, details = code_of(stub, message)
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert "classification" in details


@pytest.mark.parametrize(
    ("call", "message", "text"),
    [
        ("TraceSetting", oip.TraceSettingRequest(), "trace settings"),
        ("LogSettings", oip.LogSettingsRequest(), "log settings"),
        ("CudaSharedMemoryRegister", oip.CudaSharedMemoryRegisterRequest(name="r"), "CUDA"),
        ("RepositoryIndex", oip.RepositoryIndexRequest(repository_name="x"), "repository_name"),
        ("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="bands"),
         "enable_model_control"),
        ("SystemSharedMemoryRegister", oip.SystemSharedMemoryRegisterRequest(name="r", key="/k",
         byte_size=1), "enable_shared_memory"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_unimplemented(
    stub: oip_grpc.GRPCInferenceServiceStub, call: str, message: object, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, call)(message)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert text in caught.value.details()
    assert ("segserve-code", "unsupported") in [tuple(m) for m in caught.value.trailing_metadata()]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(served: Served, algorithm: str) -> None:
    with triton.InferenceServerClient(served.grpc) as client:
        item = triton.InferInput("image", [1, 32, 48, 3], "UINT8")
        item.set_data_from_numpy(PIXELS[None])
        result = client.infer("bands", [item], compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("mask")[0], band_labels(32, 48))


def test_a_compressed_message_may_not_unpack_beyond_the_limit(
    stub: oip_grpc.GRPCInferenceServiceStub, served: Served
) -> None:
    message = request()
    message.raw_input_contents[0] = bytes(served.server.settings.max_request_bytes + 1)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "max_request_bytes" in caught.value.details()


def test_reflection_lists_and_describes_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest
    listed, described = stub.ServerReflectionInfo(
        iter([asked(list_services=""), asked(file_containing_symbol="segserve.v1.Segmenter")])
    )
    assert [service.name for service in listed.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "segserve.v1.Segmenter",
    ]
    (raw,) = described.file_descriptor_response.file_descriptor_proto
    methods = descriptor_pb2.FileDescriptorProto.FromString(raw).service[0].method
    assert {"Segment", "SegmentStream", "Describe"} <= {method.name for method in methods}


def test_health_knows_the_server_and_its_services(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "segserve.v1.Segmenter", "inference.GRPCInferenceService"):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(asked).status == SERVING
    unknown = health_pb2.HealthCheckRequest(service="nope")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(unknown)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watched = stub.Watch(unknown)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched.cancel()


def test_health_follows_readiness_and_streams_do_not_delay_the_end(repository: Path) -> None:
    settings = free_ports(repository).model_copy(update={"drain_seconds": 1.0})
    thread = ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE)))
    with ExitStack() as running:
        server = running.enter_context(thread)
        channel = grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}")
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING

        def never() -> Iterator[oip.ModelInferRequest]:
            yield request()
            time.sleep(20)

        stream = oip_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(never())
        assert next(stream).infer_response.id == "q"
        server.registry.ready = False
        assert next(watched).status == NOT_SERVING
        server.registry.ready = True
        assert next(watched).status == SERVING
        began = time.monotonic()
        running.close()
        # stop_timeout_s, which streams would otherwise use up, is 30.
        assert time.monotonic() - began < 15
        assert [message.status for message in watched] == [NOT_SERVING]
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "stopping" in caught.value.details()
        channel.close()
