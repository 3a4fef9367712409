"""Spans of a real server, collected in memory by OpenTelemetry's own exporter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.errors import InvalidSetting
from serving.observability import tracing
from serving.observability.request_context import RequestContext
from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake

DATA = encode(bands(32, 48))
SEGMENT = "/v2/models/bands/segment?format=raw"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"
STAGES = ["decode", "preprocess", "queue", "infer", "restore", "encode"]


@contextmanager
def run_traced(
    repository: Path, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine | None = None
) -> Iterator[tuple[Server, InMemorySpanExporter]]:
    """All spans are there once the server has stopped."""
    engine = engine or FakeEngine(MODEL_SIZE, delay_s=0.01)
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "open_exporter", lambda: exporter)
    settings = free_ports(repository).model_copy(update={"tracing": True})
    with ServerThread(settings, serve_fake(engine)) as server:
        yield server, exporter


def tree(exporter: InMemorySpanExporter) -> list[tuple[ReadableSpan, list[ReadableSpan]]]:
    """Each call's span with the spans below it, in order of their starts."""
    spans = exporter.get_finished_spans()
    return [
        (
            root,
            sorted(
                (s for s in spans if s.parent and s.parent.span_id == root.context.span_id),
                key=lambda s: s.start_time,
            ),
        )
        for root in spans
        if root.kind.name == "SERVER"
    ]


def test_http_spans_follow_the_clients_trace(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_traced(repository, monkeypatch) as (server, exporter):
        url = f"http://127.0.0.1:{server.ports.http}"
        answer = httpx.post(url + SEGMENT, content=DATA, headers={"traceparent": GIVEN})
        bad = httpx.post(url + SEGMENT, content=b"no image", headers={"traceparent": "nonsense"})
        httpx.get(url + "/v2/health/live")
    (good, stages), (failed, _) = tree(exporter)
    assert f"{good.context.trace_id:032x}" == TRACE
    assert f"{good.parent.span_id:016x}" == PARENT
    assert answer.headers["traceparent"] == f"00-{TRACE}-{good.context.span_id:016x}-01"
    assert good.name == "http bands"
    assert good.attributes["http.response.status_code"] == 200
    assert good.attributes["segserve.model"] == "bands"
    assert good.resource.attributes["service.name"] == "segserve"
    names = [span.name for span in stages]
    # Each once, though an image's header is read before its pixels.
    assert names == [f"segserve.{stage}" for stage in STAGES]
    assert good.attributes["http.request.method"] == "POST"
    assert all(good.start_time <= s.start_time <= s.end_time <= good.end_time for s in stages)
    spent = {span.name: span.end_time - span.start_time for span in stages}
    assert spent["segserve.infer"] >= 10_000_000
    assert failed.parent is None
    # The client's own mistake is no error of the server's (OpenTelemetry's conventions).
    assert failed.status.status_code.name == "UNSET"
    assert failed.attributes["http.response.status_code"] == 400
    assert failed.attributes["segserve.code"] == failed.attributes["error.type"] == "invalid_image"
    assert f"{failed.context.trace_id:032x}" in bad.headers["traceparent"]


def test_grpc_spans_follow_the_clients_trace(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = pb.SegmentRequest(model="bands", image=DATA, format="raw")
    with (
        run_traced(repository, monkeypatch) as (server, exporter),
        grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel,
    ):
        stub = segserve_pb2_grpc.SegmenterStub(channel)
        _, call = stub.Segment.with_call(request, metadata=(("traceparent", GIVEN),))
        list(stub.SegmentStream(iter([request] * 2)))
    (one, stages), (stream, more) = tree(exporter)
    assert f"{one.context.trace_id:032x}" == TRACE
    answered = dict(call.initial_metadata())["traceparent"]
    assert answered == f"00-{TRACE}-{one.context.span_id:016x}-01"
    assert one.attributes["rpc.response.status_code"] == "OK"
    assert {span.name for span in stages} == {f"segserve.{stage}" for stage in STAGES}
    assert stream.parent is None
    assert [span.name for span in more].count("segserve.infer") == 2


def test_only_the_servers_own_faults_are_errors(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(MODEL_SIZE, failing_runs=frozenset({0, 1}))
    with run_traced(repository, monkeypatch, engine) as (server, exporter):
        url = f"http://127.0.0.1:{server.ports.http}"
        codes = [
            httpx.post(url + SEGMENT, content=DATA).status_code,
            httpx.post(url + "/v2/models/nope/segment", content=DATA).status_code,
            httpx.get(url + "/v2/models/nope/ready").status_code,
            httpx.get(url + "/v2/logging").status_code,
            httpx.delete(url + SEGMENT).status_code,
        ]
        assert codes == [500, 404, 503, 501, 405]
        with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            stub = segserve_pb2_grpc.SegmenterStub(channel)
            for request in (
                pb.SegmentRequest(model="bands", image=DATA),
                pb.SegmentRequest(model="nope", image=DATA),
                pb.SegmentRequest(model="bands", image=b"no image"),
            ):
                with pytest.raises(grpc.RpcError):
                    stub.Segment(request)
    found = [
        (span.attributes["segserve.code"], span.status.status_code.name)
        for span in exporter.get_finished_spans()
        if span.kind.name == "SERVER"
    ]
    assert found == [
        ("engine_failed", "ERROR"),
        ("model_not_found", "UNSET"),
        ("not_ready", "ERROR"),
        ("unsupported", "ERROR"),
        ("method_not_allowed", "UNSET"),
        ("engine_failed", "ERROR"),
        ("model_not_found", "UNSET"),
        ("invalid_image", "UNSET"),
    ]


@pytest.mark.parametrize(
    ("call", "described"),
    [
        (RequestContext("http", "DELETE", "/v2", "", ""), {"http.request.method": "DELETE"}),
        (
            RequestContext("http", "BREW", "/v2", "", ""),
            {"http.request.method": "_OTHER", "http.request.method_original": "BREW"},
        ),
        (
            RequestContext("grpc", "POST", "/segserve.v1.Segmenter/Segment", "", ""),
            {"rpc.system": "grpc", "rpc.service": "segserve.v1.Segmenter", "rpc.method": "Segment"},
        ),
    ],
)
def test_what_a_span_starts_with(call: RequestContext, described: dict[str, str]) -> None:
    assert tracing.describe(call) == {"url.path": call.path, **described}


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidSetting, match=r"segserve\[tracing\]"):
        tracing.open_tracing()


def test_off_it_imports_nothing() -> None:
    """In a process of its own; onnxruntime and Triton's client may bring the API, not the SDK."""
    code = "import sys, serving.server; print('opentelemetry.sdk' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
