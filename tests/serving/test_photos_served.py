"""Every kind of photo through a real server, over every transport: the labels of its pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import restore_labels
from serving.testing import FakeEngine
from tests.support import photos
from tests.support.band_model import MODEL_SIZE, Served

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photo:
    """A file, its pixels as Pillow or the definition of its kind has them, and how sure those are:
    decoders of JPEG differ by a few levels, which moves the borders of classes."""

    data: bytes
    pixels: Pixels
    agreement: float = 1.0


def by_pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        image.info.pop("transparency", None)
        return np.asarray(image.convert("RGB"))


def all_photos() -> Iterator[tuple[str, Photo]]:
    for kind, data in photos.LOSSLESS.items():
        yield kind, Photo(data, by_pillow(data))
    for kind, data in photos.LOSSY.items():
        yield kind, Photo(data, by_pillow(data), 0.97)
    yield "png interlaced", Photo(photos.interlaced_png(), photos.scene())
    for channels in (1, 3, 4):
        deep = np.rint(photos.scene(channels, np.uint16) / 257).astype(np.uint8)
        pixels = deep[..., :3] if channels > 1 else np.stack([deep] * 3, -1)
        name = f"png of 16 bits, {channels} channels"
        yield name, Photo(photos.sixteen_bit_png(channels), pixels)
    for orientation in range(1, 9):
        turned = photos.turned(photos.scene(), orientation)
        data = photos.encoded(photos.PHOTO, "PNG", exif=photos.exif(orientation))
        yield f"png, EXIF {orientation}", Photo(data, turned)
        data = photos.encoded(photos.PHOTO, "JPEG", exif=photos.exif(orientation))
        turned = photos.turned(by_pillow(data), orientation)
        yield f"jpeg, EXIF {orientation}", Photo(data, turned, 0.97)


PHOTOS = dict(all_photos())


@pytest.fixture(scope="module")
def stub(served: Served) -> Iterator[SegmenterStub]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield SegmenterStub(channel)


def expected(pixels: Pixels) -> Pixels:
    """What the model says of these pixels, in their own size."""
    size = Size(*pixels.shape[:2])
    layout = plan(size, MODEL_SIZE)
    prediction = FakeEngine(MODEL_SIZE).run(prepare(np.ascontiguousarray(pixels), layout)[None])
    return restore_labels(prediction[0], layout.only_view, size)


def check(photo: Photo, labels: Pixels) -> None:
    truth = expected(photo.pixels)
    assert labels.shape == truth.shape
    assert (labels == truth).mean() >= photo.agreement


def read(png: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_no_orientation_looks_like_another() -> None:
    turned = [expected(PHOTOS[f"png, EXIF {n}"].pixels) for n in range(1, 9)]
    for index, one in enumerate(turned):
        for other in turned[index + 1 :]:
            assert one.shape != other.shape or (one == other).mean() < 0.95


@pytest.mark.parametrize("kind", PHOTOS)
def test_over_http(served: Served, kind: str) -> None:
    photo = PHOTOS[kind]
    answer = httpx.post(f"http://{served.http}/v2/models/bands/segment", content=photo.data)
    assert answer.status_code == 200, answer.text
    height, width = photo.pixels.shape[:2]
    assert answer.headers["x-image-size"] == f"{height}x{width}"
    check(photo, read(answer.content))


@pytest.mark.parametrize("kind", PHOTOS)
def test_over_grpc(stub: SegmenterStub, kind: str) -> None:
    photo = PHOTOS[kind]
    answer = stub.Segment(pb.SegmentRequest(model="bands", image=photo.data))
    assert (answer.image_height, answer.image_width) == photo.pixels.shape[:2]
    check(photo, read(answer.body))


def test_in_one_stream(stub: SegmenterStub) -> None:
    frames = [pb.SegmentRequest(model="bands", image=photo.data) for photo in PHOTOS.values()]
    answers = list(stub.SegmentStream(iter(frames)))
    for photo, answer in zip(PHOTOS.values(), answers, strict=True):
        check(photo, read(answer.response.body))


@pytest.mark.parametrize("transport", [tritonclient.http, tritonclient.grpc])
def test_as_tensors_of_encoded_images(served: Served, transport: object) -> None:
    address = served.http if transport is tritonclient.http else served.grpc
    with transport.InferenceServerClient(address) as client:
        for photo in PHOTOS.values():
            item = transport.InferInput("image", [1], "BYTES")
            item.set_data_from_numpy(np.array([photo.data], np.object_))
            outputs = [transport.InferRequestedOutput(name) for name in ("png", "mask")]
            answer = client.infer("bands", [item], outputs=outputs)
            check(photo, read(answer.as_numpy("png")[0]))
            size = Size(*photo.pixels.shape[:2])
            shown = prepare(np.ascontiguousarray(photo.pixels), plan(size, MODEL_SIZE))
            check(replace(photo, pixels=shown), answer.as_numpy("mask")[0])
