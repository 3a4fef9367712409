"""Every code of an error is in one table: of the answers, the access log, the metrics, the docs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.errors import ENGINE_FAILURES, code_of_grpc, code_of_http, list_codes
from serving.imaging.geometry import Size
from serving.observability.metrics import REASONS
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import bands, encode, free_ports, serve_fake, write_model

ROOT = Path(__file__).parents[2]
PHOTO = encode(bands(32, 48))
DOCS = (ROOT / "docs" / "protocol.md").read_text()
OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text()


def test_the_documented_codes_are_the_table() -> None:
    rows = DOCS.split("## Errors", 1)[1].split("\n\n")
    table = next(block for block in rows if block.startswith("| code |"))
    documented = set()
    for row in table.splitlines()[2:]:
        documented |= set(re.findall(r"`([a-z_]+)`", row.split("|")[1]))
    assert documented == set(list_codes())


def test_the_documented_reasons_are_the_table() -> None:
    table = OBSERVABILITY.split("| reason | setting |", 1)[1].split("\n\n", 1)[0]
    documented = set()
    for row in table.splitlines()[2:]:
        documented |= set(re.findall(r"`([a-z_]+)`", row.split("|")[1]))
    assert documented == set(REASONS)
    for reason in ENGINE_FAILURES:
        assert f"`{reason}`" in OBSERVABILITY


def test_every_reason_that_the_server_counts_is_in_the_table() -> None:
    """A series that is not created at 0 hides its first increase from Prometheus."""
    counted = set()
    for path in (ROOT / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            counted |= {k.value for k in node.keywords if k.arg == "reason"}
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("reject", "rejected"):
                counted |= set(node.args[:1])
    literal = {n.value for n in counted if isinstance(n, ast.Constant) and n.value}
    assert "inflight" in literal
    assert literal <= set(REASONS)


def test_statuses_that_no_error_of_ours_made_have_codes_too() -> None:
    statuses = range(400, 600)
    assert {code_of_http(status) for status in statuses} <= set(list_codes())
    assert {code_of_grpc(code.name) for code in grpc.StatusCode} <= set(list_codes())
    assert code_of_http(404) == "not_found"
    assert code_of_http(418) == "invalid_request"
    assert code_of_http(502) == "internal"


def counts(sample: Sample) -> bool:
    """Whether it counts answers of a code, and some; the time of its creation is no count."""
    return sample.name == "segserve_requests_total" and bool(sample.value)


@pytest.fixture
def seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> set[str]:
    """The codes of the access log and of the metrics after a run of all sorts of errors."""
    repository = tmp_path / "models"
    write_model(repository)
    engine = FakeEngine(Size(32, 48), failing_runs=frozenset({0}), logits=False)
    settings = free_ports(repository).model_copy(
        update={"access_log": "json", "max_image_megapixels": 0.01, "max_request_bytes": 5000}
    )
    codes: set[str] = set()
    with ServerThread(settings, serve_fake(engine)) as server:
        # A connection whose request was refused unread is closed.
        limits = httpx.Limits(max_keepalive_connections=0)
        address = f"http://127.0.0.1:{server.ports.http}"
        with httpx.Client(base_url=address, limits=limits) as http:
            segment = "/v2/models/bands/segment"
            answers = [
                http.post(segment, content=PHOTO),  # the engine fails
                http.post(segment, content=PHOTO),
                http.post(segment, content=b"no image"),
                http.post(segment, content=b"GIF89a" + b"\0" * 100),
                http.post(segment, content=encode(bands(200, 200))),
                http.post(segment, content=b"\0" * 6000),
                http.post(segment + "?format=nope", content=PHOTO),
                http.post(segment + "?confidence=true&format=npy", content=PHOTO),
                http.post("/v2/models/nope/segment", content=PHOTO),
                http.get("/v2/models/nope"),
                http.get("/v2/models/nope/ready"),
                http.get("/v2/nowhere"),
                http.delete(segment),
                http.get("/v2/logging"),
                http.get("/v2/systemsharedmemory/region/nope/status"),
                http.post("/v2/repository/models/bands/load"),
                http.post("/v2/models/bands/infer", content=b"{"),
            ]
            for answer in answers:
                # Readiness is a body of the protocol's own, without a code.
                if answer.status_code >= 400 and "ready" not in answer.json():
                    codes.add(answer.json()["code"])
            with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
                stub = segserve_pb2_grpc.SegmenterStub(channel)
                oip = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for ask in (
                    lambda: stub.Segment(pb.SegmentRequest(model="bands", image=b"no image")),
                    lambda: stub.Segment(pb.SegmentRequest(model="nope", image=PHOTO)),
                    lambda: oip.LogSettings(service_pb2.LogSettingsRequest()),
                    lambda: oip.TraceSetting(service_pb2.TraceSettingRequest()),
                    lambda: oip.ModelInfer(service_pb2.ModelInferRequest(model_name="bands")),
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        ask()
                    assert caught.value.code() != grpc.StatusCode.UNKNOWN
            page = http.get("/metrics").text
    for family in text_string_to_metric_families(page):
        codes |= {s.labels["code"] for s in family.samples if counts(s)}
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    assert len(lines) >= len(answers)
    ready = [line for line in lines if line["path"].endswith("/nope/ready")]
    assert [line["code"] for line in ready] == ["not_ready"]
    codes |= {line["code"] for line in lines}
    return codes


def test_every_code_that_is_seen_is_in_the_table(seen: set[str]) -> None:
    assert seen <= {"ok", *list_codes()}
    assert {"ok", "engine_failed", "invalid_image", "model_not_found", "not_found", "too_large",
            "method_not_allowed", "unsupported", "not_ready"} <= seen  # fmt: skip
    assert "internal" not in seen
