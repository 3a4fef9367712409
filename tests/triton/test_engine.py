"""``segserve`` in front of a real Triton: the embedded engine's answers, and Triton's health."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from export.datasets import find_labels
from export.passes.build import build_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.find import PUBLISHED
from export.symbols.graph import read_symbol
from export.symbols.params import random_params
from export.symbols.sizes import retarget
from serving.server import Server
from serving.testing import ServerThread
from tests.support.band_model import encode, free_ports
from tests.support.recording_proxy import Recording, record
from tests.support.triton_server import Triton, install_triton, run_triton
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

AGREEMENT = 0.9999
MODELS = ("icnet", "shipped")
OPTIONS = (
    {"format": "npy"},
    {"format": "npy", "size": "model"},
    {"format": "npy", "smooth": "false"},
    {"format": "npy", "tta": "flip,0.75"},
)


@pytest.fixture(scope="module")
def photo(images: npt.NDArray[np.uint8]) -> bytes:
    """Of neither network's size nor aspect."""
    pixels = np.concatenate(list(images[:3]), 0)[:, :90]
    return encode(np.ascontiguousarray(pixels))


def in_front(*urls: str, shared_memory: bool = True) -> ServerThread:
    settings = {
        "engine": "triton",
        "triton_url": ",".join(urls),
        "triton_health_interval_s": 0.2,
        "triton_shared_memory": shared_memory,
    }
    return ServerThread(free_ports(Path("nowhere")).model_copy(update=settings))


@pytest.fixture(scope="module")
def embedded(repository: Path) -> Iterator[Server]:
    """The same repository on embedded ONNX Runtime."""
    with ServerThread(free_ports(repository)) as server:
        yield server


@pytest.fixture(scope="module", params=[True, False], ids=["shared memory", "messages"])
def front(request: pytest.FixtureRequest, triton: Triton) -> Iterator[tuple[Server, Recording]]:
    """A server in front of Triton, and what it asks Triton for."""
    with (
        record(triton.grpc) as recording,
        in_front(recording.address, shared_memory=request.param) as server,
    ):
        yield server, recording


def segment(server: Server, model: str, photo: bytes, **options: str) -> httpx.Response:
    url = f"http://127.0.0.1:{server.ports.http}/v2/models/{model}/segment"
    return httpx.post(url, params=options, content=photo, timeout=60)


def labels(answer: httpx.Response) -> npt.NDArray[np.uint8]:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def skip_without(server: Server, model: str) -> None:
    if model not in {known.name for known in server.registry.models()}:
        assert model == "shipped"
        pytest.skip("no model_repository/icnet")


@pytest.mark.parametrize("model", MODELS)
def test_labels_are_the_embedded_engines(
    front: tuple[Server, Recording], embedded: Server, photo: bytes, model: str
) -> None:
    skip_without(embedded, model)
    for options in OPTIONS:
        expected = labels(segment(embedded, model, photo, **options))
        assert len(np.unique(expected)) >= 3
        np.testing.assert_array_equal(labels(segment(front[0], model, photo, **options)), expected)
    asked = {"format": "confidence"}
    theirs, ours = (segment(server, model, photo, **asked) for server in (front[0], embedded))
    assert theirs.content == ours.content
    assert np.asarray(Image.open(io.BytesIO(ours.content))).std() > 0


def test_an_mxnet_graph_there_answers_as_the_onnx_one_here(
    front: tuple[Server, Recording], embedded: Server, photo: bytes
) -> None:
    expected = labels(segment(embedded, "icnet", photo, format="npy"))
    found = labels(segment(front[0], "icnet_mxnet", photo, format="npy"))
    assert (found == expected).mean() >= AGREEMENT
    assert "icnet_mxnet" in embedded.registry.failures  # only Triton runs it


def test_the_models_configuration_is_triton_s(
    front: tuple[Server, Recording], embedded: Server
) -> None:
    for path in ("classes", ""):
        theirs, ours = (
            httpx.get(f"http://127.0.0.1:{server.ports.http}/v2/models/icnet/{path}".rstrip("/"))
            for server in (front[0], embedded)
        )
        assert theirs.status_code == 200
        assert theirs.json() == ours.json()


def test_it_asks_for_logits_alone_through_the_way_it_may(
    front: tuple[Server, Recording], photo: bytes
) -> None:
    server, recording = front
    before = len(recording.inferences)
    for options in ({}, {"smooth": "false"}, {"format": "confidence"}):
        assert segment(server, "icnet", photo, **options).status_code == 200
    asked = recording.inferences[before:]
    assert len(asked) == 3
    assert recording.inferences
    for request in recording.inferences:
        assert [output.name for output in request.outputs] == ["logits"]
        tensors = (*request.inputs, *request.outputs)
        shared = ["shared_memory_region" in tensor.parameters for tensor in tensors]
        assert shared == [server.settings.triton_shared_memory] * 2
        assert bool(request.raw_input_contents) != server.settings.triton_shared_memory


def test_models_not_of_the_contract_are_refused_by_name(
    front: tuple[Server, Recording], photo: bytes
) -> None:
    failures = front[0].registry.failures
    for name, why in (
        ("lookup", "expected one input, image"),
        ("unconfigured", "expected one input, image"),
        ("mismatched", "not ready in Triton"),
    ):
        assert why in failures[name]
        answer = segment(front[0], name, photo)
        assert answer.status_code == 404
        assert why in answer.json()["error"]
    # One broken model there, for which Triton itself is not ready, does not make us so.
    ready = httpx.get(f"http://127.0.0.1:{front[0].ports.http}/v2/health/ready")
    assert ready.status_code == 200


def test_no_region_is_left(triton: Triton, photo: bytes) -> None:
    with in_front(triton.grpc) as server:
        assert segment(server, "icnet", photo).status_code == 200
        regions = triton.client.get_system_shared_memory_status().regions
        assert all((Path("/dev/shm") / name).exists() for name in regions)
        assert regions
    left = triton.client.get_system_shared_memory_status().regions
    assert not [name for name in regions if name in left or (Path("/dev/shm") / name).exists()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that starts fast: ``masks`` gives labels alone, ``shipped`` where it is."""
    folder = tmp_path_factory.mktemp("small")
    size = (64, 96)
    graph = retarget(read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz"), *size)
    names = find_labels("citys", None)
    assert names is not None
    facts = ModelFacts(names, "icnet", "citys", None, "random weights")
    model = build_model(graph, random_params(graph, *size), *size, heads=("mask",))
    write_model(folder, "masks", model, facts, None)
    return folder


def is_ready(server: Server) -> bool:
    answer = httpx.get(f"http://127.0.0.1:{server.ports.http}/v2/health/ready")
    return answer.status_code == 200


def test_another_triton_takes_over_and_health_follows(
    small: Path, tmp_path: Path, photo: bytes
) -> None:
    install_triton()
    with ServerThread(free_ports(small)) as server:
        expected = segment(server, "masks", photo)
        assert expected.status_code == 200
    with (
        run_triton(small, tmp_path / "first.log") as first,
        run_triton(small, tmp_path / "second.log") as second,
        record(first.grpc) as to_first,
        record(second.grpc) as to_second,
        in_front(to_first.address, to_second.address) as server,
    ):
        assert segment(server, "masks", photo).content == expected.content
        assert to_first.inferences
        assert not to_second.inferences
        first.process.send_signal(signal.SIGTERM)
        # While it stops and afterwards, nobody notices.
        while first.process.poll() is None:
            answer = segment(server, "masks", photo)
            assert (answer.status_code, answer.content) == (200, expected.content)
        assert segment(server, "masks", photo).content == expected.content
        assert to_second.inferences
        for request in (*to_first.inferences, *to_second.inferences):
            assert [output.name for output in request.outputs] == ["mask"]
        time.sleep(2 * server.settings.triton_health_interval_s)
        assert is_ready(server)
        second.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not is_ready(server))
        second.process.wait(60)
        answer = segment(server, "masks", photo)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert to_first.address in answer.json()["error"]
        assert to_second.address in answer.json()["error"]


def test_a_triton_that_is_started_anew_is_found(small: Path, tmp_path: Path, photo: bytes) -> None:
    install_triton()
    with ExitStack() as stack:
        with run_triton(small, tmp_path / "first.log") as first:
            server = stack.enter_context(in_front(first.grpc))
            expected = segment(server, "masks", photo).content
        wait_for(lambda: not is_ready(server))
        port = int(first.grpc.rpartition(":")[2])
        second = stack.enter_context(run_triton(small, tmp_path / "new.log", grpc_port=port))
        wait_for(lambda: is_ready(server))
        # It knows no region of ours.
        assert not second.client.get_system_shared_memory_status().regions
        assert segment(server, "masks", photo).content == expected
        assert second.client.get_system_shared_memory_status().regions
