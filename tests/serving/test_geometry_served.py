"""Letterbox, tiles and test-time augmentation through a real server."""

from __future__ import annotations

import io
from collections.abc import Iterator

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.http as triton
from PIL import Image
from segserve_client import Client
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.imaging.geometry import Size
from serving.models.embedded import open_onnx_engine
from serving.models.registry import OpenEngine
from serving.models.repository import ModelFolder
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    band_labels,
    bands,
    encode,
    free_ports,
    serve_fakes,
    write_model,
)
from tests.support.contract_graph import make_graph
from tests.support.waiting import wait_for

MODEL = Size(32, 48)

LOCAL_CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 4
input { name: "image" data_type: TYPE_UINT8 dims: [ 4, 6, 3 ] }
output { name: "logits" data_type: TYPE_FP32 dims: [ 3, 4, 6 ] }
parameters { key: "resize" value { string_value: "tile" } }
"""


def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
    if folder.name == "local":
        return open_onnx_engine(folder, version, settings)
    if folder.name == "ids":
        return FakeEngine(MODEL, logits=False)
    return serve_fakes(folder, version, settings)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    for way in ("stretch", "letterbox", "tile"):
        write_model(folder, way, resize=way)
    write_model(folder, "ids", resize="tile")
    local = folder / "local"
    (local / "1").mkdir(parents=True)
    (local / "config.pbtxt").write_text(LOCAL_CONFIG)
    (local / "labels.txt").write_text("red\ngreen\nblue\n")
    onnx.save(make_graph(("logits",)), local / "1" / "model.onnx")
    limited = free_ports(folder).model_copy(update={"max_views": 250, "max_image_megapixels": 0.1})
    opened: OpenEngine = open_engine
    with ServerThread(limited, opened) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=30) as client:
        yield client


def post(http: httpx.Client, model: str, data: bytes, **options: str) -> httpx.Response:
    return http.post(f"/v2/models/{model}/segment", content=data, params=options)


def labels_of(answer: httpx.Response) -> npt.NDArray[np.uint8]:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


@pytest.mark.parametrize("way", ["stretch", "letterbox", "tile"])
@pytest.mark.parametrize("options", [{}, {"tta": "flip,0.75,1.25"}], ids=["plain", "tta"])
@pytest.mark.parametrize("size", [(100, 160), (20, 200), (90, 30)])
def test_every_way_answers_in_the_images_own_size(http, way, options, size) -> None:
    labels = labels_of(post(http, way, encode(bands(*size)), format="npy", **options))
    truth = band_labels(*size)
    assert labels.shape == size
    # A model pixel is several of the image's, and edges are somewhere in them.
    tolerance = {"stretch": 0.75, "letterbox": 0.7, "tile": 0.9}[way]
    assert (labels == truth).mean() > tolerance


def test_tiles_are_the_whole_image_where_it_fits(http) -> None:
    data = encode(bands(MODEL.height, MODEL.width))
    for options in ({"format": "npy"}, {"format": "npy", "smooth": "false"}):
        answers = [labels_of(post(http, m, data, **options)) for m in ("stretch", "tile")]
        np.testing.assert_array_equal(*answers)
        np.testing.assert_array_equal(answers[0], band_labels(MODEL.height, MODEL.width))


def test_a_real_network_s_tiles_equal_the_whole_image(http) -> None:
    """13 x 15 tiles of 4x6 pixels; the class is the strongest of red, green and blue."""
    rng = np.random.default_rng(3)
    photo = rng.permuted(np.broadcast_to(np.array([10, 100, 200], np.uint8), (40, 60, 3)), axis=2)
    labels = labels_of(post(http, "local", encode(photo), format="npy"))
    np.testing.assert_array_equal(labels, photo.argmax(2))


def test_an_answer_in_the_models_size_shows_the_whole_image(http) -> None:
    data = encode(bands(100, 192))
    for model in ("stretch", "letterbox", "tile"):
        answer = post(http, model, data, format="npy", size="model")
        assert (labels_of(answer) == band_labels(32, 48)).mean() > 0.8
        assert answer.headers["x-image-size"] == "100x192"
        overlay = post(http, model, data, format="overlay", size="model")
        assert Image.open(io.BytesIO(overlay.content)).size == (48, 32)


def test_confidence_and_statistics_of_blended_views(http) -> None:
    data = encode(bands(100, 160))
    picture = post(http, "tile", data, format="confidence", tta="flip")
    values = np.asarray(Image.open(io.BytesIO(picture.content)))
    assert values.shape == (100, 160)
    certain = round(255 * np.e / (np.e + 7))  # one-hot logits
    assert np.median(values) == certain
    stats = post(http, "tile", data, format="stats", confidence="true").json()
    assert sum(entry["pixels"] for entry in stats["classes"]) == 16000
    assert stats["classes"][0]["mean_confidence"] == pytest.approx(certain / 255, abs=0.05)


@pytest.mark.parametrize(
    ("model", "options", "status", "text"),
    [
        ("stretch", {"tta": "rotate"}, 400, "flip,0.75,1.25"),
        ("stretch", {"tta": ""}, 400, "flip"),
        ("stretch", {"tta": "9"}, 400, "0.25 to 4"),
        ("stretch", {"tta": "nan"}, 400, "nan"),
        ("stretch", {"tta": "flip", "smooth": "false"}, 400, "leave one of them out"),
        ("tile", {"smooth": "false"}, 400, "smooth=false"),
        ("tile", {"tta": "4,3.5"}, 413, "max_views = 250"),
        ("tile", {"tta": "2.6"}, 413, "max_image_megapixels"),
        ("ids", {"tta": "flip"}, 422, "segserve export --head mask,logits"),
        ("ids", {}, 422, "segserve export --head mask,logits"),
    ],
)
def test_what_cannot_be_is_refused_by_name(http, model, options, status, text) -> None:
    answer = post(http, model, encode(bands(100, 160)), **options)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]


def test_a_model_without_logits_answers_where_one_tile_is_enough(http) -> None:
    labels = labels_of(post(http, "ids", encode(bands(20, 40)), format="npy"))
    np.testing.assert_array_equal(labels, band_labels(20, 40))


def test_views_show_in_the_metrics_as_images(http) -> None:
    def images() -> float:
        lines = http.get("/metrics").text.splitlines()
        name = 'segserve_batch_size_sum{model="tile"}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    before = images()
    answer = post(http, "tile", encode(bands(32, 84)), tta="flip")
    assert answer.status_code == 200
    assert images() - before == 4
    stages = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["decode", "preprocess", "queue", "infer", "restore", "encode"]


def test_grpc_answers_alike(http, server: Server) -> None:
    photo = bands(100, 160)
    for model in ("letterbox", "tile"):
        expected = labels_of(post(http, model, encode(photo), format="npy", tta="flip,0.75"))
        with Client(f"127.0.0.1:{server.ports.grpc}", model) as client:
            found = client.segment(photo, tta=("flip", 0.75))
            np.testing.assert_array_equal(found.mask, expected)


def test_the_open_inference_protocol_letterboxes_and_refuses_tiles(http, server: Server) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.ports.http}")
    photo = encode(bands(100, 160))
    item = triton.InferInput("image", [1], "BYTES")
    item.set_data_from_numpy(np.array([photo], object))
    wanted = [triton.InferRequestedOutput(name) for name in ("mask", "png")]
    found = client.infer("letterbox", [item], outputs=wanted)
    picture = np.asarray(Image.open(io.BytesIO(found.as_numpy("png")[0])))
    expected = labels_of(post(http, "letterbox", photo, format="npy"))
    np.testing.assert_array_equal(picture, expected)
    # The mask is the network's whole frame, bars included: one above, one below.
    np.testing.assert_array_equal(found.as_numpy("mask")[0, 1:31], band_labels(30, 48))
    with pytest.raises(triton.InferenceServerException, match=r"takes 20 tiles of 32x48"):
        client.infer("tile", [item], outputs=wanted)
    client.close()


def test_a_cancelled_call_takes_its_tiles_out_of_the_queue(server: Server) -> None:
    model = server.registry.get("tile")
    assert isinstance(model.engine, FakeEngine)
    model.engine.hold.clear()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            stub = segserve_pb2_grpc.SegmenterStub(channel)
            request = pb.SegmentRequest(model="tile", image=encode(bands(200, 300)))
            call = stub.Segment.future(request)
            wait_for(lambda: model.batcher.waiting >= 4)
            call.cancel()
            # The engine is still busy with the first tiles; those behind them are gone.
            wait_for(lambda: not model.batcher.waiting)
            wait_for(lambda: server.admission.inflight == 0)
    finally:
        model.engine.hold.set()


@pytest.mark.parametrize("way", ["stretch", "letterbox", "tile"])
def test_the_plan_is_for_the_upright_image(http, way) -> None:
    upright = bands(60, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: lying in the file, upright for the viewer
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(buffer, "PNG", exif=exif)
    answer = post(http, way, buffer.getvalue(), format="npy", tta="flip")
    assert answer.headers["x-image-size"] == "60x100"
    expected = labels_of(post(http, way, encode(upright), format="npy", tta="flip"))
    np.testing.assert_array_equal(labels_of(answer), expected)
