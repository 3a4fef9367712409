"""Mutants of every message that the server takes: HTTP heads, bodies and options, gRPC messages.

Each is made of a good request by changing what its format is made of; many are answered with 200.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from grpc_mutants import GrpcMutant, grpc_message
from mutant_values import (
    HEIGHT,
    IMAGE,
    PIXELS,
    REGION_BYTES,
    REGION_KEY,
    SPARE,
    WIDTH,
    Json,
    changed,
    dumps,
    scrambled,
    text,
)

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class HttpMutant:
    """Bytes of one connection; ``framed`` where the head is sound, so an answer must come."""

    data: bytes
    framed: bool = True


def http(
    path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = (), method: str = "POST"
) -> bytes:
    """A sound request that closes the connection behind it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body


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
