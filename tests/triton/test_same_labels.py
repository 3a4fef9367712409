"""The same photos through every way in: one label map.

HTTP, gRPC, the stream, the Open Inference Protocol on both transports (``png``; ``mask`` against
``size=model``), the Python client, the command line, and a server in front of a real Triton.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image, ImageOps
from segserve_client import Client, Result
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

from serving.server import Server
from serving.testing import ServerThread
from tests.support import golden
from tests.support.band_model import encode, free_ports
from tests.support.photos import exif
from tests.support.triton_server import Triton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (golden.REPOSITORY / "icnet").is_dir(), reason="no model_repository/icnet"
    ),
]

Labels = npt.NDArray[np.uint8]
SEGSERVE = Path(sys.executable).with_name("segserve")
MODEL = "shipped"  # model_repository/icnet under another name, so that Triton can have both


def make_photos() -> dict[str, bytes]:
    """The golden scene as it is, turned by its EXIF, gray, in CMYK, and small."""
    with Image.open(golden.SCENE) as scene:
        scene.load()
    turned = io.BytesIO()
    scene.save(turned, "JPEG", quality=92, exif=exif(6))
    cmyk = io.BytesIO()
    scene.convert("CMYK").save(cmyk, "JPEG", quality=92)
    return {
        "scene": golden.SCENE.read_bytes(),
        "turned": turned.getvalue(),
        "gray": encode(np.asarray(scene.convert("L"))),
        "cmyk": cmyk.getvalue(),
        "small": encode(np.asarray(ImageOps.scale(scene, 0.3))),
    }


PHOTOS = make_photos()


def at(server: Server, protocol: str) -> str:
    """The server's address for that protocol."""
    return f"127.0.0.1:{getattr(server.ports, protocol)}"


@pytest.fixture(scope="module")
def embedded(repository: Path) -> Iterator[Server]:
    with ServerThread(free_ports(repository)) as server:
        yield server


@pytest.fixture(scope="module")
def in_front(triton: Triton) -> Iterator[Server]:
    settings = {"engine": "triton", "triton_url": triton.grpc}
    with ServerThread(free_ports(Path("nowhere")).model_copy(update=settings)) as server:
        yield server


def read(png: bytes) -> Labels:
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == "P"
    return np.asarray(picture)


def by_http(server: Server, photo: bytes, size: str = "original") -> Labels:
    url = f"http://{at(server, 'http')}/v2/models/{MODEL}/segment"
    answer = httpx.post(url, params={"size": size}, content=photo, timeout=60)
    assert answer.status_code == 200, answer.text
    return read(answer.content)


@pytest.fixture(scope="module")
def expected(embedded: Server) -> dict[str, dict[str, Labels]]:
    """Over HTTP, by photo and size."""
    return {
        size: {name: by_http(embedded, photo, size) for name, photo in PHOTOS.items()}
        for size in ("original", "model")
    }


def check(found: dict[str, Labels], expected: dict[str, Labels]) -> None:
    assert set(found) == set(expected)
    for name, labels in found.items():
        np.testing.assert_array_equal(labels, expected[name], err_msg=name)


def test_the_photos_have_labels_of_their_own(expected: dict[str, dict[str, Labels]]) -> None:
    for maps in expected.values():
        assert all(len(np.unique(labels)) >= 3 for labels in maps.values())
        assert len({labels.tobytes() for labels in maps.values()}) == len(maps)
    truth = golden.expected("original")
    assert (expected["original"]["scene"] == truth).mean() >= 0.999
    height, width = truth.shape
    assert expected["original"]["turned"].shape == (width, height)


@pytest.mark.parametrize("way", ["embedded", "in_front"])
def test_http_and_grpc(
    way: str, request: pytest.FixtureRequest, expected: dict[str, dict[str, Labels]]
) -> None:
    server = request.getfixturevalue(way)
    sizes = {"original": pb.SIZE_ORIGINAL, "model": pb.SIZE_MODEL}
    with grpc.insecure_channel(at(server, "grpc")) as channel:
        stub = SegmenterStub(channel)
        for size, maps in expected.items():
            check({name: by_http(server, photo, size) for name, photo in PHOTOS.items()}, maps)
            asked = {
                name: pb.SegmentRequest(model=MODEL, image=photo, size=sizes[size])
                for name, photo in PHOTOS.items()
            }
            check({name: read(stub.Segment(r).body) for name, r in asked.items()}, maps)
            streamed = stub.SegmentStream(iter(asked.values()))
            answers = [read(answer.response.body) for answer in streamed]
            check(dict(zip(PHOTOS, answers, strict=True)), maps)


@pytest.mark.parametrize("way", ["embedded", "in_front"])
@pytest.mark.parametrize("transport", [tritonclient.http, tritonclient.grpc])
def test_the_inference_protocol(
    way: str,
    transport: object,
    request: pytest.FixtureRequest,
    expected: dict[str, dict[str, Labels]],
) -> None:
    server = request.getfixturevalue(way)
    url = at(server, "http" if transport is tritonclient.http else "grpc")
    files = np.array(list(PHOTOS.values()), np.object_)
    outputs = [transport.InferRequestedOutput(name) for name in ("png", "mask")]
    pictures, masks = [], []
    with transport.InferenceServerClient(url) as client:
        for batch in (files[:3], files[3:]):
            item = transport.InferInput("image", [len(batch)], "BYTES")
            item.set_data_from_numpy(batch)
            answer = client.infer(MODEL, [item], outputs=outputs)
            pictures += [read(data) for data in answer.as_numpy("png")]
            masks += list(answer.as_numpy("mask"))
    check(dict(zip(PHOTOS, pictures, strict=True)), expected["original"])
    check(dict(zip(PHOTOS, masks, strict=True)), expected["model"])


@pytest.mark.parametrize("way", ["embedded", "in_front"])
def test_the_python_client(
    way: str, request: pytest.FixtureRequest, expected: dict[str, dict[str, Labels]]
) -> None:
    server = request.getfixturevalue(way)
    with Client(at(server, "grpc"), MODEL) as client:
        for size, maps in expected.items():
            found = {name: client.segment(p, size=size).mask for name, p in PHOTOS.items()}
            check(found, maps)
            streamed = list(client.segment_stream(PHOTOS.values(), size=size))
            assert all(isinstance(answer, Result) for answer in streamed)
            check({n: a.mask for n, a in zip(PHOTOS, streamed, strict=True)}, maps)


@pytest.mark.parametrize("way", ["embedded", "in_front"])
def test_the_command_line(
    way: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    expected: dict[str, dict[str, Labels]],
) -> None:
    server = request.getfixturevalue(way)
    (tmp_path / "in").mkdir()
    for name, photo in PHOTOS.items():
        suffix = ".png" if photo.startswith(b"\x89PNG") else ".jpg"
        (tmp_path / "in" / f"{name}{suffix}").write_bytes(photo)
    for size, maps in expected.items():
        out = tmp_path / size
        done = subprocess.run(
            [SEGSERVE, "segment", tmp_path / "in", "--model", MODEL, "--format", "png",
             "--size", size, "--server", at(server, "grpc"), "--out", out],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        check({path.stem: read(path.read_bytes()) for path in out.iterdir()}, maps)
