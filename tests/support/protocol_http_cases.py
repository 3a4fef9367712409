"""HTTP requests of the Open Inference Protocol that two servers are compared by.

The names are those that the table in docs/protocol.md speaks of.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LENGTH = "Inference-Header-Content-Length"
Json = dict[str, object]


@dataclass(frozen=True)
class HttpCase:
    """``names`` must stand in both servers' errors, where both answer one."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()


def http_cases(image: npt.NDArray[np.uint8]) -> list[HttpCase]:
    """For a repository of ``icnet``, ``twin`` (unloaded and loaded on the way) and ``broken``."""
    return [*_http_facts(), *_http_control(), *_http_infer(image), *_http_mistakes(image)]


def _http_facts() -> list[HttpCase]:
    paths = {
        "server metadata": "",
        "live": "/health/live",
        "ready while a model is broken": "/health/ready",
        "an unknown path": "/nowhere",
        "statistics of an unknown model": "/models/nope/stats",
        "statistics of an unknown version": "/models/icnet/versions/9/stats",
        "system shared memory status": "/systemsharedmemory/status",
        "status of an unknown region": "/systemsharedmemory/region/r/status",
        "CUDA shared memory status": "/cudasharedmemory/status",
        "status of an unknown CUDA region": "/cudasharedmemory/region/r/status",
        "trace settings": "/trace/setting",
        "log settings": "/logging",
    }
    for model, of in (
        ("icnet", "a model"),
        ("nope", "an unknown model"),
        ("broken", "a broken model"),
    ):
        paths[f"metadata of {of}"] = f"/models/{model}"
        paths[f"ready of {of}"] = f"/models/{model}/ready"
        paths[f"config of {of}"] = f"/models/{model}/config"
    for version, of in (("1", "a version"), ("9", "an unknown version"), ("x", "version x")):
        for suffix, what in (("", "metadata"), ("/ready", "ready"), ("/config", "config")):
            paths[f"{what} of {of}"] = f"/models/icnet/versions/{version}{suffix}"
    cases = [HttpCase(f"http {name}", "GET", f"/v2{path}") for name, path in paths.items()]
    return [
        *cases,
        HttpCase("http another method", "GET", "/v2/models/icnet/infer"),
    ]


def _http_control() -> list[HttpCase]:
    def post(name: str, path: str, body: bytes = b"{}", *names: str) -> HttpCase:
        return HttpCase(f"http {name}", "POST", f"/v2/{path}", body, names=names)

    twin = "repository/models/twin"
    return [
        post("index", "repository/index"),
        post("index without a body", "repository/index", b""),
        post("index of what is ready", "repository/index", b'{"ready":true}'),
        post("index with broken JSON", "repository/index", b"{"),
        post("load of an unknown model", "repository/models/nope/load", b"{}", "nope"),
        post("load of a broken model", "repository/models/broken/load", b"{}", "broken", "1"),
        post("unload of an unknown model", "repository/models/nope/unload"),
        post("unload", f"{twin}/unload"),
        HttpCase("http ready of an unloaded model", "GET", "/v2/models/twin/ready"),
        HttpCase("http metadata of an unloaded model", "GET", "/v2/models/twin", names=("twin",)),
        post("index after unload", "repository/index"),
        post("unload once more", f"{twin}/unload"),
        post("load", f"{twin}/load"),
        HttpCase("http ready of a loaded model", "GET", "/v2/models/twin/ready"),
        post("load with a configuration", f"{twin}/load",
             b'{"parameters":{"config":"{\\"max_batch_size\\":4}"}}'),
        post("load once more", f"{twin}/load"),
        post("registration without a key", "systemsharedmemory/region/r/register",
             b'{"byte_size":10}', "key"),
        post("registration of what is not there", "systemsharedmemory/region/r/register",
             b'{"key":"/segserve_nope","byte_size":10}', "segserve_nope"),
        post("unregistration of an unknown region", "systemsharedmemory/region/r/unregister", b""),
        post("unregistration of all", "systemsharedmemory/unregister", b""),
        post("CUDA registration", "cudasharedmemory/region/r/register",
             b'{"raw_handle":{"b64":"AAAA"},"device_id":0,"byte_size":10}'),
        post("CUDA unregistration", "cudasharedmemory/unregister", b""),
    ]  # fmt: skip


def _input(image: npt.NDArray[np.uint8], **changes: object) -> Json:
    size = {"binary_data_size": image.nbytes}
    return {"name": "image", "shape": list(image.shape), "datatype": "UINT8", "parameters": size,
            **changes}  # fmt: skip


def _pack(
    name: str,
    head: Json,
    data: bytes,
    *names: str,
    path: str = "models/icnet/infer",
    **headers: str,
) -> HttpCase:
    text = json.dumps(head).encode()
    headers = {LENGTH: str(len(text)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    return HttpCase(f"http {name}", "POST", f"/v2/{path}", text + data, headers, names)


def _http_infer(image: npt.NDArray[np.uint8]) -> list[HttpCase]:
    data, inputs = image.tobytes(), [_input(image)]
    mask: Json = {"name": "mask", "parameters": {"binary_data": True}}
    logits: Json = {"name": "logits", "parameters": {"binary_data": True}}
    plain: Json = {"name": "mask"}
    one: Json = {"inputs": inputs, "outputs": [mask]}
    nested = {"name": "image", "shape": list(image.shape), "datatype": "UINT8"}
    two = np.concatenate([image, image[:, ::-1]])
    packed = _pack("", one, data)
    unwanted: Json = {"name": "mask", "parameters": {"classification": 2}}
    return [
        _pack("infer", one, data),
        _pack("infer with an id", {**one, "id": "seven"}, data),
        _pack("infer of a version", one, data, path="models/icnet/versions/1/infer"),
        _pack("infer of two images", {**one, "inputs": [_input(two)]}, two.tobytes()),
        _pack("infer of all outputs", {"inputs": inputs}, data),
        _pack("infer with binary_data_output",
              {"inputs": inputs, "parameters": {"binary_data_output": True}}, data),
        _pack("infer with JSON and binary outputs", {"inputs": inputs, "outputs": [plain, logits]},
              data),
        _pack("infer with outputs in another order", {"inputs": inputs, "outputs": [logits, mask]},
              data),
        _pack("infer with an output twice", {"inputs": inputs, "outputs": [mask, mask]}, data),
        _pack("infer with parameters", {**one, "parameters": {"priority": 9, "timeout": 10**7,
              "mine": "x"}}, data),
        _pack("infer with a sequence", {**one, "parameters": {"sequence_id": 7,
              "sequence_start": True, "sequence_end": True}}, data),
        _pack("infer with classification", {"inputs": inputs, "outputs": [unwanted]}, data),
        _pack("infer with an unknown field", {**one, "color": 1}, data),
        HttpCase("http infer from JSON", "POST", "/v2/models/icnet/infer", json.dumps(
            {"inputs": [{**nested, "data": image.tolist()}], "outputs": [plain]}).encode()),
        HttpCase("http infer from a raw body", "POST", "/v2/models/icnet/infer", data,
                 {LENGTH: "0"}),
        HttpCase("http infer from gzip", "POST", packed.path, gzip.compress(packed.body),
                 {**packed.headers, "Content-Encoding": "gzip"}),
        _pack("infer into gzip", one, data, Accept_Encoding="gzip"),
        _pack("infer into deflate", one, data, Accept_Encoding="deflate, gzip;q=0.5"),
        _pack("infer into something unknown", one, data, Accept_Encoding="br"),
    ]  # fmt: skip


def _http_mistakes(image: npt.NDArray[np.uint8]) -> list[HttpCase]:
    data, right = image.tobytes(), _input(image)
    outputs: list[Json] = [{"name": "mask", "parameters": {"binary_data": True}}]

    def one(name: str, changes: Mapping[str, object], sent: bytes = data, *names: str) -> HttpCase:
        item = {k: v for k, v in {**right, **changes}.items() if v is not None}
        return _pack(f"infer with {name}", {"inputs": [item], "outputs": outputs}, sent, *names)

    def whole(name: str, changes: Json, sent: bytes = data, *names: str, **more: str) -> HttpCase:
        head = {"inputs": [right], "outputs": outputs, **changes}
        return _pack(f"infer {name}", head, sent, *names, **more)

    def body(name: str, content: bytes, **headers: str) -> HttpCase:
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        return HttpCase(f"http infer {name}", "POST", "/v2/models/icnet/infer", content, headers)

    no_data = {"data": None, "parameters": None}
    region = {"shared_memory_region": "r", "shared_memory_byte_size": len(data)}
    five = {"shape": [5, *image.shape[1:]], "parameters": {"binary_data_size": 5 * len(data)}}
    return [
        whole("of an unknown model", {}, data, "nope", path="models/nope/infer"),
        whole("of a broken model", {}, data, "broken", path="models/broken/infer"),
        whole("of an unknown version", {}, data, "icnet", "9",
              path="models/icnet/versions/9/infer"),
        whole("for an unknown output", {"outputs": [{"name": "depth"}]}, data, "depth", "icnet"),
        whole("with a reserved parameter", {"parameters": {"triton_x": 1}}, data, "triton_"),
        whole("with a parameter of an object", {"parameters": {"mine": {"a": 1}}}, data, "mine"),
        whole("with malformed JSON: timeout of text", {"parameters": {"timeout": "x"}}),
        whole("with malformed JSON: negative priority", {"parameters": {"priority": -1}}),
        whole("with malformed JSON: id of a number", {"id": 7}),
        whole("with malformed JSON: outputs of an object", {"outputs": {}}),
        one("another shape", {"shape": [1, 4, 4, 3], "parameters": {"binary_data_size": 48}},
            bytes(48), "image", "icnet"),
        one("too few dimensions", {"shape": list(image.shape[1:])}),
        one("no dimensions", {"shape": []}, data, "image"),
        one("another datatype", {"datatype": "FP32", "parameters":
            {"binary_data_size": 4 * len(data)}}, data * 4, "image", "FP32", "UINT8"),
        one("an unknown datatype", {"datatype": "UINT9"}, data, "image"),
        one("another name", {"name": "foo"}, data, "foo", "icnet"),
        one("too large a batch", five, data * 5, "icnet", "4"),
        one("an empty batch", {"shape": [0, *image.shape[1:]], "parameters":
            {"binary_data_size": 0}}, b"", "image"),
        one("too few bytes", {"parameters": {"binary_data_size": 10}}, data[:10], "image", "10"),
        one("a size beyond the body", {"parameters": {"binary_data_size": len(data) + 5}}, data,
            "image", "5"),
        one("bytes left over", {}, data + b"xx"),
        one("no data", no_data, b"", "data", "binary_data_size"),
        one("data twice", {"data": [0]}, data, "data", "binary_data_size"),
        one("an unknown region", {"parameters": region}, b"", "r"),
        one("malformed JSON: a negative dimension", {"shape": [-1, *image.shape[1:]]}),
        one("malformed JSON: a dimension of text", {"shape": ["1", *image.shape[1:]]}),
        one("malformed JSON: no shape", {"shape": None}),
        one("malformed JSON: no name", {"name": None}),
        one("malformed JSON: negative size", {"parameters": {"binary_data_size": -1}}),
        one("malformed JSON: data too short", {**no_data, "data": [0] * 10}, b""),
        one("malformed JSON: data of text", {**no_data, "data": ["a"] * len(data)}, b""),
        one("values above 255", {**no_data, "data": [300] + [0] * (len(data) - 1)}, b""),
        _pack("infer of no inputs", {"inputs": [], "outputs": outputs}, b"", "image", "icnet"),
        _pack("infer of two inputs", {"inputs": [right, {**right, "name": "foo"}],
              "outputs": outputs}, data * 2, "foo", "image", "icnet"),
        _pack("infer of one input twice", {"inputs": [right, right], "outputs": outputs}, data * 2,
              "image"),
        body("with malformed JSON: no inputs", b'{"id":"x"}'),
        body("with malformed JSON: an open brace", b"{"),
        body("with malformed JSON: a list", b"[]"),
        body("without a body", b""),
        body("with a header length beyond the body", b"{}", **{LENGTH: "99"}),
        body("with a negative header length", b"{}", **{LENGTH: "-1"}),
        body("from what is no gzip", b"{}", Content_Encoding="gzip"),
        body("from an unknown encoding", b"{}", Content_Encoding="br"),
        HttpCase("http infer of version x", "POST", "/v2/models/icnet/versions/x/infer", b"{}"),
    ]  # fmt: skip
