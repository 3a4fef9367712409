"""The Open Inference Protocol over HTTP, byte by byte, and by tritonclient."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

from serving.http.negotiation import choose_encoding
from tests.support.band_model import Served, band_labels, bands, encode
from tests.support.waiting import until

PIXELS = bands(32, 48)[None]
MASK = band_labels(32, 48)
INFER = "/v2/models/bands/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:
        client.headers["Accept-Encoding"] = "identity"
        yield client


def image(**changes: object) -> dict[str, object]:
    size = {"binary_data_size": PIXELS.nbytes}
    return {"name": "image", "shape": [1, 32, 48, 3], "datatype": "UINT8", "parameters": size,
            **changes}  # fmt: skip


def output(name: str = "mask", **parameters: object) -> dict[str, object]:
    return {"name": name, "parameters": parameters}


def pack(head: dict[str, object], data: bytes = PIXELS.tobytes()) -> tuple[bytes, dict[str, str]]:
    """A body and its header."""
    text = json.dumps(head).encode()
    return text + data, {LENGTH: str(len(text))}


def ask(
    http: httpx.Client, head: dict[str, object], data: bytes = PIXELS.tobytes(), **headers: str
) -> httpx.Response:
    body, length = pack(head, data)
    return http.post(INFER, content=body, headers={**length, **headers})


def unpack(answer: httpx.Response) -> tuple[dict, bytes]:
    """The JSON part and what follows it."""
    assert answer.status_code == 200, answer.text
    end = int(answer.headers.get(LENGTH, len(answer.content)))
    return json.loads(answer.content[:end]), answer.content[end:]


def test_binary_data_follows_the_json(http: httpx.Client) -> None:
    answer = ask(http, {"id": "x7", "inputs": [image()], "outputs": [output(binary_data=True)]})
    head, data = unpack(answer)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert head == {
        "id": "x7",
        "model_name": "bands",
        "model_version": "1",
        "outputs": [
            {"name": "mask", "datatype": "UINT8", "shape": [1, 32, 48],
             "parameters": {"binary_data_size": 32 * 48}}
        ],
    }  # fmt: skip
    assert data == MASK.tobytes()


def test_one_answer_holds_json_and_binary_in_the_models_order(http: httpx.Client) -> None:
    asked = [output("logits", binary_data=True), output(binary_data=False), output("mask")]
    head, data = unpack(ask(http, {"inputs": [image()], "outputs": asked[:2]}))
    assert [entry["name"] for entry in head["outputs"]] == ["mask", "logits"]
    assert head["outputs"][0]["data"] == MASK.reshape(-1).tolist()
    assert len(data) == head["outputs"][1]["parameters"]["binary_data_size"] == 8 * 32 * 48 * 4
    head, _ = unpack(ask(http, {"inputs": [image()], "outputs": asked}))
    assert [entry["name"] for entry in head["outputs"]] == ["mask", "logits"]


def test_binary_data_output_is_the_default_of_every_output(http: httpx.Client) -> None:
    everything = {"inputs": [image()], "parameters": {"binary_data_output": True}}
    head, _ = unpack(ask(http, everything))
    assert all("binary_data_size" in entry["parameters"] for entry in head["outputs"])
    but_one = {**everything, "outputs": [output(binary_data=False), output("logits")]}
    head, data = unpack(ask(http, but_one))
    assert "data" in head["outputs"][0]
    assert len(data) == head["outputs"][1]["parameters"]["binary_data_size"]


def test_nested_json_data_is_taken_in_c_order(http: httpx.Client) -> None:
    nested = image(parameters={}, data=PIXELS.tolist())
    answer = http.post(INFER, json={"inputs": [nested], "outputs": [output()]})
    assert answer.json()["outputs"][0]["data"] == MASK.reshape(-1).tolist()


def test_a_raw_body_is_one_images_pixels(http: httpx.Client) -> None:
    answer = http.post(INFER, content=PIXELS.tobytes(), headers={LENGTH: "0"})
    head, data = unpack(answer)
    assert [entry["name"] for entry in head["outputs"]] == ["mask", "confidence", "logits"]
    assert data[: MASK.size] == MASK.tobytes()
    short = http.post(INFER, content=PIXELS.tobytes()[:-1], headers={LENGTH: "0"})
    assert short.status_code == 400
    assert "takes 4608 bytes, got 4607" in short.json()["error"]


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_bodies_may_be_compressed_both_ways(http: httpx.Client, encoding: str, compress) -> None:
    body, headers = pack({"inputs": [image()], "outputs": [output(binary_data=True)]})
    headers |= {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    answer = http.post(INFER, content=compress(body), headers=headers)
    assert answer.headers["content-encoding"] == encoding
    _, data = unpack(answer)  # httpx has unpacked it
    assert data == MASK.tobytes()
    assert int(answer.headers["content-length"]) < len(answer.content)


def test_images_may_be_compressed_too(http: httpx.Client) -> None:
    data = encode(bands(64, 96), "BMP")
    path = "/v2/models/bands/segment?format=raw"
    plain = http.post(path, content=data)
    packed = http.post(path, content=gzip.compress(data), headers={"Content-Encoding": "gzip"})
    assert packed.content == plain.content
    assert "content-encoding" not in packed.headers


def test_a_small_body_that_unpacks_to_a_large_one_is_refused(
    http: httpx.Client, served: Served
) -> None:
    bomb = gzip.compress(bytes(served.server.settings.max_request_bytes + 1))
    assert len(bomb) < 1 << 20
    answer = http.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "max_request_bytes" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"not compressed", "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", 400),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400),
        (zlib.compress(b"{}"), "gzip", 400),
        (b"", "deflate", 400),
        (b"{}", "br", 501),
        (b"{}", "gzip, deflate", 501),
    ],
)
def test_broken_or_unknown_compression_is_named(
    http: httpx.Client, body: bytes, encoding: str, status: int
) -> None:
    answer = http.post(INFER, content=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == status
    assert encoding in answer.json()["error"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("gzip;q=0.5, deflate; q=0.8", "deflate"),
        ("GZIP", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=nonsense", None),
        ("gzip;q=nan", None),
        ("br, *", None),
        ("", None),
    ],
)
def test_accept_encoding(accept: str, chosen: str | None) -> None:
    assert choose_encoding(accept) == chosen


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"parameters": {"sequence_id": 7}}, 501, "sequence_id"),
        ({"parameters": {"sequence_start": True}}, 501, "sequence_start"),
        ({"parameters": {"timeout": "soon"}}, 400, "timeout"),
        ({"parameters": {"timeout": -1}}, 400, "timeout"),
        ({"parameters": {"timeout": 10**400}}, 400, "timeout"),
        ({"parameters": {"priority": 1.5}}, 400, "priority"),
        ({"parameters": {"priority": True}}, 400, "priority"),
        ({"parameters": {"binary_data_output": 1}}, 400, "binary_data_output"),
        ({"parameters": {"triton_anything": 1}}, 400, "triton_anything"),
        ({"parameters": {"triton_enable_empty_final_response": True}}, 400, "streams"),
        ({"parameters": {"mine": {"a": 1}}}, 400, "mine"),
        ({"outputs": [output(classification=3)]}, 501, "classification"),
        ({"outputs": [output(binary_data="yes")]}, 400, "binary_data"),
        ({"outputs": [output(shared_memory_region="r", shared_memory_byte_size=9)]}, 501,
         "enable_shared_memory"),
        ({"inputs": [image(data=[1])]}, 400, "needs one of"),
        ({"inputs": [image(parameters={})]}, 400, "needs one of"),
        ({"inputs": [image(parameters={}, data=[[1, 2], [3]])]}, 400, "the data holds 3"),
        ({"inputs": [image(parameters={}, data=[1.5])]}, 400, "integers"),
        ({"inputs": [image(shape=["1", 32, 48, 3])]}, 400, "inputs[0].shape[0]"),
        ({"inputs": [image(shape=[1, 32, 48, 3] * 3)]}, 400, "inputs[0].shape"),
        ({"id": 7}, 400, "id"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(
    http: httpx.Client, change: dict[str, object], status: int, text: str
) -> None:
    head = {"inputs": [image()], "outputs": [output()], **change}
    answer = ask(http, head, b"" if "data" in str(change.get("inputs", "")) else PIXELS.tobytes())
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]


@pytest.mark.parametrize("field", ['"id":%s', '"parameters":{"priority":%s}', '"inputs":[%s]'])
def test_numbers_of_thousands_of_digits_are_only_wrong(http: httpx.Client, field: str) -> None:
    answer = http.post(INFER, content="{%s}" % (field % ("7" * 5000)))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_what_is_the_clients_own_has_no_effect(http: httpx.Client) -> None:
    own = {"mine": "x", "also": 1.5, "priority": 99, "timeout": 0, "sequence_id": 0}
    unpack(ask(http, {"inputs": [image()], "outputs": [output()], "parameters": own}))


async def test_timeouts_count_in_microseconds(served: Served) -> None:
    head = {"inputs": [image()], "outputs": [output()]}
    served.engine.hold.clear()
    try:
        # The first takes the engine, the second waits for it.
        blocked = await _race(served, head)
        assert blocked.status_code == 504
        assert "250 ms" in blocked.json()["error"]
    finally:
        served.engine.hold.set()


async def _race(served: Served, head: dict[str, object]) -> httpx.Response:
    before = len(served.engine.batch_sizes)
    async with httpx.AsyncClient(base_url=f"http://{served.http}", timeout=30) as client:
        body, headers = pack(head)
        first = asyncio.create_task(client.post(INFER, content=body, headers=headers))
        await until(lambda: len(served.engine.batch_sizes) > before)
        body, headers = pack({**head, "parameters": {"timeout": 250_000}})
        second = await client.post(INFER, content=body, headers=headers)
        served.engine.hold.set()
        assert (await first).status_code == 200
        return second


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path", ["/v2/trace/setting", "/v2/models/bands/trace/setting", "/v2/logging"]
)
def test_settings_of_triton_are_refused_by_name(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (501, "unsupported")
    assert "settings are not supported" in answer.json()["error"]


def test_server_metadata_lists_what_is_there(http: httpx.Client) -> None:
    extensions = http.get("/v2").json()["extensions"]
    assert {"binary_tensor_data", "statistics", "model_repository"} <= set(extensions)
    # The setting is off here.
    assert "system_shared_memory" not in extensions


def test_the_configuration_has_its_defaults_and_numbers(http: httpx.Client) -> None:
    config = http.get("/v2/models/bands/config").json()
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["input"][0]["dims"] == [32, 48, 3]
    assert config["dynamic_batching"]["preferred_batch_size"] == [4]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert config["instance_group"][0]["count"] == 1
    assert config["backend"] == "onnxruntime"
    assert config["parameters"]["accuracy"] == {"string_value": "none: a fake"}


def test_the_index_is_always_there(http: httpx.Client) -> None:
    for body in (b"", b"{}", b'{"ready": true}'):
        answer = http.post("/v2/repository/index", content=body)
        assert answer.json() == [{"name": "bands", "version": "1", "state": "READY"}]
    answer = http.post("/v2/repository/index", content=b'{"ready": 1}')
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_tritonclients_compression_and_raw_answers(served: Served) -> None:
    with triton.InferenceServerClient(served.http) as client:
        item = triton.InferInput("image", list(PIXELS.shape), "UINT8")
        item.set_data_from_numpy(PIXELS)
        for encoding in ("gzip", "deflate"):
            result = client.infer(
                "bands", [item],
                request_compression_algorithm=encoding,
                response_compression_algorithm=encoding,
            )  # fmt: skip
            np.testing.assert_array_equal(result.as_numpy("mask")[0], MASK)
        pending = [client.async_infer("bands", [item], request_id=str(i)) for i in range(3)]
        assert [p.get_result().get_response()["id"] for p in pending] == ["0", "1", "2"]


async def test_tritonclients_asyncio_client(served: Served) -> None:
    client = triton_aio.InferenceServerClient(served.http)
    try:
        assert await client.is_model_ready("bands")
        item = triton_aio.InferInput("image", list(PIXELS.shape), "UINT8")
        item.set_data_from_numpy(PIXELS)
        results = await asyncio.gather(*(client.infer("bands", [item]) for _ in range(3)))
        for result in results:
            np.testing.assert_array_equal(result.as_numpy("mask")[0], MASK)
    finally:
        await client.close()
