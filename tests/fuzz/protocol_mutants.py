"""Mutants of every message that the server takes: HTTP heads, bodies and options, gRPC messages.

Each is made of a good request by changing what its format is made of; many are answered with 200.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

from band_model import MODEL_SIZE, bands, encode
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from segserve_client.proto import segserve_pb2
from tritonclient.grpc import service_pb2

HEIGHT, WIDTH = MODEL_SIZE.height, MODEL_SIZE.width
PIXELS = bands(HEIGHT, WIDTH).tobytes()
IMAGE = encode(bands(HEIGHT, WIDTH))
# Loaded and unloaded by mutants; "bands" is what good requests go to.
SPARE = "spare"
REGION_KEY, REGION_BYTES = "/segserve_fuzz", len(PIXELS)
LENGTH = "Inference-Header-Content-Length"
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class HttpMutant:
    """Bytes of one connection; ``framed`` where the head is sound, so an answer must come."""

    data: bytes
    framed: bool = True


@dataclass(frozen=True)
class GrpcMutant:
    """Serialised messages for one method."""

    method: str
    messages: tuple[bytes, ...]
    streams_in: bool
    streams_out: bool


WORDS = (
    "bands", SPARE, "image", "mask", "logits", "confidence", "png", "raw", "1", "-1", "01", "²", "",
    "9" * 5000, "UINT8", "BYTES", "FP32", "BOOL", "flip", "0.75", "1e9", "nan", "raw,stats",
    "overlay", "polygons", "rle", "jpeg", "true", "false", "model", "original", "timeout",
    "priority", "binary_data", "binary_data_output", "binary_data_size", "shared_memory_region",
    "shared_memory_byte_size", "shared_memory_offset", "region", REGION_KEY, "/", "/../etc/passwd",
    "aGk=", "é\0", "\ud800", "日本", "x" * 300, "data:image/png;base64,aGk=", "a\r\nb: c",
)  # fmt: skip
INTEGERS = (
    0, 1, 2, 3, 4, 8, HEIGHT, WIDTH, -1, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63,
    2**64, 10**30, -(2**63) - 1,
)  # fmt: skip


def text(chance: random.Random) -> str:
    """A word that means something here, or none."""
    if chance.random() < 0.8:
        return chance.choice(WORDS)
    return "".join(chr(chance.choice((9, 65, 97, 0xE9, 0x4E2D, 0x1F600))) for _ in range(4))


def value(chance: random.Random, depth: int = 0) -> Json:
    """Any JSON, small."""
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return text(chance)
    if kind == 2:
        return chance.choice(INTEGERS)
    if kind == 3:
        return chance.choice((None, True, False, 1.5, 1e308, float("inf"), float("nan"), -0.0))
    if kind < 6:
        return chance.randrange(-2, 300)
    if kind == 6:
        return {text(chance): value(chance, depth + 1) for _ in range(chance.randrange(4))}
    count = chance.choice((0, 1, 2, 5, 2000 if depth == 0 else 3))
    one = value(chance, depth + 1)
    return [one if chance.random() < 0.7 else value(chance, depth + 1) for _ in range(count)]


def changed(chance: random.Random, found: Json, times: int) -> Json:
    """``found`` with so many places replaced, added or taken away."""
    whole: list[Json] = [found]
    for _ in range(times):
        place: list[Json] | dict[str, Json] = whole
        while True:
            inner = place.values() if isinstance(place, dict) else place
            deeper = [item for item in inner if isinstance(item, (dict, list)) and item]
            if not deeper or (place is not whole and chance.random() < 0.35):
                break
            place = chance.choice(deeper)
        if isinstance(place, dict):
            key = chance.choice((*place, text(chance)))
            if chance.random() < 0.3:
                place.pop(key, None)
            else:
                place[key] = value(chance, 1)
        elif place is not whole or chance.random() < 0.1:
            index = chance.randrange(len(place))
            if chance.random() < 0.3:
                place.insert(index, value(chance, 1))
            else:
                place[index] = value(chance, 1)
    return whole[0]


def http(
    path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = (), method: str = "POST"
) -> bytes:
    """A sound request that closes the connection behind it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body


def dumps(found: Json) -> bytes:
    """JSON, with NaN and infinity as Python writes them."""
    return json.dumps(found).encode("utf-8", "surrogatepass")


def scrambled(chance: random.Random, data: bytes) -> bytes:
    """A few bytes flipped, cut out, doubled or the end cut off."""
    if not data:
        return data
    found, place = bytearray(data), chance.randrange(len(data))
    kind = chance.randrange(4)
    if kind == 0:
        for _ in range(chance.randint(1, 6)):
            found[chance.randrange(len(found))] = chance.randrange(256)
    elif kind == 1:
        del found[place : place + chance.randint(1, 30)]
    elif kind == 2:
        found[place:place] = found[place : place + chance.randint(1, 30)] * chance.choice(
            (1, 1, 40)
        )
    else:
        del found[place:]
    return bytes(found)


# Open Inference Protocol over HTTP --------------------------------------------------------------


def _tensor(chance: random.Random) -> dict[str, Json]:
    """A JSON tensor that is small and right, of an encoded image or of pixels."""
    if chance.random() < 0.3:
        return {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}
    return {
        "name": "image", "shape": [1, HEIGHT, WIDTH, 3], "datatype": "UINT8", "data": list(PIXELS),
    }  # fmt: skip


def infer_json(chance: random.Random) -> HttpMutant:
    """Inference, all of it JSON."""
    request: Json = {
        "id": "a",
        "parameters": {"priority": 1},
        "inputs": [_tensor(chance)],
        "outputs": [{"name": "mask", "parameters": {"binary_data": True}}],
    }
    body = dumps(changed(chance, request, chance.choice((0, 1, 1, 2, 4))))
    if chance.random() < 0.1:
        body = scrambled(chance, body)
    headers = (("Content-Type", "application/json"),)
    return HttpMutant(http(_infer_path(chance), body, headers))


def _infer_path(chance: random.Random) -> str:
    if chance.random() < 0.9:
        return "/v2/models/bands/infer"
    version = chance.choice(("1", "0", "x", "%C2%B2", "9" * 5000))
    return f"/v2/models/{quote(text(chance), errors='replace')}/versions/{version}/infer"


def infer_binary(chance: random.Random) -> HttpMutant:
    """Inference with binary tensors behind the JSON, and raw bodies."""
    tensor: dict[str, Json] = {
        "name": "image", "shape": [1, HEIGHT, WIDTH, 3], "datatype": "UINT8",
        "parameters": {"binary_data_size": len(PIXELS)},
    }  # fmt: skip
    data = PIXELS
    if chance.random() < 0.4:
        data = chance.choice((len(IMAGE), 0, 2**32 - 1, 5)).to_bytes(4, "little") + IMAGE
        tensor |= {"shape": [1], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": len(data)}
    request: Json = {"inputs": [tensor], "outputs": [{"name": "mask"}],
                     "parameters": {"binary_data_output": True}}  # fmt: skip
    head = dumps(changed(chance, request, chance.choice((0, 1, 1, 2))))
    if chance.random() < 0.3:
        data = scrambled(chance, data)
    length = str(len(head))
    if chance.random() < 0.25:
        length = chance.choice(
            ("0", "-1", "+1", "x", "9" * 5000, "1e3", "01", str(len(head) + 1), " ")
        )
    body = head + data if length != "0" or chance.random() < 0.5 else data
    return HttpMutant(http(_infer_path(chance), body, ((LENGTH, length),)))


def control(chance: random.Random) -> HttpMutant:
    """Repository, shared memory and everything else that takes a small JSON body."""
    path, request = chance.choice(
        (
            ("repository/index", {"ready": True}),
            (f"repository/models/{SPARE}/load", {"parameters": {}}),
            (f"repository/models/{SPARE}/unload", {"parameters": {"unload_dependents": True}}),
            ("repository/models/nope/load", {}),
            ("systemsharedmemory/region/region/register",
             {"key": REGION_KEY, "offset": 0, "byte_size": REGION_BYTES}),
            ("systemsharedmemory/region/region/unregister", {}),
            ("systemsharedmemory/unregister", {}),
            ("cudasharedmemory/region/region/register",
             {"raw_handle": {"b64": "aGk="}, "device_id": 0, "byte_size": 4}),
            ("cudasharedmemory/unregister", {}),
            ("trace/setting", {"trace_level": ["OFF"]}),
            ("logging", {"log_verbose_level": 1}),
        )
    )  # fmt: skip
    body = dumps(changed(chance, request, chance.choice((0, 1, 1, 2))))
    if chance.random() < 0.2:
        body = scrambled(chance, body)
    if chance.random() < 0.15:
        path = path.replace("region/region", f"region/{quote(text(chance), errors='replace')}")
    method = chance.choice(("POST",) * 8 + ("GET", "PUT"))
    return HttpMutant(http(f"/v2/{path}", body, method=method))


# segment ----------------------------------------------------------------------------------------


def multipart(chance: random.Random) -> HttpMutant:
    """Forms: boundaries, part headers, files and fields."""
    boundary = chance.choice(("x", "-" * 60, "a b", "x" * 300, '"', "é", ""))
    name = chance.choice(('filename="a.png"', "filename*=UTF-8''%e2%82%ac.png", "filename=a", ""))
    parts = [
        (f'Content-Disposition: form-data; name="file"; {name}', IMAGE),
        ('Content-Disposition: form-data; name="format"', chance.choice((b"raw", b"png", b"\xff"))),
    ]
    chance.shuffle(parts)
    if chance.random() < 0.3:
        parts *= chance.choice((2, 60))
    if chance.random() < 0.3:
        parts.pop()
    body = b""
    for head, content in parts:
        extra = chance.choice(
            ("", "\r\nContent-Type: image/png", "\r\nX: " + "y" * 9000, "\r\n\tfolded")
        )
        body += f"--{boundary}\r\n{head}{extra}\r\n\r\n".encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    if chance.random() < 0.5:
        body = scrambled(chance, body)
    kind = f"multipart/form-data; boundary={boundary}"
    if chance.random() < 0.3:
        kind = chance.choice(
            ("multipart/form-data", f'multipart/form-data; boundary="{boundary}"; x=y',
             f"MULTIPART/Form-Data;boundary={boundary}", "multipart/mixed; boundary=x", ";;;=")
        )  # fmt: skip
    return HttpMutant(http("/v2/models/bands/segment", body, (("Content-Type", kind),)))


OPTIONS = {
    "format": ("png", "raw", "npy", "stats", "rle", "polygons", "overlay", "confidence", "raw,png"),
    "size": ("original", "model"),
    "smooth": ("true", "false"),
    "confidence": ("true", "false"),
    "classes": ("0,2", "band1", "9"),
    "tta": ("flip", "flip,0.75", "4", "0.25"),
    "image": ("png", "jpeg"),
    "quality": ("90", "0", "101"),
    "opacity": ("0.5", "nan", "-1"),
    "legend": ("true",),
    "tolerance": ("0", "2.5", "1e400"),
    "min_area": ("0", "100", "-1"),
}


def options(chance: random.Random) -> HttpMutant:
    """The query and headers of ``segment``."""
    pairs = []
    for _ in range(chance.randrange(5)):
        name = chance.choice((*OPTIONS, "colour", ""))
        known = OPTIONS.get(name, ("x",))
        chosen = chance.choice(known) if chance.random() < 0.7 else text(chance)
        pairs.append(f"{quote(name)}={quote(chosen, errors='replace')}")
    query = chance.choice(("&", "&", ";")).join(pairs)
    if chance.random() < 0.1:
        query += chance.choice(("%", "%zz", "&&&", "=", "%00", "%ff"))
    headers = [
        ("Accept", chance.choice(("*/*", "image/png;q=0.5, */*;q=0", ",;q=", "application/json",
                                  "a/b;q=1e9", "x" * 2000))),
        ("Content-Type", chance.choice(("image/png", "application/octet-stream", "a/b", ""))),
    ]  # fmt: skip
    if chance.random() < 0.3:
        headers.append(
            ("X-Timeout-Ms", chance.choice(("0", "60000", "1e999", "nan", "-1", "²", "9" * 5000)))
        )
    if chance.random() < 0.2:
        headers.append(
            ("Accept-Encoding", chance.choice(("gzip", "identity;q=0", "*;q=0", "br, x")))
        )
    if chance.random() < 0.2:
        headers.append(
            ("Content-Encoding", chance.choice(("gzip", "identity", "x-gzip, gzip", "x")))
        )
    body = IMAGE if chance.random() < 0.9 else scrambled(chance, IMAGE)
    path = "/v2/models/bands/segment?" + query
    return HttpMutant(http(path, body, tuple(headers)))


def heads(chance: random.Random) -> HttpMutant:
    """Request lines and headers that are not sound: anything may come of them but harm."""
    method = chance.choice(
        ("POST",) * 6 + ("GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "PRI", "é", "")
    )
    target = chance.choice(
        ("/v2/models/bands/segment?format=raw",) * 5
        + ("/v2/health/ready", "*", "http://h/v2", "//", "/%00", "/\xff", "/" + "a" * 40_000, "")
    )
    version = chance.choice(
        ("HTTP/1.1",) * 6 + ("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.10", "")
    )
    lines = [f"{method} {target} {version}".rstrip()]
    headers = [
        ("Host", "localhost"),
        ("Content-Length", str(len(IMAGE))),
        ("Content-Type", "image/png"),
    ]
    for _ in range(chance.randrange(4)):
        headers.insert(
            chance.randrange(len(headers) + 1),
            chance.choice(
                (
                    ("Content-Length", chance.choice(("0", "5", "+5", "0005", "-1", "1e2", "5,5",
                                                      "9" * 30, "²", "", "0x10"))),
                    ("Transfer-Encoding", chance.choice(("chunked", "gzip, chunked", "identity",
                                                         "chunked, chunked", "\tchunked", "x"))),
                    ("Host", chance.choice(("other", "", "a:b:c", "[::1]"))),
                    ("Expect", chance.choice(("100-continue", "x"))),
                    ("Connection", chance.choice(("close", "keep-alive, Upgrade, HTTP2-Settings"))),
                    ("Upgrade", chance.choice(("h2c", "websocket", "TLS/1.0"))),
                    ("Trailer", "x"),
                    ("X-Request-Id", chance.choice(("a", "\x7f", "é", "a" * 20_000))),
                    ("Content-Encoding", chance.choice(("gzip", "deflate", "br"))),
                    ("traceparent", chance.choice((f"00-{0:032}-{0:016}-01", "x"))),
                    ("Authorization", chance.choice(("Bearer x", "Bearer", "é"))),
                    (chance.choice(("", "a b", "a:", "\0", "X" * 5000)), "v"),
                )
            ),
        )  # fmt: skip
    if chance.random() < 0.2:
        headers.pop(chance.randrange(len(headers)))
    end = chance.choice(("\r\n",) * 6 + ("\n", "\r", "\r\n "))
    blank = chance.choice((": ",) * 6 + (":", " : ", ":\t", "="))
    lines += [f"{name}{blank}{value}" for name, value in headers]
    data = end.join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
    body = IMAGE
    if any(name == "Transfer-Encoding" for name, _ in headers):
        size = chance.choice((f"{len(IMAGE):x}", "ffffffffffffffff", "-1", "5;x=" + "y" * 100, "0"))
        body = (
            size.encode()
            + b"\r\n"
            + IMAGE
            + b"\r\n0\r\n"
            + chance.choice((b"\r\n", b"X: y\r\n\r\n", b""))
        )
    data += body
    return HttpMutant(scrambled(chance, data) if chance.random() < 0.3 else data, framed=False)


# gRPC -------------------------------------------------------------------------------------------


def _services() -> tuple[ServiceDescriptor, ...]:
    files = (segserve_pb2, service_pb2, health_pb2)
    return tuple(service for file in files for service in file.DESCRIPTOR.services_by_name.values())


def _methods() -> tuple[tuple[str, type[Message], bool, bool], ...]:
    found = []
    for service in _services():
        for method in service.methods:
            shape = method.client_streaming, method.server_streaming
            path = f"/{service.full_name}/{method.name}"
            found.append((path, GetMessageClass(method.input_type), *shape))
    return tuple(found)


METHODS = _methods()
INFERENCE = tuple(
    method for method in METHODS if any(word in method[0] for word in ("Infer", "Segment"))
)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def grpc_message(chance: random.Random) -> GrpcMutant:
    """One call of any method of any service."""
    methods = INFERENCE if chance.random() < 0.5 else METHODS
    path, kind, streams_in, streams_out = chance.choice(methods)
    count = chance.choice((0, 1, 1, 2, 4)) if streams_in else 1
    messages = []
    for _ in range(count):
        message = _good(path, kind)
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            _spoil(chance, message)
        # "bands" stays loaded: other mutants and the check between them need it.
        if path.endswith("ModelUnload") and getattr(message, "model_name", "") == "bands":
            message.model_name = SPARE  # type: ignore[attr-defined]
        data = message.SerializeToString(deterministic=True)
        messages.append(_wire_changed(chance, data) if chance.random() < 0.35 else data)
    return GrpcMutant(path, tuple(messages), streams_in, streams_out)


def _good(path: str, kind: type[Message]) -> Message:
    message = kind()
    if "Segmenter/Segment" in path:
        return segserve_pb2.SegmentRequest(model="bands", image=IMAGE, format="raw")
    if path.endswith("Infer"):
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="image", datatype="UINT8", shape=[1, HEIGHT, WIDTH, 3]
        )
        wanted = service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="mask")
        return service_pb2.ModelInferRequest(
            model_name="bands", inputs=[tensor], outputs=[wanted], raw_input_contents=[PIXELS]
        )
    for name in ("model_name", "name"):
        if name in message.DESCRIPTOR.fields_by_name and "Shared" not in path:
            setattr(message, name, SPARE if "Unload" in path else "bands")
    if "SystemSharedMemoryRegister" in path:
        return kind(name="region", key=REGION_KEY, byte_size=REGION_BYTES)
    return message


def _scalar(chance: random.Random, field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.choice((IMAGE, PIXELS, b"", IMAGE[:50], chance.randbytes(40)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return text(chance).encode("utf-8", "replace").decode()
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return chance.choice((0.0, 1.0, 0.5, -1.0, 1e30, float("inf"), float("nan")))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return chance.randrange(6)
    low, high = _RANGES[field.cpp_type]
    return min(max(chance.choice(INTEGERS), low), high)


def _spoil(chance: random.Random, message: Message, depth: int = 0) -> None:
    """Clears, sets or adds to a field of a message, or of those inside it."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = chance.choice(fields)
    inner = getattr(message, field.name)
    if chance.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is None:
        if field.is_repeated:
            one = _scalar(chance, field)
            inner.extend([one] * chance.choice((1, 1, 2, 3, 5000)))
        else:
            setattr(message, field.name, _scalar(chance, field))
    elif depth >= 3:
        return
    elif field.message_type.GetOptions().map_entry:
        key, held = field.message_type.fields
        name = _scalar(chance, key)
        if held.message_type is not None:
            _spoil(chance, inner[name], depth + 1)
        else:
            inner[name] = _scalar(chance, held)
    elif field.is_repeated:
        count = chance.choice((0, 1, 1, 2, 2000))
        for _ in range(count):
            inner.add()
        if inner:
            _spoil(chance, chance.choice((inner[0], inner[-1])), depth + 1)
    else:
        inner.SetInParent()
        _spoil(chance, inner, depth + 1)


def _wire_changed(chance: random.Random, data: bytes) -> bytes:
    """Changes that no library would write: lengths beyond the end, unknown fields, groups."""
    kind = chance.randrange(6)
    if kind == 0:
        return data + chance.choice(
            (b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x0c", b"\x08" + b"\xff" * 11,
             b"\xfa\xff\xff\xff\x0f\x02hi", b"\x00\x00", b"\x0a\x80\x80\x80\x80\x08")
        )  # fmt: skip
    if kind == 1:
        return data * chance.choice((2, 3))
    if kind == 2:
        number, wire = chance.randrange(1, 20), chance.randrange(6)
        return bytes([number << 3 | wire]) + data
    return scrambled(chance, data)


KINDS: dict[str, Callable[[random.Random], HttpMutant | GrpcMutant]] = {
    "infer_json": infer_json,
    "infer_binary": infer_binary,
    "control": control,
    "multipart": multipart,
    "options": options,
    "heads": heads,
    "grpc": grpc_message,
}


def mutant(kind: str, number: int) -> HttpMutant | GrpcMutant:
    """The request of that number: the same at each call."""
    return KINDS[kind](random.Random(f"{kind} {number}"))
