"""Bodies, options and answers as clients of the world send and expect them, on a real server."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, unquote

import httpx
import numpy as np
import pytest
from isal import isal_zlib

from serving.errors import TooLarge
from serving.http.negotiation import MAX_MEMBERS, compress, decompress
from serving.http.page import build_policy
from serving.http.segment import quote_header
from serving.server import Server
from serving.testing import ServerThread
from tests.support.band_model import (
    Served,
    band_labels,
    bands,
    encode,
    free_ports,
    serve_fakes,
    write_model,
)

PIXELS = bands(32, 48)[None]
LABELS = band_labels(32, 48)
PHOTO = encode(bands(32, 48))
INFER = "/v2/models/bands/infer"
SEGMENT = "/v2/models/bands/segment"
RAW = {"format": "raw"}


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=60) as client:
        client.headers["Accept-Encoding"] = "identity"
        yield client


@contextmanager
def serve(repository: Path) -> Iterator[tuple[Server, httpx.Client]]:
    """A server of its own, and a client of it."""
    with (
        ServerThread(free_ports(repository), serve_fakes) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=60) as http,
    ):
        yield server, http


def tensor(data: object, datatype: str = "UINT8", shape: tuple[int, ...] = PIXELS.shape) -> dict:
    return {"name": "image", "shape": list(shape), "datatype": datatype, "data": data}


def mask_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    return np.array(outputs["mask"]["data"]).reshape(outputs["mask"]["shape"])


def ignored(served: Served, request: str) -> float:
    value = served.server.metrics.registry.get_sample_value
    return value("segserve_ignored_fields_total", {"request": request}) or 0.0


# What a REST client of KServe 0.21 sends: ``model_name`` always, null for what is not set.
KSERVE = {
    "id": "d1",
    "model_name": "bands",
    "inputs": [{**tensor(PIXELS.reshape(-1).tolist()), "parameters": None, "extra": {"a": [1]}}],
    "outputs": None,
    "parameters": None,
}


def test_fields_that_no_protocol_names_are_ignored_and_counted(
    http: httpx.Client, served: Served
) -> None:
    before = ignored(served, "infer")
    answer = http.post(INFER, json=KSERVE)
    assert (mask_of(answer)[0] == LABELS).all()
    assert answer.json()["id"] == "d1"
    assert ignored(served, "infer") == before + 2
    before = ignored(served, "control")
    assert http.post("/v2/repository/index", json={"ready": True, "x": 1}).status_code == 200
    assert ignored(served, "control") == before + 1


def test_health_says_in_json_what_its_status_says(tmp_path: Path) -> None:
    write_model(tmp_path)
    with serve(tmp_path) as (server, http):
        for path, body in (
            ("/v2/health/live", {"live": True}),
            ("/v2/health/ready", {"ready": True}),
            ("/v2/models/bands/ready", {"name": "bands", "ready": True}),
            ("/v2/models/bands/versions/1/ready", {"name": "bands", "ready": True}),
        ):
            answer = http.get(path)
            assert (answer.status_code, answer.json()) == (200, body)
        answer = http.get("/v2/models/nope/ready")
        assert (answer.status_code, answer.json()) == (503, {"name": "nope", "ready": False})
        server.registry.ready = False
        answer = http.get("/v2/health/ready")
        assert (answer.status_code, answer.json()) == (503, {"ready": False})


def test_json_with_a_byte_order_mark_and_blanks(http: httpx.Client) -> None:
    text = json.dumps({"inputs": [tensor(PIXELS.tolist())]}, indent=4).encode()
    answer = http.post(INFER, content=b"\xef\xbb\xbf" + text)
    assert (mask_of(answer)[0] == LABELS).all()
    assert http.post("/v2/repository/index", content=b"\xef\xbb\xbf \n{}").status_code == 200


def post_as_is(served: Served, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and body; header values may have the blanks around them that httpx refuses."""
    connection = HTTPConnection(served.http, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("nest", [lambda x: x, lambda x: [x]])
def test_images_as_base64_in_json(http: httpx.Client, nest) -> None:
    """Flat, or nested as their shape ``[2,1]``."""
    text = base64.b64encode(PHOTO).decode()
    shape = (2, 1) if nest("") == [""] else (2,)
    asked = {"inputs": [tensor([nest(text), nest(text)], "BYTES", shape)]}
    mask = mask_of(http.post(INFER, json=asked))
    assert mask.shape == (2, 32, 48)
    assert (mask == LABELS).all()


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (tensor(PIXELS.reshape(-1).tolist(), "FP32"), "expected UINT8 [n,32,48,3]"),
        (tensor(["x"], "BYTES", (1,)), "BYTES in JSON must be base64"),
        (tensor([[300] * 3] * 1536), "UINT8 values lie in 0..255"),
        (tensor(["a"] * 4608), "not an array of integers"),
        (tensor([1], shape=(10**6, 32, 48, 3)), "batch-size must be <= 4"),
        (tensor(["", ""], "BYTES", (10**9,)), "batch-size must be <= 4"),
        (tensor([], "BYTES", (0,)), "empty dimension"),
    ],
)
def test_data_that_is_not_the_models(http: httpx.Client, item: dict, text: str) -> None:
    answer = http.post(INFER, json={"inputs": [item]})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert text in answer.json()["error"]


def test_a_file_without_its_length_is_explained(served: Served) -> None:
    head = {**tensor(None, "BYTES", (1,)), "parameters": {"binary_data_size": len(PHOTO)}}
    text = json.dumps({"inputs": [head]}).encode()
    length = f" 000{len(text)} "
    body = text + PHOTO
    status, answer = post_as_is(served, INFER, body, Inference_Header_Content_Length=length)
    assert status == 400
    assert b"each element needs its length before it" in answer


def test_every_number_of_an_answer_in_json_is_exact(http: httpx.Client, served: Served) -> None:
    asked = {"inputs": [tensor(PIXELS.tolist())], "outputs": [{"name": "logits"}, {"name": "png"}]}
    outputs = {o["name"]: o for o in http.post(INFER, json=asked).json()["outputs"]}
    logits = np.array(outputs["logits"]["data"], np.float32).reshape(8, 32, 48)
    assert (logits == (np.arange(8)[:, None, None] == LABELS)).all()
    assert base64.b64decode(outputs["png"]["data"][0]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(PHOTO[:100]) + gzip.compress(PHOTO[100:])),
        ("gzip", gzip.compress(b"") * 50 + gzip.compress(PHOTO) + gzip.compress(b"")),
        ("gzip", gzip.compress(PHOTO) + bytes(512)),
        ("x-gzip", gzip.compress(PHOTO)),
        (" GZip ", gzip.compress(PHOTO)),
        ("identity, gzip", gzip.compress(PHOTO)),
        ("identity", PHOTO),
        (" ", PHOTO),
        ("deflate", zlib.compress(PHOTO)),
        ("deflate", zlib.compress(PHOTO)[2:-4]),
    ],
)
def test_compressed_as_the_world_does(served: Served, encoding: str, body: bytes) -> None:
    headers = {"Content_Encoding": encoding, "X_Timeout_Ms": " 60000 "}
    answer = post_as_is(served, f"{SEGMENT}?format=raw", body, **headers)
    assert answer == (200, LABELS.tobytes())


@pytest.mark.parametrize(
    ("encoding", "body", "text"),
    [
        ("gzip", gzip.compress(PHOTO) + b"x", "gzip"),
        ("gzip", gzip.compress(PHOTO) + gzip.compress(PHOTO)[:-1], "whole stream"),
        ("gzip", bytes(100), "gzip"),
        ("gzip", gzip.compress(b"") * (MAX_MEMBERS + 1), "members"),
        ("deflate", zlib.compress(PHOTO) + b"x", "other bytes follow"),
        ("deflate", zlib.compress(PHOTO)[2:-8], "whole stream"),
    ],
)
def test_compressed_wrongly(http: httpx.Client, encoding: str, body: bytes, text: str) -> None:
    answer = http.post(SEGMENT, content=body, params=RAW, headers={"Content-Encoding": encoding})
    assert answer.status_code == 400
    assert text in answer.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_no_more_is_unpacked_than_one_byte_above_the_limit(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 0 means none to zlib: one that is reached must not become that."""
    made = isal_zlib.decompressobj
    unpacked: list[int] = []

    class Counted:
        def __init__(self, wbits: int) -> None:
            self.stream = made(wbits=wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            assert most > 0
            piece = self.stream.decompress(data, most)
            unpacked.append(len(piece))
            return piece

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

    monkeypatch.setattr(isal_zlib, "decompressobj", lambda wbits: Counted(wbits))
    for size in (0, 1, 99, 100):
        packed = compress(b"x" * size, encoding)
        assert decompress(packed, encoding, 100) == b"x" * size
    for size in (101, 102, 10**6):
        unpacked.clear()
        with pytest.raises(TooLarge, match=r"more than 100 bytes \(setting max_request_bytes\)"):
            decompress(compress(b"x" * size, encoding), encoding, 100)
        assert sum(unpacked) == 101


def test_options_may_be_fields_of_the_form(http: httpx.Client, served: Served) -> None:
    before = ignored(served, "form")
    files = {"image": ("street.png", PHOTO, "image/png")}
    answer = http.post(SEGMENT, files=files, data={"format": "raw", "classes": "1", "csrf": "x"})
    assert answer.status_code == 200, answer.text
    assert answer.content == np.where(LABELS == 1, 1, 255).astype(np.uint8).tobytes()
    assert ignored(served, "form") == before + 1
    fields = {"format": "overlay", "image": "jpeg"}
    answer = http.post(SEGMENT, files={"photo": ("street.png", PHOTO)}, data=fields)
    assert answer.headers["content-type"] == "image/jpeg"
    answer = http.post(SEGMENT, files=files, data={"size": "huge"})
    assert (answer.status_code, "size" in answer.json()["error"]) == (400, True)
    answer = http.post(SEGMENT, files=files, data=RAW, params=RAW)
    assert answer.status_code == 400
    assert "given in the query and in the form" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "text"),
    [
        (b"", {}, "the body is empty"),
        (PHOTO.replace(b"\r", b"").replace(b"\n", b""),
         {"Content-Type": "application/x-www-form-urlencoded"}, "--data-binary"),
        (b"image=@street.jpg", {"Content-Type": "application/x-www-form-urlencoded"}, "curl"),
        (base64.b64encode(PHOTO), {}, "is base64 text"),
        (b"data:image/png;base64," + base64.b64encode(PHOTO), {}, "is a data: URL"),
        (b"https://example.org/street.jpg", {}, "is a URL"),
        (b'{"image": "x"}', {"Content-Type": "application/json"}, "is JSON"),
        (b"street.jpg", {}, "name of a file"),
        (b"@/tmp/street.jpg\n", {}, "name of a file"),
        (b'--xyz\r\nContent-Disposition: form-data; name="image"\r\n', {}, "is a form"),
    ],
)  # fmt: skip
def test_what_is_sent_for_an_image_is_explained(
    http: httpx.Client, body: bytes, headers: dict[str, str], text: str
) -> None:
    answer = http.post(SEGMENT, content=body, headers=headers)
    assert answer.status_code in (400, 415)
    assert answer.json()["code"] in ("invalid_image", "unsupported_image_format")
    assert text in answer.json()["error"]


def test_whole_bytes_of_a_broken_image_are_not_blamed_on_curl(http: httpx.Client) -> None:
    """`curl --data-binary` has the Content-Type of `curl -d`."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = http.post(SEGMENT, content=PHOTO[: len(PHOTO) // 2], headers=headers)
    assert answer.status_code == 400
    assert "truncated" in answer.json()["error"]
    assert "curl" not in answer.json()["error"]


@pytest.mark.parametrize("name", ["улица", "道路", "straße", "a%20b", "café au lait"])
def test_models_have_names_of_every_script(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, name)
    with serve(tmp_path) as (_, http):
        answer = http.post(f"/v2/models/{quote(name)}/segment", content=PHOTO, params=RAW)
        assert answer.status_code == 200, answer.text
        assert answer.content == LABELS.tobytes()
        header = answer.headers["x-model-name"]
        assert header.isascii()
        assert unquote(header) == name
        asked = {"inputs": [tensor(PIXELS.tolist())], "outputs": [{"name": "mask"}]}
        answer = http.post(f"/v2/models/{quote(name)}/infer", json=asked)
        assert answer.json()["model_name"] == name


def test_a_header_says_plain_names_as_they_are() -> None:
    assert quote_header("icnet-int8_1.0 (a/b)") == "icnet-int8_1.0 (a/b)"
    assert quote_header("a%\r\nb\x7fд") == "a%25%0D%0Ab%7F%D0%B4"


@pytest.mark.parametrize("path", ["repository/index", "repository/models/bands/load"])
def test_control_bodies_are_short(http: httpx.Client, served: Served, path: str) -> None:
    limit = served.server.settings.max_control_bytes
    for body, headers in (
        (b" " * (limit + 1), {}),
        (gzip.compress(b" " * (limit + 1)), {"Content-Encoding": "gzip"}),
    ):
        answer = http.post(f"/v2/{path}", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert "max_control_bytes" in answer.json()["error"]


def test_a_body_of_exactly_the_limit_passes(tmp_path: Path) -> None:
    write_model(tmp_path)
    photo = encode(bands(32, 48), "BMP")
    settings = free_ports(tmp_path).model_copy(update={"max_request_bytes": len(photo)})
    with ServerThread(settings, serve_fakes) as server:
        url = f"http://127.0.0.1:{server.ports.http}{SEGMENT}"
        chunked = (photo[i : i + 1000] for i in range(0, len(photo), 1000))
        for content in (photo, chunked):
            assert httpx.post(url, content=content, params=RAW).content == LABELS.tobytes()
        packed = gzip.compress(photo)
        headers = {"Content-Encoding": "gzip"}
        assert httpx.post(url, content=packed, headers=headers).status_code == 200
        packed = gzip.compress(photo + b"x")
        assert httpx.post(url, content=packed, headers=headers).status_code == 413


def test_the_docs_need_nothing_from_elsewhere(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == build_policy(answer.text)
    assert "script" not in answer.text
    assert not re.search(r"https?://|//cdn|@import|<link|<img|\son\w+=", answer.text)
    page = http.get("/openapi.json").json()
    for path in page["paths"]:
        assert f" {path}</h3>" in answer.text
    for option in ("tolerance", "min_area", "X-Timeout-Ms"):
        assert f"<code>{option}</code>" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", b'{"\x8a": false}'),
        ("/v2/repository/models/spare/load", b'{"parameters": {}, "9\x8a9": [1, 2]}'),
        ("/v2/models/bands/infer", b'{"inputs": [], "\xff": 1}'),
        ("/v2/models/bands/infer", b'{"inputs": [{"name": "image", "shape": [1], "\xff": 1}]}'),
        ("/v2/models/bands/infer", b'{"inputs": [], "outputs": [{"name": "mask", "\xc3": 1}]}'),
        ("/v2/systemsharedmemory/region/a/register", b'{"key": "a", "byte_size": 1, "\x80": 1}'),
    ],
)
def test_names_that_are_not_utf8_are_the_callers_mistake(
    served: Served, path: str, body: bytes
) -> None:
    answer = httpx.post(f"http://{served.http}{path}", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
