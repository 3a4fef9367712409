"""The access log of a real server: a line a request, with what is needed and nothing secret."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO, cast

import grpc
import httpx
import pytest
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.observability.access_log import AccessLog, Style
from serving.observability.log_stream import (
    MAX_PENDING_BYTES,
    MAX_PENDING_LINES,
    LogStream,
)
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake

DATA = encode(bands(32, 48))
SEGMENT = "/v2/models/bands/segment"
KEY = "alice-0123456789"
STAGES = {"decode", "preprocess", "queue", "infer", "restore", "encode"}


@contextmanager
def run_logged(
    repository: Path, style: Style, **more: object
) -> Iterator[tuple[Server, io.StringIO]]:
    settings = free_ports(repository).model_copy(update={"access_log": style, **more})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        written = io.StringIO()
        server.contexts.log = AccessLog(style, written)
        yield server, written


def test_a_defect_is_internal_and_its_cause_in_the_log_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over HTTP; over gRPC: ``test_grpc_budgets.py``."""

    def break_down(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("the secret cause")

    with run_logged(repository, "json") as (server, written):
        url = f"http://127.0.0.1:{server.ports.http}"
        monkeypatch.setattr(server.segmenter, "segment", break_down)
        monkeypatch.setattr(server.dataplane, "find", break_down)
        for index, path in enumerate((SEGMENT, SEGMENT.replace("segment", "infer"))):
            caplog.clear()
            headers = {"X-Request-Id": f"mine-{index}"}
            answer = httpx.post(url + path, content=DATA, headers=headers)
            assert answer.status_code == 500
            assert answer.json()["code"] == "internal"
            assert "secret" not in answer.text
            assert answer.headers["x-request-id"] == f"mine-{index}"
            (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
            assert f"mine-{index}" in record.getMessage()
            assert "secret cause" in record.getMessage()
        assert httpx.get(url + "/v2/health/ready").status_code == 200
    logged = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(x["status"], x["code"]) for x in logged] == [(500, "internal")] * 2


def test_http_requests_are_lines_of_json(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice {KEY}")
    with run_logged(repository, "json", api_keys_file=keys) as (server, written):
        url = f"http://127.0.0.1:{server.ports.http}"
        mine = {"X-Request-Id": "mine-1", "X-API-Key": KEY}
        answer = httpx.post(url + SEGMENT + "?format=raw", content=DATA, headers=mine)
        assert answer.headers["x-request-id"] == "mine-1"
        forged = {"X-Request-Id": 'a" b', "X-API-Key": KEY}
        bad = httpx.post(url + SEGMENT, content=b"no image", headers=forged)
        assert re.fullmatch("[0-9a-f]{16}", bad.headers["x-request-id"])
        httpx.get(url + "/v2/models/nope%0Aforged", headers={"X-API-Key": KEY})
        refused = httpx.get(url + "/v2?api_key=" + KEY)
        httpx.get(url + "/v2/health/live")
        httpx.get(url + "/metrics")
    assert KEY not in written.getvalue()
    good, broken, unknown, keyless = map(json.loads, written.getvalue().splitlines())
    assert good["milliseconds"] >= sum(good["stages"].values()) > 0
    assert set(good["stages"]) == STAGES
    expected = {
        "request_id": "mine-1", "transport": "http", "client": "127.0.0.1", "key": "alice",
        "method": "POST", "path": SEGMENT, "model": "bands", "version": 1, "status": 200,
        "code": "ok", "request_bytes": len(DATA), "response_bytes": 32 * 48, "images": 1,
    }  # fmt: skip
    assert {name: good[name] for name in expected} == expected
    assert (broken["status"], broken["code"]) == (400, "invalid_image")
    assert broken["response_bytes"] == len(bad.content)
    assert (unknown["status"], unknown["code"]) == (404, "model_not_found")
    assert (keyless["status"], keyless["code"]) == (401, "unauthenticated")
    assert keyless["request_id"] == refused.headers["x-request-id"]
    assert "key" not in keyless


def test_grpc_calls_are_lines_too(repository: Path) -> None:
    request = pb.SegmentRequest(model="bands", image=DATA, format="raw")
    with (
        run_logged(repository, "json") as (server, written),
        grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel,
    ):
        stub = segserve_pb2_grpc.SegmenterStub(channel)
        answer, call = stub.Segment.with_call(request, metadata=(("x-request-id", "mine"),))
        assert dict(call.initial_metadata())["x-request-id"] == "mine"
        with pytest.raises(grpc.RpcError):
            stub.Describe(pb.DescribeRequest(model="nope"))
        assert len(list(stub.SegmentStream(iter([request] * 3)))) == 3
    one, unknown, stream = map(json.loads, written.getvalue().splitlines())
    assert (one["request_id"], one["status"], one["model"]) == ("mine", "OK", "bands")
    assert one["path"] == "/segserve.v1.Segmenter/Segment"
    assert one["request_bytes"] == request.ByteSize()
    assert one["response_bytes"] == answer.ByteSize()
    assert one["client"] == "127.0.0.1"
    assert (unknown["status"], unknown["code"]) == ("NOT_FOUND", "model_not_found")
    assert (stream["images"], set(stream["stages"])) == (3, STAGES)
    assert stream["request_bytes"] == 3 * request.ByteSize()


def test_text_is_one_line_a_request(repository: Path) -> None:
    with run_logged(repository, "text") as (server, written):
        url = f"http://127.0.0.1:{server.ports.http}"
        httpx.post(url + SEGMENT, content=DATA, headers={"X-Request-Id": "mine"})
        httpx.get(url + "/v2/%0Aforged")
    segment, forged = written.getvalue().splitlines()
    assert f'127.0.0.1 POST "{SEGMENT}" 200 ok' in segment
    assert "id=mine model=bands/1 decode=" in segment
    assert r'GET "/v2/\nforged" 404 not_found' in forged


def test_it_goes_to_stderr_and_is_off_by_default(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert Settings().access_log == "none"
    for style in ("none", "json"):
        settings = free_ports(repository).model_copy(update={"access_log": style})
        with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
            httpx.get(f"http://127.0.0.1:{server.ports.http}/v2")
        written = capfd.readouterr()
        assert written.out == ""
        assert (json.loads(written.err)["path"] == "/v2") if style == "json" else not written.err


class Pipe:
    """A stream to a pipe that is read only when asked."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fileno(self) -> int:
        return self.writer

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


def test_lines_that_nobody_reads_are_dropped_beyond_a_bound_and_counted(pipe: Pipe) -> None:
    dropped: list[int] = []
    stream = LogStream(cast(TextIO, pipe), lambda: dropped.append(1))
    line = "x" * 1023 + "\n"
    lines = 2 * MAX_PENDING_BYTES // len(line)
    for _ in range(lines):
        stream.write(line)
    assert not stream.drain(0.0)
    # What the pipe itself has taken is written.
    assert lines // 2 - 128 <= len(dropped) <= lines // 2
    read = b""
    while len(read) < (lines - len(dropped)) * len(line):
        read += os.read(pipe.reader, 1 << 16)
    assert read == line.encode() * (lines - len(dropped))
    assert stream.drain(60.0)
    stream.write("after\n")
    assert os.read(pipe.reader, 100) == b"after\n"
    stream.close()
    before = len(dropped)
    stream.write("too late\n")
    assert len(dropped) == before + 1


def test_many_short_lines_are_bounded_too(pipe: Pipe) -> None:
    dropped: list[int] = []
    stream = LogStream(cast(TextIO, pipe), lambda: dropped.append(1))
    for _ in range(100):
        stream.write("x" * 1000)
    for _ in range(2 * MAX_PENDING_LINES):
        stream.write("\n")
    assert len(dropped) > MAX_PENDING_LINES // 2


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_log_without_a_descriptor(stream: io.StringIO | None) -> None:
    """pythonw and some daemons have no stderr at all."""
    dropped: list[int] = []
    log = LogStream(stream, lambda: dropped.append(1))
    log.write("one\n")
    assert log.drain(60.0)
    assert (stream.getvalue() if stream else "") == ("one\n" if stream else "")
    assert len(dropped) == (stream is None)
