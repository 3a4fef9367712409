"""Every form of an answer over HTTP and gRPC, each read by a library of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import HTTP

import grpc
import httpx
import numpy as np
import pytest
import shapely
from numba.core.event import install_recorder
from PIL import Image
from pycocotools import mask as coco
from segserve_client import Client, Form, SegserveError
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from shapely.geometry import shape

from serving.formats.registry import FORMATS
from serving.http.options import OPTIONS
from tests.support.band_model import CLASSES, Served, bands, encode

SIZE = (100, 160)
PHOTO = encode(bands(*SIZE))
SEGMENT = "/v2/models/bands/segment"


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:
        yield client


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc, "bands") as client:
        yield client


@pytest.fixture
def stub(served: Served) -> Iterator[segserve_pb2_grpc.SegmenterStub]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield segserve_pb2_grpc.SegmenterStub(channel)


def ask(http: httpx.Client, accept: str = "*/*", **options: str) -> httpx.Response:
    return http.post(SEGMENT, content=PHOTO, params=options, headers={"Accept": accept})


@pytest.fixture
def labels(http: httpx.Client) -> np.ndarray:
    return np.frombuffer(ask(http, format="raw").content, np.uint8).reshape(SIZE)


def test_run_lengths_hold_the_labels(http: httpx.Client, labels: np.ndarray) -> None:
    answer = ask(http, format="rle", confidence="true")
    assert answer.headers["content-type"] == "application/json"
    drawn = np.full(SIZE, 255, np.uint8)
    for entry in answer.json()["annotations"]:
        drawn[coco.decode(entry["segmentation"]) == 1] = entry["category_id"]
        assert entry["category_name"] == CLASSES[entry["category_id"]]
        assert 0 < entry["score"] <= 1
    assert np.array_equal(drawn, labels)


def test_polygons_hold_the_labels(http: httpx.Client, labels: np.ndarray) -> None:
    answer = ask(http, format="polygons", confidence="true")
    assert answer.headers["content-type"] == "application/geo+json"
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    drawn = np.full(SIZE, 255, np.uint8)
    for feature in answer.json()["features"]:
        inside = shapely.contains_xy(shape(feature["geometry"]), x, y)
        drawn[inside] = feature["properties"]["class_id"]
        assert 0 < feature["properties"]["score"] <= 1
    assert np.array_equal(drawn, labels)
    coarse = ask(http, format="polygons", tolerance="3", min_area="5", classes="band2")
    assert {f["properties"]["class"] for f in coarse.json()["features"]} == {"band2"}
    assert ask(http, accept="application/geo+json").content == ask(http, format="polygons").content


def test_npy_with_confidence_is_npz(http: httpx.Client, labels: np.ndarray) -> None:
    answer = ask(http, format="npy", confidence="true")
    assert answer.headers["content-type"] == "application/x-npz"
    gray = np.asarray(Image.open(io.BytesIO(ask(http, format="confidence").content)))
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert np.array_equal(arrays["mask"], labels)
        assert np.array_equal(arrays["confidence"], gray)


def test_overlays(http: httpx.Client) -> None:
    picture = Image.open(io.BytesIO(ask(http, accept="image/jpeg").content))
    assert (picture.format, picture.size) == ("JPEG", (160, 100))
    assert ask(http, accept="image/jpeg", format="overlay", image="png").content[1:4] == b"PNG"
    plain = ask(http, format="overlay", opacity="0")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(plain.content))), bands(*SIZE))
    legend = Image.open(io.BytesIO(ask(http, format="overlay", legend="true").content))
    assert legend.width == 160
    assert legend.height > 100


def test_dropped_classes_have_no_confidence(http: httpx.Client) -> None:
    answer = ask(http, format="npy", confidence="true", classes="band2")
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert set(np.unique(arrays["mask"])) == {2, 255}
        assert np.array_equal(arrays["confidence"] > 0, arrays["mask"] == 2)


def test_size_model_holds_for_every_form(http: httpx.Client) -> None:
    answer = ask(http, format=",".join(FORMATS), size="model")
    assert answer.headers["x-mask-size"] == "32x48"
    parts = read_parts(answer)
    for name in ("png", "overlay", "confidence"):
        assert Image.open(io.BytesIO(parts[name])).size == (48, 32)
    assert np.load(io.BytesIO(parts["npy"])).shape == (32, 48)
    assert len(parts["raw"]) == 32 * 48
    for name in ("stats", "rle", "polygons"):
        found = json.loads(parts[name])
        assert (found["height"], found["width"]) == (32, 48)


def read_parts(answer: httpx.Response) -> dict[str, bytes]:
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + answer.content, policy=HTTP)
    parts = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        assert part.get_content_type() == FORMATS[name].media_types[0]
        parts[name] = part.get_payload(decode=True)
    return parts


@pytest.mark.parametrize("form", ["png,stats,polygons", ["png", "stats", "polygons"]])
def test_several_forms_are_parts_of_one_answer(http: httpx.Client, form: str | list[str]) -> None:
    answer = http.post(SEGMENT, content=PHOTO, params={"format": form})
    assert answer.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert answer.headers["x-image-size"] == answer.headers["x-mask-size"] == "100x160"
    parts = read_parts(answer)
    assert list(parts) == ["png", "stats", "polygons"]
    for name, body in parts.items():
        assert body == ask(http, format=name).content


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("format=png,gif", "unknown format 'gif'; known: png"),
        ("format=", "format"),
        ("format=png,png", "'png' is named twice"),
        ("format=png&opacity=0.5", "opacity goes with format=overlay"),
        ("format=overlay&opacity=2", "opacity"),
        ("format=overlay&opacity=nan", "opacity"),
        ("format=overlay&image=gif", "image"),
        ("format=overlay&quality=50", "quality goes with image=jpeg"),
        ("format=overlay&image=jpeg&quality=0", "quality"),
        ("format=polygons&tolerance=-1", "tolerance"),
        ("format=polygons&min_area=some", "min_area"),
        ("format=raw&confidence=true", "confidence goes with"),
        ("format=stats&legend=true", "legend goes with format=overlay"),
        ("outline=true", "unknown option outline; known: format"),
    ],
)
def test_wrong_options_are_refused_by_name(http: httpx.Client, query: str, text: str) -> None:
    answer = http.post(f"{SEGMENT}?{query}", content=PHOTO)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert text in answer.json()["error"]


def test_the_openapi_page_knows_every_option_and_form(http: httpx.Client) -> None:
    page = http.get("/openapi.json").json()
    operation = page["paths"]["/v2/models/{model}/segment"]["post"]
    query = {p["name"]: p for p in operation["parameters"] if p["in"] == "query"}
    assert set(query) == set(OPTIONS)
    assert all(p["description"] for p in query.values())
    assert list(FORMATS) == find_enum(query["format"]["schema"])
    assert find_enum(query["image"]["schema"]) == ["png", "jpeg"]
    assert find_enum(query["size"]["schema"]) == ["original", "model"]
    answers = operation["responses"]["200"]["content"]
    assert set(answers) == {
        "multipart/form-data", "application/x-npz",
        *(m for form in FORMATS.values() for m in form.media_types)
    }  # fmt: skip


def find_enum(schema: dict[str, object]) -> list[str] | None:
    """The first ``enum`` in a JSON schema."""
    if "enum" in schema:
        return schema["enum"]
    inner = [schema[key] for key in ("items",) if key in schema] + schema.get("anyOf", [])
    return next((found for part in inner if (found := find_enum(part))), None)


def test_grpc_gives_the_same_bytes(http: httpx.Client, client: Client) -> None:
    form = Form(image="jpeg", quality=70, opacity=0.3, legend=True, tolerance=1.5, min_area=4)
    options = {"image": "jpeg", "quality": "70", "opacity": "0.3", "legend": "true"}
    polygons = {"tolerance": "1.5", "min_area": "4"}
    shared = {"confidence": "true", "classes": "band1,2,band5"}
    files = client.encode_all(
        PHOTO, tuple(FORMATS), classes=("band1", 2, "band5"), confidence=True, form=form
    )
    assert list(files) == list(FORMATS)
    for name, file in files.items():
        own = {"overlay": options, "polygons": polygons}.get(name, {})
        if "confidence" in FORMATS[name].takes:
            own = {**own, "confidence": "true"}
        answer = ask(http, format=name, classes=shared["classes"], **own)
        assert answer.content == file.body
        assert answer.headers["content-type"] == file.media_type


def test_one_form_over_grpc_is_the_body(client: Client, http: httpx.Client) -> None:
    assert client.encode(PHOTO, "rle") == ask(http, format="rle").content
    jpeg = client.encode(PHOTO, "overlay", form=Form(image="jpeg"))
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    result = client.segment(PHOTO, confidence=True)
    assert result.confidence is not None
    assert result.confidence.shape == SIZE


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"format": "png,gif"}, "unknown format 'gif'"),
        ({"format": "png,png"}, "named twice"),
        ({"format": "png", "opacity": 0.5}, "opacity goes with"),
        ({"format": "overlay", "opacity": 2.0}, "opacity is 2"),
        ({"format": "overlay", "image_format": "gif"}, "image_format is 'gif'"),
        ({"format": "overlay", "image_format": "jpeg", "quality": 101}, "quality is 101"),
        ({"format": "polygons", "tolerance": float("nan")}, "tolerance is nan"),
        ({"size": 9}, "size is 9; known: SIZE_ORIGINAL, SIZE_MODEL"),
    ],
)
def test_wrong_options_over_grpc_are_refused_by_name(
    stub: segserve_pb2_grpc.SegmenterStub, fields: dict[str, object], text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(pb.SegmentRequest(model="bands", image=PHOTO, **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


def test_no_request_waits_for_a_compiler(client: Client) -> None:
    """Every loop is compiled for the types that requests bring before the server is ready."""
    form = Form(opacity=0.3, legend=True, tolerance=2, min_area=2)
    with install_recorder("numba:compile") as recorder:
        client.encode_all(PHOTO, tuple(FORMATS), confidence=True, form=form, classes=(1, 2))
        client.encode_all(PHOTO, tuple(FORMATS), smooth=False, size="model")
        client.encode_all(encode(bands(33, 47)), ("png", "stats", "rle", "polygons"))
    assert not recorder.buffer


def test_the_clients_errors_name_the_option(client: Client) -> None:
    with pytest.raises(SegserveError, match="legend goes with format=overlay"):
        client.encode(PHOTO, "stats", form=Form(legend=True))
    with pytest.raises(ValueError, match="encode_all"):
        client.encode(PHOTO, "png,stats")
    with pytest.raises(ValueError, match="expected a sequence"):
        client.encode_all(PHOTO, "png")
