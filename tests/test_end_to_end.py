"""Train, export, serve, ask: the served label map is the one that MXNet itself computes."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import labels_reference
from serving.server import Ports
from serving.settings import Settings
from serving.testing import ServerThread
from training.datasets.synthetic import render_scene

ROOT = Path(__file__).resolve().parents[1]
FORWARD = ROOT / "tests" / "training" / "scripts" / "forward.py"
SEGSERVE = Path(sys.executable).with_name("segserve")
MODEL, ORIGINAL = Size(64, 96), Size(130, 171)
NETWORK = ("--model", "icnet", "--backbone", "resnet18", "--width", "0.25")
RECIPE = (
    "--dataset camvid --no-val --epochs 12 --batch-size 4 --lr 0.003 --optimizer adam"
    " --head-lr-mult 1 --crop-size 64x96 --base-size 96 --scale-range 1,1.2"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mxnet") is None,
        reason="mxnet is not installed (extra 'training')",
    ),
]


@dataclass(frozen=True)
class Served:
    """A server with the exported network, a photo, and what MXNet makes of it."""

    ports: Ports
    photo: bytes
    pixels: npt.NDArray[np.uint8]
    original_labels: npt.NDArray[np.uint8]
    model_labels: npt.NDArray[np.uint8]


def run(*command: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(folder: Path) -> Path:
    """A few steps on rendered scenes; returns the run's folder."""
    images, labels = folder / "scenes" / "train", folder / "scenes" / "trainannot"
    images.mkdir(parents=True)
    labels.mkdir()
    for seed in range(12):
        scene = render_scene(seed, MODEL.height, MODEL.width)
        assert cv2.imwrite(str(images / f"{seed}.png"), scene.image[..., ::-1])
        assert cv2.imwrite(str(labels / f"{seed}.png"), scene.label)
    run(
        sys.executable, ROOT / "training" / "train.py", *NETWORK, *RECIPE.split(),
        "--root", images.parent, "--save-dir", folder / "runs",
    )  # fmt: skip
    return folder / "runs" / "camvid" / "icnet" / "default"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("end_to_end")
    weights = train(folder)
    run(
        SEGSERVE, "export", *NETWORK, "--dataset", "camvid", "--size", str(MODEL), "--no-verify",
        "--params", weights / "best.params", "--repository", folder / "models", "--name", "street",
    )  # fmt: skip
    photo = render_scene(1000, ORIGINAL.height, ORIGINAL.width).image
    pixels = prepare(photo, plan(ORIGINAL, MODEL))
    np.save(folder / "pixels.npy", pixels)
    run(sys.executable, FORWARD, weights, folder / "pixels.npy", folder / "outputs.npz")
    with np.load(folder / "outputs.npz") as outputs:
        full, quarter = outputs["output0"], outputs["output1"]
    encoded = io.BytesIO()
    Image.fromarray(photo).save(encoded, "PNG")
    settings = Settings(
        repository=folder / "models", http_port=0, grpc_port=0, metrics_port=0, threads=1,
        drain_seconds=0, strict=True,
    )  # fmt: skip
    with ServerThread(settings) as server:
        yield Served(
            server.ports,
            encoded.getvalue(),
            pixels,
            labels_reference(quarter, MODEL, ORIGINAL),
            full.argmax(0).astype(np.uint8),
        )


def segment(served: Served, options: str = "") -> npt.NDArray[np.uint8]:
    url = f"http://127.0.0.1:{served.ports.http}/v2/models/street/segment{options}"
    response = httpx.post(url, content=served.photo, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["X-Image-Size"] == str(ORIGINAL)
    with Image.open(io.BytesIO(response.content)) as mask:
        assert mask.mode == "P"
        return np.array(mask)


def infer(served: Served, image: InferInput) -> npt.NDArray[np.uint8]:
    with InferenceServerClient(f"127.0.0.1:{served.ports.grpc}") as client:
        wanted = [InferRequestedOutput("mask")]
        return client.infer("street", [image], outputs=wanted).as_numpy("mask")


def agreement(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    assert one.shape == other.shape
    return float((one == other).mean())


def test_the_network_has_learnt_to_tell_classes_apart(served: Served) -> None:
    """Else any two label maps would agree."""
    counts = np.bincount(served.original_labels.reshape(-1)) / served.original_labels.size
    assert (counts > 0.02).sum() >= 3, counts


def test_the_served_map_at_the_photos_size(served: Served) -> None:
    assert agreement(segment(served), served.original_labels) >= 0.999


def test_the_served_map_at_the_models_size(served: Served) -> None:
    assert agreement(segment(served, "?size=model"), served.model_labels) >= 0.999


def test_the_inference_protocol_answers_pixels(served: Served) -> None:
    image = InferInput("image", [1, MODEL.height, MODEL.width, 3], "UINT8")
    image.set_data_from_numpy(served.pixels[None])
    assert agreement(infer(served, image)[0], served.model_labels) >= 0.999


def test_the_inference_protocol_answers_an_encoded_photo(served: Served) -> None:
    """The server decodes and resizes; ``mask`` stays at the model's size."""
    image = InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([served.photo], np.object_))
    assert agreement(infer(served, image)[0], served.model_labels) >= 0.999


def test_classes_are_those_of_the_dataset(served: Served) -> None:
    url = f"http://127.0.0.1:{served.ports.http}/v2/models/street/classes"
    classes = httpx.get(url).json()
    assert len(classes) == 11
    assert [entry["id"] for entry in classes] == list(range(11))
    assert classes[0]["name"].lower() == "sky"
