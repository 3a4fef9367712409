"""Start and stop, of the real command and in process."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

from serving.errors import InvalidModel
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.waiting import wait_for

SEGMENT = "/v2/models/bands/segment?format=raw"
# The command itself, but for the engine: its first run waits for a line of standard input.
HELD_SERVER = """
import asyncio, sys, threading
from tests.support.band_model import MODEL_SIZE, serve_fake
from pathlib import Path
from serving.commands.serve import greeting
from serving.server import Server, run
from serving.settings import Settings
from serving.testing import FakeEngine

async def main():
    settings = Settings(repository=Path(sys.argv[1]), http_port=0, grpc_port=0, metrics_port=0,
                        drain_seconds=3.0)
    engine = FakeEngine(MODEL_SIZE, delay_s=0.005)
    engine.hold.clear()

    def release():
        sys.stdin.readline()
        engine.hold.set()

    threading.Thread(target=release, daemon=True).start()
    server = Server(settings, serve_fake(engine))
    ready = asyncio.Event()
    task = asyncio.create_task(run(server, ready))
    await ready.wait()
    print(greeting(server), flush=True)
    await task

asyncio.run(main())
"""


@contextmanager
def serving_process(repository: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A process that runs ``HELD_SERVER``, and its HTTP and gRPC addresses once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD_SERVER, str(repository)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+) +gRPC (127\.0\.0\.1:\d+)", line)
        assert found, line
        yield process, found[1], found[2]
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def release(process: subprocess.Popen[str]) -> None:
    """Lets its engine run."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_sigterm_turns_unready_answers_what_is_in_flight_and_exits_0(tmp_path: Path) -> None:
    write_model(tmp_path)
    with serving_process(tmp_path) as (process, url, _):
        answers: list[httpx.Response] = []
        with httpx.Client(base_url=url, timeout=60) as http:
            data = encode(bands(60, 80))
            caller = threading.Thread(
                target=lambda: answers.append(httpx.post(url + SEGMENT, content=data, timeout=60))
            )
            caller.start()
            wait_for(lambda: "segserve_inflight_requests 1.0" in http.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            # It goes on answering for drain_seconds.
            wait_for(lambda: http.get("/v2/health/ready").status_code == 503)
            assert http.get("/v2/health/live").status_code == 200
            release(process)
            caller.join(60)
        assert process.wait(60) == 0
        assert [answer.status_code for answer in answers] == [200]
        assert len(answers[0].content) == 60 * 80


def test_sigterm_under_load_fails_no_request(tmp_path: Path) -> None:
    write_model(tmp_path)
    with serving_process(tmp_path) as (process, url, grpc_address):
        release(process)
        data = encode(bands(60, 80))
        http_codes: list[int] = []
        grpc_sizes: list[int] = []
        failures: list[Exception] = []

        # What a load balancer's clients do: none once readiness is off.
        def ask_over_http() -> None:
            with httpx.Client(base_url=url, timeout=60) as http:
                while http.get("/v2/health/ready").status_code == 200:
                    http_codes.append(http.post(SEGMENT, content=data).status_code)

        def ask_over_grpc() -> None:
            request = pb.SegmentRequest(model="bands", image=data, format="raw")
            with grpc.insecure_channel(grpc_address) as channel:
                health, stub = health_pb2_grpc.HealthStub(channel), SegmenterStub(channel)
                check = health_pb2.HealthCheckRequest()
                while health.Check(check).status == health_pb2.HealthCheckResponse.SERVING:
                    grpc_sizes.append(len(stub.Segment(request, timeout=60).body))

        def run(ask: Callable[[], None]) -> None:
            try:
                ask()
            except Exception as error:
                failures.append(error)

        asks = [ask_over_http, ask_over_grpc] * 4
        callers = [threading.Thread(target=run, args=(ask,)) for ask in asks]
        for caller in callers:
            caller.start()
        wait_for(lambda: failures or min(len(http_codes), len(grpc_sizes)) >= 20)
        process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join(60)
        assert process.wait(60) == 0
        assert failures == []
        assert set(http_codes) == {200}
        assert set(grpc_sizes) == {60 * 80}


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    """Also while engine and decoders are at work."""
    write_model(tmp_path)
    with serving_process(tmp_path) as (process, url, _):
        callers = [
            threading.Thread(target=ask, args=(url + SEGMENT,), daemon=True) for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        with httpx.Client(base_url=url, timeout=60) as http:
            wait_for(lambda: "segserve_inflight_requests 4.0" in http.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: http.get("/v2/health/ready").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1
        for caller in callers:
            caller.join(60)


def ask(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(url, content=encode(bands(60, 80)), timeout=60)


@pytest.mark.parametrize("port", ["http", "grpc", "metrics"])
def test_a_busy_port_is_an_error_that_names_it(tmp_path: Path, port: str) -> None:
    write_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = free_ports(tmp_path).model_copy(update={f"{port}_port": number})
        with (
            pytest.raises(OSError, match=str(number)),
            ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))),
        ):
            pass


def test_two_servers_in_one_process_share_no_state(tmp_path: Path) -> None:
    write_model(tmp_path)
    engines = [FakeEngine(MODEL_SIZE), FakeEngine(MODEL_SIZE)]
    settings = free_ports(tmp_path)
    with (
        ServerThread(settings, serve_fake(engines[0])) as first,
        ServerThread(settings, serve_fake(engines[1])) as second,
    ):
        url = f"http://127.0.0.1:{first.ports.http}"
        assert httpx.post(url + SEGMENT, content=encode(bands(60, 80))).status_code == 200
        page = httpx.get(f"http://127.0.0.1:{second.ports.http}/metrics").text
        counts = [float(x.split()[-1]) for x in page.splitlines()
                  if x.startswith("segserve_requests_total{")]  # fmt: skip
        assert set(counts) == {0.0}
        assert [len(engine.batch_sizes) for engine in engines] == [1, 0]
    assert all(engine.closed for engine in engines)


def test_one_broken_model_does_not_stop_the_others(tmp_path: Path) -> None:
    write_model(tmp_path)
    broken = write_model(tmp_path, "broken")
    (broken / "labels.txt").unlink()
    settings = free_ports(tmp_path)
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        url = f"http://127.0.0.1:{server.ports.http}"
        assert httpx.get(url + "/v2/health/ready").status_code == 200
        assert httpx.post(url + SEGMENT, content=encode(bands(60, 80))).status_code == 200
        answer = httpx.post(url + "/v2/models/broken/segment", content=b"x")
        assert answer.status_code == 404
        assert "labels.txt is missing" in answer.json()["error"]
    with (
        pytest.raises(InvalidModel, match="labels"),
        ServerThread(settings.model_copy(update={"strict": True}),
                     serve_fake(FakeEngine(MODEL_SIZE))),
    ):  # fmt: skip
        pass


def test_a_full_server_answers_429_with_the_setting(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE)
    settings = free_ports(tmp_path).model_copy(update={"max_queue_size": 1})
    with ServerThread(settings, serve_fake(engine)) as server:
        url = f"http://127.0.0.1:{server.ports.http}{SEGMENT}"
        data = encode(bands(60, 80))
        engine.hold.clear()
        codes: list[int] = []
        callers = [
            threading.Thread(
                target=lambda: codes.append(httpx.post(url, content=data, timeout=60).status_code)
            )
            for _ in range(2)
        ]
        callers[0].start()
        wait_for(lambda: engine.batch_sizes)
        callers[1].start()
        waiting = 'segserve_queue_length{model="bands"} 1.0'
        metrics = f"http://127.0.0.1:{server.ports.http}/metrics"
        wait_for(lambda: waiting in httpx.get(metrics).text)
        refused = httpx.post(url, content=data)
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert "max_queue_size" in refused.json()["error"]
        assert refused.headers["retry-after"] == "1"
        engine.hold.set()
        for caller in callers:
            caller.join(60)
        assert codes == [200, 200]
        page = httpx.get(metrics).text
        assert 'segserve_rejected_total{model="bands",reason="queue_size"} 1.0' in page


def test_an_engine_that_raises_answers_500_and_recovers(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE, failing_runs=frozenset({0}))
    with ServerThread(free_ports(tmp_path), serve_fake(engine)) as server:
        url = f"http://127.0.0.1:{server.ports.http}{SEGMENT}"
        data = encode(bands(60, 80))
        answer = httpx.post(url, content=data)
        assert (answer.status_code, answer.json()["code"]) == (500, "engine_failed")
        assert httpx.post(url, content=data).status_code == 200
