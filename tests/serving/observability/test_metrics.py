"""Numbers of a real server that dashboards and alerts rely on: units, sums, series at 0."""

from __future__ import annotations

import ast
import json
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc
from tritonclient.http import InferInput, InferRequestedOutput

from serving.errors import ENGINE_FAILURES, PredictedLate, list_codes
from serving.formats import registry as mask
from serving.observability.metrics import REASONS, UNKNOWN_MODEL
from serving.observability.request_context import STAGES, Timings
from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.open_server import statistics_of

SEGMENT = "/v2/models/bands/segment"
PHOTO = encode(bands(64, 96))


def read(server: Server, name: str, **labels: str) -> float | None:
    return server.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def served(repository: Path) -> Iterator[tuple[Server, httpx.Client]]:
    engine = FakeEngine(MODEL_SIZE, delay_s=0.05)
    with (
        ServerThread(free_ports(repository), serve_fake(engine)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=60) as http,
    ):
        yield server, http


@pytest.mark.parametrize("path", [SEGMENT, "/v2/models/bands/infer"])
def test_stages_are_seconds_and_lie_within_the_request(
    served: tuple[Server, httpx.Client], path: str
) -> None:
    server, http = served
    began = time.perf_counter()
    for _ in range(4):
        if path == SEGMENT:
            answer = http.post(path, content=PHOTO)
        else:
            pixels = bands(MODEL_SIZE.height, MODEL_SIZE.width)
            image = {"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}
            answer = http.post(path, json={"inputs": [{**image, "data": pixels.ravel().tolist()}]})
        assert answer.status_code == 200
    elapsed = time.perf_counter() - began
    labels = {"model": "bands", "transport": "http", "outcome": "ok"}
    whole = read(server, "segserve_request_duration_seconds_sum", **labels)
    sums = {
        stage: read(server, "segserve_stage_duration_seconds_sum", model="bands", stage=stage)
        for stage in STAGES
    }
    assert 4 * 0.05 <= sums["infer"] <= whole
    assert sum(sums.values()) <= whole <= elapsed
    count = "segserve_stage_duration_seconds_count"
    assert read(server, count, model="bands", stage="infer") == 4


def test_server_timing_is_milliseconds_and_no_longer_than_the_request(
    served: tuple[Server, httpx.Client],
) -> None:
    _, http = served
    began = time.perf_counter()
    answer = http.post(SEGMENT, content=PHOTO)
    elapsed_ms = (time.perf_counter() - began) * 1000
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert 50.0 <= float(stages["infer"]) <= elapsed_ms
    assert sum(map(float, stages.values())) <= elapsed_ms


def test_encoding_is_output_of_the_statistics(
    served: tuple[Server, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output png over the Open Inference Protocol, made to take a time that shows."""
    server, _ = served
    plain = mask.encode

    def encode_slowly(*arguments: object) -> mask.Encoded:
        time.sleep(0.25)
        return plain(*arguments)

    monkeypatch.setattr(mask, "encode", encode_slowly)
    address = f"127.0.0.1:{server.ports.http}"
    with tritonclient.http.InferenceServerClient(address, network_timeout=60) as client:
        item = InferInput("image", [1], "BYTES")
        item.set_data_from_numpy(np.array([PHOTO], object))
        client.infer("bands", [item], outputs=[InferRequestedOutput("png")])
        (stats,) = statistics_of(client, "bands")
    spent = {name: entry["ns"] for name, entry in stats["inference_stats"].items()}
    assert spent["compute_output"] >= 0.25e9
    assert spent["compute_infer"] >= 0.05e9
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(spent[part] for part in parts) <= spent["success"]
    encoded = read(server, "segserve_stage_duration_seconds_sum", model="bands", stage="encode")
    assert encoded >= 0.25


def test_series_are_there_before_anything_happens(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_model(tmp_path, "member", family="a family")
    with ServerThread(free_ports(tmp_path), serve_fake(FakeEngine(MODEL_SIZE))) as server:
        for model in ("bands", "member", "a family", UNKNOWN_MODEL):
            for reason in REASONS:
                assert read(server, "segserve_rejected_total", model=model, reason=reason) == 0
            for code in ("ok", *list_codes()):
                assert read(server, "segserve_requests_total", model=model, code=code) == 0
            assert read(server, "segserve_reload_failures_total", model=model) == 0
        for reason in ENGINE_FAILURES:
            name = "segserve_engine_failures_total"
            assert read(server, name, model="bands", reason=reason) == 0
        assert read(server, "segserve_engine_restarts_total", model="bands") == 0
        assert read(server, "segserve_event_loop_lag_seconds") is not None
        # A name that strangers make up creates none.
        url = f"http://127.0.0.1:{server.ports.http}/v2/models/made-up/segment"
        assert httpx.post(url, content=PHOTO).status_code == 404
        assert read(server, "segserve_requests_total", model="made-up", code="ok") is None


def find_reasons(path: Path) -> set[str]:
    """Reasons that a source file gives: to errors, and to what counts them itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [word.value for word in node.keywords if word.arg == "reason"]
            if called in ("reject", "rejected", "_give_up"):
                given += node.args[:1]
            elif called == "ProtocolError":
                given += node.args[2:3]
            found |= {a.value for a in given if isinstance(a, ast.Constant)}
    return found


def test_every_reason_is_known_and_documented() -> None:
    """One that is missing is born at 1: an alert would not see the first."""
    root = Path(__file__).parents[3]
    given = set().union(*(find_reasons(path) for path in (root / "serving").rglob("*.py")))
    assert {"deadline", "header_fields", "stream_idle", "upload_timeout"} <= given
    assert given <= set(REASONS)
    text = (root / "docs" / "observability.md").read_text("utf-8")
    table = text.partition("| reason | setting |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(REASONS)


def test_a_model_that_comes_later_has_its_series_when_it_is_loaded(repository: Path) -> None:
    settings = free_ports(repository).model_copy(update={"enable_model_control": True})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        write_model(repository, "later")
        name = "segserve_engine_restarts_total"
        assert read(server, name, model="later") is None
        url = f"http://127.0.0.1:{server.ports.http}/v2/repository/models/later/load"
        assert httpx.post(url).status_code == 200
        assert read(server, name, model="later") == 0


def test_an_image_that_is_looked_into_twice_has_one_interval() -> None:
    timings = Timings()
    timings.add("decode", 0.25)
    timings.add("preprocess", 0.125)
    timings.add("decode", 0.5)
    timings.add("infer", 0.125)
    timings.add("infer", 0.125)
    stages = [interval.stage for interval in timings.intervals]
    assert stages == ["preprocess", "decode", "infer", "infer"]
    assert timings.intervals[1].seconds == timings.seconds["decode"] == 0.75


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "1"), (0.0, "1"), (0.5, "1"), (1.0, "1"), (1.2, "2"), (2.01, "3")]
)
def test_retry_after_is_never_too_early(seconds: float | None, text: str) -> None:
    assert PredictedLate("late", seconds).retry_after == text


def ask_http(path: str) -> Callable[[httpx.Client, grpc.Channel, bytes, str], None]:
    def ask(http: httpx.Client, channel: grpc.Channel, image: bytes, model: str) -> None:
        headers = {}
        if path == "infer":
            data = struct.pack("<I", len(image)) + image
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
            size = {"parameters": {"binary_data_size": len(data)}}
            head = json.dumps({"inputs": [{**tensor, **size}]}).encode()
            headers["Inference-Header-Content-Length"] = str(len(head))
            image = head + data
        answer = http.post(f"/v2/models/{model}/{path}", content=image, headers=headers)
        assert answer.status_code == 413, answer.text

    return ask


def ask_segment(http: httpx.Client, channel: grpc.Channel, image: bytes, model: str) -> None:
    stub = segserve_pb2_grpc.SegmenterStub(channel)
    with pytest.raises(grpc.RpcError, match="max_image_megapixels"):
        stub.Segment(pb.SegmentRequest(model=model, image=image), timeout=60)


def ask_segment_stream(http: httpx.Client, channel: grpc.Channel, image: bytes, model: str) -> None:
    stub = segserve_pb2_grpc.SegmenterStub(channel)
    request = pb.SegmentRequest(model=model, image=image)
    (answer,) = stub.SegmentStream(iter([request]), timeout=60)
    assert answer.error.code == "too_large"


def infer_request(image: bytes, model: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.inputs[0].contents.bytes_contents.append(image)
    return request


def ask_infer(http: httpx.Client, channel: grpc.Channel, image: bytes, model: str) -> None:
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="max_image_megapixels"):
        stub.ModelInfer(infer_request(image, model), timeout=60)


def ask_infer_stream(http: httpx.Client, channel: grpc.Channel, image: bytes, model: str) -> None:
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    (answer,) = stub.ModelStreamInfer(iter([infer_request(image, model)]), timeout=60)
    assert "max_image_megapixels" in answer.error_message


@pytest.mark.parametrize(
    "ask",
    [ask_http("segment"), ask_http("infer"), ask_segment, ask_segment_stream, ask_infer,
     ask_infer_stream],
    ids=["segment", "infer", "Segment", "SegmentStream", "ModelInfer", "ModelStreamInfer"],
)  # fmt: skip
def test_a_refusal_is_counted_once_for_its_model_however_it_is_written(
    repository: Path, ask: Callable[[httpx.Client, grpc.Channel, bytes, str], None]
) -> None:
    settings = free_ports(repository).model_copy(update={"max_image_megapixels": 0.001})
    with (
        ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=60) as http,
        grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel,
    ):
        ask(http, channel, PHOTO, "bands")
        page = server.metrics.registry.collect()
        rejected = {
            (sample.labels["model"], sample.labels["reason"]): sample.value
            for metric in page
            for sample in metric.samples
            if sample.name == "segserve_rejected_total" and sample.value
        }
    assert rejected == {("bands", "image_megapixels"): 1.0}
