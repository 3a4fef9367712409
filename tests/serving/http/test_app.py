"""HTTP, asked by httpx and by tritonclient, as users do."""

from __future__ import annotations

import io
import json
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image

from serving.errors import InvalidModel
from serving.testing import ServerThread
from tests.support.band_model import (
    CLASSES,
    MODEL_SIZE,
    Served,
    band_labels,
    bands,
    encode,
    free_ports,
    png_header,
)

SIZE = (100, 160)


@pytest.fixture
def http(served: Served):
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:
        yield client


def segment(http: httpx.Client, data: bytes, **options: str) -> httpx.Response:
    headers = {"Accept": options.pop("accept")} if "accept" in options else {}
    return http.post("/v2/models/bands/segment", content=data, params=options, headers=headers)


def agreement(answer: np.ndarray, truth: np.ndarray) -> float:
    assert answer.shape == truth.shape
    return float((answer == truth).mean())


def test_the_default_answer_is_an_indexed_png_in_the_photos_size(http: httpx.Client) -> None:
    answer = segment(http, encode(bands(*SIZE)))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-model-name"] == "bands"
    assert answer.headers["x-model-version"] == "1"
    assert answer.headers["x-image-size"] == "100x160"
    stages = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["decode", "preprocess", "queue", "infer", "restore", "encode"]
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.mode == "P"
    assert picture.size == (160, 100)
    # Edges of bands lie between network pixels; everything else is exact.
    assert agreement(np.asarray(picture), band_labels(*SIZE)) > 0.95


@pytest.mark.parametrize("smooth", ["true", "false"])
def test_smooth_is_accepted(http: httpx.Client, smooth: str) -> None:
    answer = segment(http, encode(bands(*SIZE)), format="raw", smooth=smooth)
    labels = np.frombuffer(answer.content, np.uint8).reshape(SIZE)
    assert agreement(labels, band_labels(*SIZE)) > 0.95


def test_every_format_holds_the_same_labels(http: httpx.Client) -> None:
    data = encode(bands(*SIZE))
    png = np.asarray(Image.open(io.BytesIO(segment(http, data, format="png").content)))
    raw = np.frombuffer(segment(http, data, format="raw").content, np.uint8).reshape(SIZE)
    npy = np.load(io.BytesIO(segment(http, data, format="npy").content))
    stats = segment(http, data, format="stats").json()
    np.testing.assert_array_equal(png, raw)
    np.testing.assert_array_equal(png, npy)
    counts = np.bincount(raw.reshape(-1), minlength=8)
    assert [entry["pixels"] for entry in stats["classes"]] == counts.tolist()
    assert [entry["name"] for entry in stats["classes"]] == list(CLASSES)


def test_overlay_and_confidence_are_pictures_of_the_photos_size(http: httpx.Client) -> None:
    data = encode(bands(*SIZE))
    for form, mode in (("overlay", "RGB"), ("confidence", "L")):
        picture = Image.open(io.BytesIO(segment(http, data, format=form).content))
        assert (picture.mode, picture.size) == (mode, (160, 100))


def test_stats_carry_the_confidence_when_asked(http: httpx.Client) -> None:
    plain = segment(http, encode(bands(*SIZE)), format="stats").json()["classes"][0]
    asked = segment(http, encode(bands(*SIZE)), format="stats", confidence="true").json()
    assert "mean_confidence" not in plain
    assert 0.0 < asked["classes"][0]["mean_confidence"] <= 1.0


def test_accept_chooses_the_format_and_format_beats_it(http: httpx.Client) -> None:
    data = encode(bands(*SIZE))
    for accept, media_type in (
        ("application/x-npy", "application/x-npy"),
        ("application/json", "application/json"),
        ("application/octet-stream;q=0.5, image/png;q=0.9", "image/png"),
        ("text/html", "image/png"),
    ):
        assert segment(http, data, accept=accept).headers["content-type"] == media_type
    answer = segment(http, data, accept="application/json", format="png")
    assert answer.headers["content-type"] == "image/png"


def test_size_model_answers_in_the_networks_size(http: httpx.Client) -> None:
    answer = segment(http, encode(bands(*SIZE)), size="model", format="npy")
    assert np.load(io.BytesIO(answer.content)).shape == (32, 48)


def test_classes_keep_what_is_named(http: httpx.Client) -> None:
    answer = segment(http, encode(bands(*SIZE)), classes="Band2,5", format="raw")
    assert set(np.frombuffer(answer.content, np.uint8).tolist()) == {2, 5, 255}


def test_a_multipart_form_with_one_file_is_accepted(http: httpx.Client) -> None:
    data = encode(bands(*SIZE))
    files = {"image": ("street.png", data, "image/png")}
    answer = http.post("/v2/models/bands/segment?format=raw", files=files)
    assert answer.content == segment(http, data, format="raw").content
    two = [("a", ("a.png", data)), ("b", ("b.png", data))]
    answer = http.post("/v2/models/bands/segment", files=two)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")


def test_alpha_gray_and_sixteen_bits_are_answered(http: httpx.Client) -> None:
    rgb = bands(*SIZE)
    plain = segment(http, encode(rgb), format="raw").content
    alpha = np.dstack([rgb, np.full(SIZE, 7, np.uint8)])
    assert segment(http, encode(alpha), format="raw").content == plain
    red = rgb[..., 0]
    gray = segment(http, encode(red), format="raw").content
    deep = Image.fromarray(red.astype(np.uint16) * 257)
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    assert segment(http, buffer.getvalue(), format="raw").content == gray


JPEG = encode(bands(*SIZE), "JPEG")
NOISE = encode(np.random.default_rng(1).integers(0, 255, (*SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "status", "code", "text"),
    [
        (b"", 400, "invalid_image", "empty"),
        (b"this is no image", 400, "invalid_image", "JPEG"),
        (JPEG[: len(JPEG) // 2], 400, "invalid_image", "truncated"),
        (NOISE[: len(NOISE) // 2], 400, "invalid_image", "truncated"),
        (png_header(30000, 30000), 413, "too_large", "max_image_megapixels"),
        (encode(bands(*SIZE), "GIF"), 415, "unsupported_image_format", "JPEG"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "30000x30000", "gif"],
)
def test_bad_images_get_a_clear_error_and_the_server_goes_on(
    http: httpx.Client, data: bytes, status: int, code: str, text: str
) -> None:
    answer = segment(http, data)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert text in answer.json()["error"]
    assert segment(http, encode(bands(*SIZE))).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code", "text"),
    [
        ("/v2/models/nope/segment", 404, "model_not_found", "bands"),
        ("/v2/models/bands/versions/9/segment", 404, "model_not_found", "served: [1]"),
        ("/v2/models/bands/versions/x/segment", 400, "invalid_request", "positive integer"),
        ("/v2/models/bands/segment?format=tiff", 400, "invalid_request", "overlay"),
        ("/v2/models/bands/segment?smooth=perhaps", 400, "invalid_request", "smooth"),
        ("/v2/models/bands/segment?size=huge", 400, "invalid_request", "size"),
        ("/v2/models/bands/segment?sise=model", 400, "invalid_request", "sise"),
        ("/v2/models/bands/segment?classes=cow", 400, "invalid_request", "band0"),
        ("/v2/models/bands/segment?confidence=true", 400, "invalid_request", "stats"),
        ("/v2/nowhere", 404, "not_found", "/docs"),
    ],
)
def test_bad_requests_name_what_is_known(
    http: httpx.Client, path: str, status: int, code: str, text: str
) -> None:
    answer = http.post(path, content=encode(bands(*SIZE)))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert text in answer.json()["error"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(
    http: httpx.Client, served: Served
) -> None:
    limit = served.server.settings.max_request_bytes

    def endless():
        for _ in range(limit // (1 << 20) + 2):
            yield bytes(1 << 20)

    # Announced only: the answer comes although no byte of the body does.
    announced = HTTPConnection(served.http, timeout=20)
    announced.putrequest("POST", "/v2/models/bands/segment")
    announced.putheader("Content-Length", str(limit + 1))
    announced.endheaders()
    assert announced.getresponse().status == 413
    announced.close()
    answer = http.post("/v2/models/bands/segment", content=endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "max_request_bytes" in answer.json()["error"]


def test_a_timeout_header_ends_the_wait(http: httpx.Client, served: Served) -> None:
    for bad in ("soon", "-1", "0", "nan"):
        answer = http.post("/v2/models/bands/segment", content=JPEG, headers={"X-Timeout-Ms": bad})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    answer = http.post("/v2/models/bands/segment", content=JPEG, headers={"X-Timeout-Ms": "0.0001"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_health_metadata_classes_and_docs(http: httpx.Client) -> None:
    assert http.get("/v2/health/live").status_code == 200
    assert http.get("/v2/health/ready").status_code == 200
    assert http.get("/v2/models/bands/ready").status_code == 200
    assert http.get("/v2/models/nope/ready").status_code == 503
    assert http.get("/v2").json()["name"] == "segserve"
    classes = http.get("/v2/models/bands/classes").json()
    assert [entry["name"] for entry in classes] == list(CLASSES)
    assert classes[1]["color"] == "#800000"
    assert http.get("/v2/models/bands/config").json()["max_batch_size"] == 4
    assert http.get("/v2/models/bands").json()["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, 32, 48, 3]}
    ]
    assert "segment" in json.dumps(http.get("/openapi.json").json())


def test_metrics_show_every_stage_and_outcome(http: httpx.Client, served: Served) -> None:
    segment(http, encode(bands(*SIZE)))
    segment(http, b"broken")
    http.post("/v2/models/nope/segment", content=b"x")
    page = http.get("/metrics").text
    own = httpx.get(f"http://127.0.0.1:{served.server.ports.metrics}/metrics").text
    for stage in ("decode", "preprocess", "queue", "infer", "restore", "encode"):
        line = f'segserve_stage_duration_seconds_count{{model="bands",stage="{stage}"}}'
        assert line in page
        assert line in own
    assert 'segserve_requests_total{code="invalid_image",model="bands"}' in page
    # Names that callers make up must not become labels.
    assert 'segserve_requests_total{code="model_not_found",model="_unknown"}' in page
    assert "nope" not in page
    assert 'segserve_model_info{engine="fake",model="bands",precision="fp32",version="1"} 1' in page


@pytest.fixture
def client(served: Served):
    client = triton.InferenceServerClient(served.http)
    yield client
    client.close()


def pixels_input(n: int = 1) -> triton.InferInput:
    pixels = np.stack([bands(MODEL_SIZE.height, MODEL_SIZE.width)] * n)
    item = triton.InferInput("image", list(pixels.shape), "UINT8")
    item.set_data_from_numpy(pixels)
    return item


def test_tritonclient_sends_pixels_and_reads_the_mask(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bands")
    result = client.infer("bands", [pixels_input(2)], request_id="seven")
    mask = result.as_numpy("mask")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.stack([band_labels(32, 48)] * 2))
    logits = result.as_numpy("logits")
    assert logits.shape == (2, 8, 32, 48)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(result.as_numpy("confidence"), 255 * shares.max(1), atol=1)
    assert result.get_response()["id"] == "seven"


def test_tritonclient_reads_json_outputs(client: triton.InferenceServerClient) -> None:
    asked = triton.InferRequestedOutput("mask", binary_data=False)
    result = client.infer("bands", [pixels_input()], outputs=[asked])
    np.testing.assert_array_equal(result.as_numpy("mask")[0], band_labels(32, 48))


def test_tritonclient_sends_json_pixels(client: triton.InferenceServerClient) -> None:
    item = triton.InferInput("image", [1, 32, 48, 3], "UINT8")
    item.set_data_from_numpy(bands(32, 48)[None], binary_data=False)
    mask = client.infer("bands", [item]).as_numpy("mask")
    np.testing.assert_array_equal(mask[0], band_labels(32, 48))


def test_tritonclient_sends_encoded_images(client: triton.InferenceServerClient) -> None:
    files = [encode(bands(*SIZE)), encode(bands(64, 96))]
    item = triton.InferInput("image", [2], "BYTES")
    item.set_data_from_numpy(np.array(files, object))
    outputs = [triton.InferRequestedOutput(name) for name in ("mask", "png")]
    result = client.infer("bands", [item], outputs=outputs)
    assert result.as_numpy("mask").shape == (2, 32, 48)
    pictures = [np.asarray(Image.open(io.BytesIO(f))) for f in result.as_numpy("png")]
    assert [picture.shape for picture in pictures] == [SIZE, (64, 96)]
    np.testing.assert_array_equal(pictures[1], band_labels(64, 96))


def test_tritonclient_gets_clear_errors(client: triton.InferenceServerClient) -> None:
    wrong = triton.InferInput("image", [1, 4, 4, 3], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"\[n,32,48,3\]"):
        client.infer("bands", [wrong])
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        client.infer("nope", [pixels_input()])
    with pytest.raises(triton.InferenceServerException, match="batch-size must be <= 4"):
        client.infer("bands", [pixels_input(5)])
    with pytest.raises(
        triton.InferenceServerException, match="known: mask, confidence, logits, png"
    ):
        client.infer("bands", [pixels_input()], outputs=[triton.InferRequestedOutput("depth")])
    floats = triton.InferInput("image", [1, 32, 48, 3], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 32, 48, 3), np.float32))
    with pytest.raises(triton.InferenceServerException, match="UINT8"):
        client.infer("bands", [floats])
    broken = triton.InferInput("image", [1], "BYTES")
    broken.set_data_from_numpy(np.array([b"no image"], object))
    with pytest.raises(triton.InferenceServerException, match="not a known image"):
        client.infer("bands", [broken])


@pytest.mark.parametrize(
    ("body", "headers", "text"),
    [
        (b"{", {}, "JSON"),
        (b'{"inputs": []}', {}, "expected one input"),
        (b'{"inputs": [], "color": 1}', {}, "expected one input"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, "does not fit"),
        (
            b'{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES",'
            b'"parameters":{"binary_data_size":100}}]}',
            {"Inference-Header-Content-Length": "101"},
            "",
        ),
        (
            b'{"inputs":[{"name":"image","shape":[1,2],"datatype":"UINT8","data":[300,1]}]}',
            {},
            "UINT8 [n,32,48,3]",
        ),
    ],
)
def test_malformed_inference_requests_are_400(
    http: httpx.Client, body: bytes, headers: dict[str, str], text: str
) -> None:
    answer = http.post("/v2/models/bands/infer", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert text in answer.json()["error"]


def test_a_server_without_models_says_where_to_get_one(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidModel, match="segserve export"),
        ServerThread(free_ports(tmp_path / "nothing")),
    ):
        pass
