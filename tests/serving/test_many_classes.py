"""More than 255 classes from an ONNX file to every form of the answer, and both clients' arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from segserve_client import Client

from serving.errors import InvalidModel
from serving.models.repository import read_model
from serving.palette import default_palette
from serving.server import Server
from serving.testing import ServerThread
from tests.support.band_model import free_ports
from tests.support.import_command import run_import

CLASSES, SIZE = 600, (32, 48)
NAMES = tuple(f"class {i}" for i in range(CLASSES))
Labels = npt.NDArray[np.uint16]


def write_network(path: Path, *, argmax: bool = False) -> Path:
    """A network whose class is red + 2 x green, up to the last one; all numbers are exact."""
    c = np.arange(CLASSES, dtype=np.float32)
    weight = np.stack([2 * c, 4 * c, 0 * c], axis=1)[:, :, None, None]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["scores"], name="classify")]
    kind, shape = TensorProto.FLOAT, ["N", CLASSES, *SIZE]
    if argmax:
        nodes.append(helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0))
        # What no argmax gives ends in labels alone.
        nodes.append(helper.make_node("Abs", ["ids"], ["labels"]))
        kind, shape = TensorProto.INT64, ["N", *SIZE]
    output = helper.make_tensor_value_info(nodes[-1].output[0], kind, shape)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *SIZE])
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(-(c**2), "b")]
    model = helper.make_model(
        helper.make_graph(nodes, "many", [image], [output], weights),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, path)
    return path


def photo() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)


def expected(image: npt.NDArray[np.uint8]) -> Labels:
    red, green, _ = np.moveaxis(image.astype(int), -1, 0)
    return np.minimum(red + 2 * green, CLASSES - 1).astype(np.uint16)


def encoded(image: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@dataclass(frozen=True)
class Served:
    server: Server

    def post(self, model: str, **options: object) -> bytes:
        url = f"http://127.0.0.1:{self.server.ports.http}/v2/models/{model}/segment"
        answer = httpx.post(url, content=encoded(photo()), params=options, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("many")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    given = ("--classes", folder / "classes.txt", "--pixels", "byte")
    files = {
        "scores": write_network(folder / "scores.onnx"),
        "labels": write_network(folder / "labels.onnx", argmax=True),
    }
    for name, path in files.items():
        result = run_import(folder / "models", path, *given, "--name", name)
        assert result.exit_code == 0, result.output
        assert "100.0000% equal labels" in result.stderr
    with ServerThread(free_ports(folder / "models")) as server:
        yield Served(server)


MODELS = pytest.mark.parametrize("model", ["scores", "labels"])


@MODELS
def test_png_has_sixteen_bits(served: Served, model: str) -> None:
    body = served.post(model)
    labels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected(photo()))
    assert expected(photo()).max() > 255
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), labels)


@MODELS
def test_arrays_and_bytes(served: Served, model: str) -> None:
    labels = np.load(io.BytesIO(served.post(model, format="npy")))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected(photo()))
    raw = np.frombuffer(served.post(model, format="raw"), "<u2").reshape(SIZE)
    np.testing.assert_array_equal(raw, labels)


@MODELS
def test_statistics_count_every_class(served: Served, model: str) -> None:
    classes = json.loads(served.post(model, format="stats"))["classes"]
    counts = np.bincount(expected(photo()).ravel(), minlength=CLASSES)
    assert [entry["pixels"] for entry in classes] == counts.tolist()
    assert [entry["name"] for entry in classes] == list(NAMES)
    assert len({entry["color"] for entry in classes}) == CLASSES


@MODELS
def test_run_lengths_give_the_label_map_again(served: Served, model: str) -> None:
    decode = pytest.importorskip("pycocotools.mask").decode
    found = np.full(SIZE, 65535, np.uint16)
    for entry in json.loads(served.post(model, format="rle"))["annotations"]:
        assert entry["category_name"] == NAMES[entry["category_id"]]
        found[decode(entry["segmentation"]).astype(bool)] = entry["category_id"]
    np.testing.assert_array_equal(found, expected(photo()))


@MODELS
def test_polygons_cover_the_regions(served: Served, model: str) -> None:
    features = json.loads(served.post(model, format="polygons"))["features"]
    wanted = expected(photo())
    areas = np.zeros(CLASSES)
    for feature in features:
        for ring in feature["geometry"]["coordinates"]:
            x, y = np.array(ring[:-1]).T
            area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
            areas[feature["properties"]["class_id"]] += area
    np.testing.assert_array_equal(areas, np.bincount(wanted.ravel(), minlength=CLASSES))


@MODELS
def test_overlays_show_the_colours(served: Served, model: str) -> None:
    body = served.post(model, format="overlay", opacity=1)
    shown = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    colors = np.array(default_palette(CLASSES), np.uint8)
    np.testing.assert_array_equal(shown, colors[expected(photo())])


@MODELS
def test_chosen_classes_leave_the_ignored(served: Served, model: str) -> None:
    labels = np.load(io.BytesIO(served.post(model, format="npy", classes="class 300,599,255")))
    wanted = expected(photo())
    np.testing.assert_array_equal(labels, np.where(np.isin(wanted, (255, 300, 599)), wanted, 65535))
    assert {255, 599, 65535} <= set(np.unique(labels).tolist())


def test_confidence_and_blended_views(served: Served) -> None:
    with np.load(io.BytesIO(served.post("scores", format="npy", confidence="true"))) as found:
        np.testing.assert_array_equal(found["mask"], expected(photo()))
        assert found["confidence"].dtype == np.uint8
    for more in ({}, {"confidence": "true"}):
        body = served.post("scores", format="npy", tta="flip", **more)
        found = np.load(io.BytesIO(body))
        labels = found["mask"] if more else found
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, expected(photo()))


@MODELS
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("binary", [True, False])
def test_tensors_are_uint16(served: Served, model: str, protocol: str, binary: bool) -> None:
    if protocol == "grpc" and not binary:
        pytest.skip("gRPC has binary data alone")
    kind = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    with kind.InferenceServerClient(
        f"127.0.0.1:{getattr(served.server.ports, protocol)}"
    ) as client:
        pixels = np.stack([photo(), photo()[::-1]])
        image = kind.InferInput("image", list(pixels.shape), "UINT8")
        image.set_data_from_numpy(pixels)
        more = {"binary_data": binary} if protocol == "http" else {}
        wanted = [kind.InferRequestedOutput("mask", **more)]
        answer = client.infer(model, [image], outputs=wanted)
        mask = answer.as_numpy("mask")
        assert mask.dtype == np.uint16
        np.testing.assert_array_equal(mask, [expected(image) for image in pixels])
        told = client.get_model_metadata(model)
        outputs = told["outputs"] if protocol == "http" else told.outputs
        kinds = [o["datatype"] if protocol == "http" else o.datatype for o in outputs]
        assert kinds[0] == "UINT16"


@MODELS
def test_the_python_client(served: Served, model: str, tmp_path: Path) -> None:
    with Client(f"127.0.0.1:{served.server.ports.grpc}") as client:
        result = client.segment(photo(), model)
    np.testing.assert_array_equal(result.mask, expected(photo()))
    assert result.mask.dtype == np.uint16
    assert result.ignore_label == 65535
    colors = np.array(default_palette(CLASSES), np.uint8)
    np.testing.assert_array_equal(result.colored(), colors[result.mask])
    result.save(tmp_path / "labels.png")
    saved = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(saved, result.mask)


def test_a_mask_of_another_width_is_refused(served: Served, tmp_path: Path) -> None:
    source = served.server.registry.get("labels", None).folder.path
    folder = tmp_path / "labels"
    (folder / "1").mkdir(parents=True)
    config = (source / "config.pbtxt").read_text()
    (folder / "labels.txt").write_text((source / "labels.txt").read_text())
    (folder / "config.pbtxt").write_text(config.replace("TYPE_UINT16", "TYPE_UINT8"))
    (folder / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(InvalidModel, match="mask is TYPE_UINT8; expected TYPE_UINT16 for 600"):
        read_model(folder)
