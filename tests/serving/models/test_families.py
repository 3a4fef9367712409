"""Families: the best fit is chosen, and a model's own name always means that model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from segserve_client import Client, SegserveError

from serving.batching.batcher import Batcher
from serving.errors import ModelNotFound
from serving.imaging.geometry import Size
from serving.models.families import choose
from serving.models.model import Model
from serving.models.repository import read_model
from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    CLASSES,
    band_labels,
    bands,
    encode,
    free_ports,
    serve_fakes,
    write_model,
)
from tests.support.batching import LIMITS, Notes

SHAPES = {"small": Size(32, 48), "large": Size(64, 96), "wide": Size(32, 128)}


@pytest.fixture
def make(tmp_path: Path):
    """Makes a model that is loaded by nobody."""

    def make(name: str, size: Size, precision: str = "fp32", engine: str = "cpu") -> Model:
        class Named(FakeEngine):
            name = f"onnxruntime-{engine}"

        folder = read_model(write_model(tmp_path, name, size, family="bands"))
        made = Named(size, precision=precision)
        return Model(folder, 1, Batcher(made, LIMITS, Notes(), time.monotonic))

    return make


@pytest.mark.parametrize(
    ("image", "chosen"),
    [
        (Size(20, 30), "small"),
        (Size(32, 48), "small"),
        (Size(33, 48), "large"),
        (Size(64, 97), "large"),
        (Size(2000, 3000), "large"),
        (Size(20, 90), "wide"),
        (Size(500, 1900), "wide"),
    ],
)
async def test_aspect_first_then_the_smallest_not_below_the_image(make, image, chosen) -> None:
    members = [make(name, size) for name, size in SHAPES.items()]
    assert choose("bands", members, image).name == chosen


async def test_shapes_of_nearly_the_same_aspect_are_equally_near(make) -> None:
    members = [make("exact", Size(100, 200)), make("odd", Size(713, 1425))]
    assert choose("bands", members, Size(600, 1200)).name == "odd"


@pytest.mark.parametrize(
    ("engine", "precision"), [("cpu", "int8"), ("cuda", "fp16"), ("elsewhere", "fp32")]
)
async def test_the_engine_s_precision_comes_before_the_shape(make, engine, precision) -> None:
    members = [make(p, Size(32, 48), p, engine) for p in ("fp16", "fp32", "int8")]
    members.append(make("better", Size(64, 96), {"int8": "fp32"}.get(precision, "int8"), engine))
    assert choose("bands", members, Size(64, 96)).spec.precision == precision


async def test_models_of_different_classes_are_no_family(make, tmp_path: Path) -> None:
    members = [make("a", Size(32, 48))]
    write_model(tmp_path, "b", family="bands")
    (tmp_path / "b" / "labels.txt").write_text("\n".join(reversed(CLASSES)))
    other = Model(read_model(tmp_path / "b"), 1, members[0].batcher)
    with pytest.raises(ModelNotFound, match=r"different classes \(a, b\)"):
        choose("bands", [*members, other], Size(4, 4))
    with pytest.raises(ModelNotFound, match="no loaded model"):
        choose("bands", [], Size(4, 4))


@pytest.mark.parametrize(
    "parameters",
    [
        {"palette": " ".join(f"#{index:02x}0000" for index in range(1, 9))},
        {"ignore_label": "254"},
    ],
)
async def test_models_of_other_colours_or_another_ignore_label_are_no_family(
    make, tmp_path: Path, parameters: dict[str, str]
) -> None:
    """Of the same class names: a client could not tell whose answer it has."""
    members = [make("a", Size(32, 48))]
    folder = read_model(write_model(tmp_path, "b", family="bands", **parameters))
    other = Model(folder, 1, members[0].batcher)
    assert other.labels.names == members[0].labels.names
    with pytest.raises(ModelNotFound, match=r"different classes \(a, b\)"):
        choose("bands", [*members, other], Size(4, 4))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    for name, size in SHAPES.items():
        write_model(folder, name, size, family="bands")
    # A family with the name of one of its models can be asked for by no one.
    write_model(folder, "net", SHAPES["small"], family="net")
    write_model(folder, "net_large", SHAPES["large"], family="net")
    shutil.copytree(folder / "small" / "1", folder / "small" / "7")
    with ServerThread(free_ports(folder), serve_fakes) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("size", "chosen", "version"),
    [((30, 40), "small", "7"), ((64, 96), "large", "1"), ((100, 400), "wide", "1")],
)
def test_a_family_s_name_takes_the_best_fit(http, server, size, chosen, version) -> None:
    answer = http.post(
        "/v2/models/bands/segment?format=raw&smooth=false", content=encode(bands(*size))
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model-name"] == chosen
    assert answer.headers["x-model-version"] == version
    assert answer.headers["x-image-size"] == "{}x{}".format(*size)
    same = http.post(
        f"/v2/models/{chosen}/segment?format=raw&smooth=false", content=encode(bands(*size))
    )
    assert answer.content == same.content
    with Client(f"127.0.0.1:{server.ports.grpc}", "bands") as client:
        found = client.segment(bands(*size), smooth=False)
    assert (found.model, found.version) == (chosen, int(version))
    assert found.mask.tobytes() == answer.content
    assert (found.mask == band_labels(*size)).mean() > 0.9


@pytest.mark.parametrize("name", ["small", "net"])
def test_a_model_s_own_name_never_redirects(http, server, name) -> None:
    data = encode(bands(64, 96))
    answer = http.post(f"/v2/models/{name}/segment", content=data)
    assert answer.headers["x-model-name"] == name
    with Client(f"127.0.0.1:{server.ports.grpc}", name) as client:
        assert client.segment(data).model == name


def test_a_family_tells_its_classes_and_nothing_that_is_one_model_s(http, server) -> None:
    for name in ("bands", "small"):
        classes = http.get(f"/v2/models/{name}/classes")
        assert [entry["name"] for entry in classes.json()] == list(CLASSES)
    with Client(f"127.0.0.1:{server.ports.grpc}") as client:
        described = client.describe("bands")
    assert (described.model, described.version, described.has_logits) == ("bands", 0, True)
    assert described.classes == CLASSES
    for path in ("", "/config", "/versions/7/classes"):
        answer = http.get(f"/v2/models/bands{path}")
        assert answer.status_code == 404
        assert "'bands' is a family" in answer.json()["error"]
        assert "large, small, wide" in answer.json()["error"]


def test_a_family_has_no_versions(http, server) -> None:
    data = encode(bands(30, 40))
    answer = http.post("/v2/models/bands/versions/1/segment", content=data)
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
    with (
        Client(f"127.0.0.1:{server.ports.grpc}") as client,
        pytest.raises(SegserveError, match="family") as caught,
    ):
        client.segment(data, "bands", version=1)
    assert caught.value.code == grpc.StatusCode.NOT_FOUND.name


def test_the_open_inference_protocol_never_redirects(server) -> None:
    pixels = np.zeros((1, 32, 48, 3), np.uint8)
    for kind, port in ((triton_http, server.ports.http), (triton_grpc, server.ports.grpc)):
        client = kind.InferenceServerClient(f"127.0.0.1:{port}")
        item = kind.InferInput("image", [1, 32, 48, 3], "UINT8")
        item.set_data_from_numpy(pixels)
        with pytest.raises(kind.InferenceServerException, match="its models: large, small, wide"):
            client.infer("bands", [item])
        assert not client.is_model_ready("bands")
        assert client.is_model_ready("small")
        client.close()


def test_errors_of_a_family_are_those_of_its_models(http) -> None:
    answer = http.post("/v2/models/bands/segment", content=b"no image")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")
    answer = http.post("/v2/models/bands/segment?classes=cow", content=encode(bands(9, 9)))
    assert "band0" in answer.json()["error"]


def test_metrics_count_the_model_that_answered(http) -> None:
    def count(model: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        name = f'segserve_requests_total{{code="ok",model="{model}"}}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    before = count("wide")
    http.post("/v2/models/bands/segment", content=encode(bands(100, 400)))
    assert count("wide") == before + 1
    http.post("/v2/models/bands/segment", content=b"broken")
    page = http.get("/metrics").text
    assert 'segserve_requests_total{code="invalid_image",model="bands"}' in page
