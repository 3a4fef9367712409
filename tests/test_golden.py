"""The shipped model, served by the real command: one scene, one label map, every way in."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from segserve_client import Client

from tests.support import golden

# Float kernels differ between processors, so equality is not asked for.
AGREEMENT = 0.999
SEGSERVE = Path(sys.executable).with_name("segserve")


@dataclass(frozen=True)
class Address:
    http: str
    grpc: str
    metrics: str


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    """``segserve serve`` on free ports, ended by SIGTERM; its exit status is asserted."""
    process = subprocess.Popen(
        [SEGSERVE, "serve", "--repository", golden.REPOSITORY, "--http-port", "0",
         "--grpc-port", "0", "--metrics-port", "0", "--drain-seconds", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://(\S+)\s+gRPC (\S+)\s+metrics http://(\S+)/metrics", line)
        assert found, line
        yield Address(*found.groups())
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def check(labels: np.ndarray, name: str = "original") -> None:
    truth = golden.expected(name)
    assert labels.shape == truth.shape
    assert labels.dtype == np.uint8
    assert (labels == truth).mean() >= AGREEMENT


def read_png(data: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == "P"
    return np.asarray(picture)


def test_the_scene_is_not_trivial() -> None:
    assert len(np.unique(golden.expected("original"))) >= 6


@pytest.mark.parametrize("format", ["png", "npy", "raw"])
def test_http_segment(address: Address, format: str) -> None:
    answer = httpx.post(
        f"http://{address.http}/v2/models/icnet/segment?format={format}",
        content=golden.SCENE.read_bytes(),
        timeout=60,
    )
    assert answer.status_code == 200
    size = golden.SCENE_SIZE
    if format == "png":
        check(read_png(answer.content))
    elif format == "npy":
        check(np.load(io.BytesIO(answer.content)))
    else:
        check(np.frombuffer(answer.content, np.uint8).reshape(size.height, size.width))


def test_http_segment_in_the_models_size(address: Address) -> None:
    answer = httpx.post(
        f"http://{address.http}/v2/models/icnet/segment?size=model",
        content=golden.SCENE.read_bytes(),
        timeout=60,
    )
    check(read_png(answer.content), "model")


@pytest.mark.parametrize("kind", ["path", "bytes", "array"])
def test_python_client(address: Address, kind: str) -> None:
    image = {
        "path": golden.SCENE,
        "bytes": golden.SCENE.read_bytes(),
        "array": golden.read_scene(),
    }[kind]
    with Client(address.grpc) as client:
        result = client.segment(image, model="icnet")
    check(result.mask)
    assert result.classes[3] == "Road"
    assert result.palette[3] == (128, 64, 128)


@pytest.mark.parametrize("transport", [tritonclient.http, tritonclient.grpc])
def test_tritonclient_with_encoded_images(address: Address, transport) -> None:
    url = address.http if transport is tritonclient.http else address.grpc
    with transport.InferenceServerClient(url) as client:
        item = transport.InferInput("image", [1], "BYTES")
        item.set_data_from_numpy(np.array([golden.SCENE.read_bytes()], object))
        outputs = [transport.InferRequestedOutput(name) for name in ("mask", "png")]
        result = client.infer("icnet", [item], outputs=outputs)
    check(result.as_numpy("mask")[0], "model")
    check(read_png(result.as_numpy("png")[0]))


@pytest.mark.parametrize("transport", [tritonclient.http, tritonclient.grpc])
def test_tritonclient_with_pixels(address: Address, transport) -> None:
    from serving.imaging.geometry import Size, plan, prepare

    url = address.http if transport is tritonclient.http else address.grpc
    size = Size(*golden.expected("model").shape)
    pixels = prepare(golden.read_scene(), plan(golden.SCENE_SIZE, size))
    with transport.InferenceServerClient(url) as client:
        item = transport.InferInput("image", [1, size.height, size.width, 3], "UINT8")
        item.set_data_from_numpy(pixels[None])
        result = client.infer("icnet", [item])
    check(result.as_numpy("mask")[0], "model")


def test_segment_command(address: Address, tmp_path: Path) -> None:
    finished = subprocess.run(
        [SEGSERVE, "segment", golden.SCENE, "--model", "icnet", "--format", "png",
         "--server", address.grpc, "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    (written,) = tmp_path.iterdir()
    check(read_png(written.read_bytes()))


def test_the_metrics_port_counts_what_was_asked(address: Address) -> None:
    page = httpx.get(f"http://{address.metrics}/metrics").text
    assert 'segserve_requests_total{code="ok",model="icnet"}' in page
    assert 'segserve_stage_duration_seconds_count{model="icnet",stage="infer"}' in page
