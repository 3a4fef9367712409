"""In front of a Triton server: the same answers, its health, another server where one is away.

The server behind is this project's own: it speaks the protocol, shared memory included. The same is
tried with NVIDIA's in ``tests/triton``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from tritonclient.grpc import service_pb2

from serving.engines.triton_connection import Stub, TritonConnection
from serving.errors import InvalidModel, NotReady
from serving.models.sources import LocalRepository
from serving.models.triton_source import TritonRepository
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    CLASSES,
    MODEL_SIZE,
    bands,
    encode,
    free_ports,
    serve_fake,
    write_model,
)
from tests.support.open_server import run_open_server
from tests.support.recording_proxy import record
from tests.support.waiting import wait_for

PHOTO = encode(bands(50, 70))
PIXELS = bands(32, 48)


def in_front(*urls: str, **settings: object) -> Settings:
    more = {
        "engine": "triton",
        "triton_url": ",".join(urls),
        "triton_health_interval_s": 0.05,
        "triton_start_timeout_s": 60.0,
    }
    return free_ports(Path("nowhere")).model_copy(update={**more, **settings})


@contextmanager
def behind(folder: Path, **settings: object) -> Iterator[tuple[str, list[FakeEngine]]]:
    """Address of a server that stands for Triton, and its engines."""
    with run_open_server(folder, **settings) as server:
        yield server.address("grpc"), server.engines


def segment(server: Server, **options: str) -> httpx.Response:
    url = f"http://127.0.0.1:{server.ports.http}/v2/models/bands/segment"
    return httpx.post(url, params=options, content=PHOTO)


def is_ready(server: Server) -> bool:
    answer = httpx.get(f"http://127.0.0.1:{server.ports.http}/v2/health/ready")
    return answer.status_code == 200


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    write_model(folder, classes=json.dumps(CLASSES).replace('"', '\\"'))
    return folder


@pytest.mark.parametrize("shared_memory", [True, False])
def test_answers_are_the_embedded_engines(repository: Path, shared_memory: bool) -> None:
    forms = [{"format": "png"}, {"format": "stats", "confidence": "true"}, {"smooth": "false"}]
    with ServerThread(free_ports(repository), serve_fake(FakeEngine(MODEL_SIZE))) as embedded:
        expected = [segment(embedded, **form) for form in forms]
    with behind(repository) as (url, engines):
        settings = in_front(url, triton_shared_memory=shared_memory)
        with ServerThread(settings) as server:
            for form, answer in zip(forms, expected, strict=True):
                found = segment(server, **form)
                assert found.status_code == answer.status_code == 200
                assert found.content == answer.content
                assert found.headers["X-Model-Version"] == "1"
            info = httpx.get(f"http://127.0.0.1:{server.ports.metrics}/metrics").text
            assert 'engine="triton"' in info
        assert engines[0].batch_sizes


def test_tensors_go_through_shared_memory_where_both_allow_it(repository: Path) -> None:
    with run_open_server(repository) as open_server, open_server.client("grpc") as client:
        url = open_server.address("grpc")
        with ServerThread(in_front(url)) as server:
            assert segment(server).status_code == 200
            regions = client.get_system_shared_memory_status().regions
            assert len(regions) == 4  # image and logits, of two calls at a time
            assert all(list(Path("/dev/shm").glob(name)) for name in regions)
        assert not client.get_system_shared_memory_status().regions
        assert not [name for name in regions if list(Path("/dev/shm").glob(name))]


def test_without_it_there_tensors_travel_in_messages(repository: Path) -> None:
    with (
        behind(repository, enable_shared_memory=False) as (url, _),
        record(url) as recording,
        ServerThread(in_front(recording.address)) as server,
    ):
        for _ in range(3):
            assert segment(server).status_code == 200
        # Asked for once, not with every batch.
        assert recording.methods.count("SystemSharedMemoryRegister") == 1


def test_waits_for_company_and_warm_ups_are_left_to_the_server_behind(repository: Path) -> None:
    config = repository / "bands" / "config.pbtxt"
    text = config.read_text().replace(
        "dynamic_batching { }", "dynamic_batching { max_queue_delay_microseconds: 1000 }"
    )
    warmup = (
        'model_warmup { name: "file" batch_size: 1 inputs { key: "image" value { '
        'data_type: TYPE_UINT8 dims: [ 32, 48, 3 ] input_data_file: "image" } } }'
    )
    config.write_text(text + warmup)
    (repository / "bands" / "warmup").mkdir()
    (repository / "bands" / "warmup" / "image").write_bytes(PIXELS.tobytes())
    assert LocalRepository(free_ports(repository)).read("bands").scheduling.delay_s == 0.001
    with behind(repository) as (url, _):
        source = TritonRepository(in_front(url))
        assert source.read("bands").scheduling.delay_s == 0.0
        source.close()
        with ServerThread(in_front(url)) as server:
            assert segment(server).status_code == 200


def test_health_follows_the_server_behind(repository: Path) -> None:
    with ExitStack() as stack:
        first = ExitStack()
        url, _ = first.enter_context(behind(repository))
        server = stack.enter_context(ServerThread(in_front(url)))
        assert is_ready(server)
        first.close()
        wait_for(lambda: not is_ready(server))
        answer = segment(server)
        assert answer.status_code == 503
        assert url in answer.json()["error"]
        port = int(url.rpartition(":")[2])
        stack.enter_context(behind(repository, grpc_port=port))
        wait_for(lambda: is_ready(server))
        # Shared memory was registered with the server that is gone.
        assert segment(server).status_code == 200


def test_another_server_takes_over(repository: Path) -> None:
    with ExitStack() as stack:
        first = ExitStack()
        one, one_engines = first.enter_context(behind(repository))
        other, other_engines = stack.enter_context(behind(repository))
        server = stack.enter_context(ServerThread(in_front(one, other)))
        assert segment(server).status_code == 200
        assert one_engines[0].batch_sizes
        assert not other_engines[0].batch_sizes
        first.close()
        for _ in range(3):
            assert segment(server).status_code == 200
        assert len(other_engines[0].batch_sizes) == 3
        assert is_ready(server)


def test_a_run_that_fails_there_is_an_error_here(repository: Path) -> None:
    with ExitStack() as stack:
        engine = FakeEngine(MODEL_SIZE, failing_runs=frozenset({5}))
        behind_it = stack.enter_context(ServerThread(free_ports(repository), serve_fake(engine)))
        settings = in_front(f"127.0.0.1:{behind_it.ports.grpc}")
        server = stack.enter_context(ServerThread(settings))
        codes = [segment(server).status_code for _ in range(3)]
        assert sorted(codes) == [200, 200, 500]


def test_models_that_are_not_of_the_contract_do_not_stop_the_others(repository: Path) -> None:
    write_model(repository, "nameless")
    with behind(repository) as (url, _), ServerThread(in_front(url)) as server:
        assert segment(server).status_code == 200
        assert "no parameter classes" in server.registry.failures["nameless"]


def test_a_model_without_class_names_is_refused_by_name(tmp_path: Path) -> None:
    write_model(tmp_path)
    with (
        behind(tmp_path) as (url, _),
        pytest.raises(InvalidModel, match="no parameter classes"),
        ServerThread(in_front(url)),
    ):
        raise AssertionError("it must not start")


def test_a_server_that_does_not_come_is_named() -> None:
    settings = in_front("127.0.0.1:1", triton_start_timeout_s=0.0)
    with pytest.raises(NotReady, match=r"127\.0\.0\.1:1.*triton_start_timeout_s"):
        TritonRepository(settings).names()


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8001", "triton"])
def test_an_address_without_a_port_is_refused(url: str) -> None:
    with pytest.raises(InvalidModel, match="Triton server"):
        TritonRepository(in_front(url))


def test_calls_prefer_the_server_that_answered(repository: Path) -> None:
    with behind(repository) as (url, _):
        connection = TritonConnection(["127.0.0.1:1", url], timeout_s=30.0)
        asked: list[str] = []

        def ask(stub: Stub, address: str) -> bool:
            asked.append(address)
            return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30.0).live

        connection.call(ask)
        connection.call(ask)
        assert asked == ["127.0.0.1:1", url, url]
        connection.close()
