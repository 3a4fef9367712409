"""Requests that were made to stall, fill or end a server, each with the answers that are right.

An attack is sent over real sockets to a server's HTTP or gRPC port on 127.0.0.1. What it returns is
the answer's HTTP status or the name of its gRPC code, "closed" where the server hung up.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc
import httpx
import numpy as np
from PIL import Image

MILLION = 1_000_000
MODEL = "/v2/models/bands"
INFER = "/inference.GRPCInferenceService/ModelInfer"
SEGMENT = "/segserve.v1.Segmenter/Segment"
INDEX = "/inference.GRPCInferenceService/RepositoryIndex"
REFUSED = frozenset({"400", "413", "415", "422", "429", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})


# Seconds that another caller may wait for health.
LONGEST_WAIT_S = 0.1
# Receiving a message is gRPC's own work on the event loop, which copies it three times before
# anybody is asked: 83 ms of CPU for 64 MiB, 30 ms for 32 MiB (docs/security.md).
RECEIVE_WAIT_S = 0.4


@dataclass(frozen=True)
class Attack:
    """A name, what sends it to (http port, grpc port), and what is allowed.

    Attributes:
        allowed: answers.
        longest_wait_s: that another caller has to wait meanwhile.
    """

    name: str
    send: Callable[[int, int], str]
    allowed: frozenset[str] = REFUSED
    longest_wait_s: float = LONGEST_WAIT_S


def post(path: str, make: Callable[[], bytes], **headers: str) -> Callable[[int, int], str]:
    """One HTTP request; ``content_encoding="gzip"`` becomes a header of that name."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    def send(http: int, _grpc: int) -> str:
        try:
            answer = httpx.post(
                f"http://127.0.0.1:{http}{path}", content=make(), headers=names, timeout=90
            )
        except httpx.TransportError:
            return "closed"
        return str(answer.status_code)

    return send


def post_gzip(path: str, make: Callable[[], bytes]) -> Callable[[int, int], str]:
    """The same, compressed: some kilobytes on the wire."""
    return post(path, lambda: gzip.compress(make(), 6), content_encoding="gzip")


def call(
    method: str, make: Callable[[], bytes], *, gzipped: bool = False, timeout_s: float = 90.0
) -> Callable[[int, int], str]:
    """One unary gRPC call of raw bytes."""

    def send(_http: int, port: int) -> str:
        compression = grpc.Compression.Gzip if gzipped else None
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return _call(channel, method, make(), timeout_s, compression)

    return send


def _call(
    channel: grpc.Channel,
    method: str,
    message: bytes,
    timeout_s: float = 90.0,
    compression: grpc.Compression | None = None,
) -> str:
    try:
        channel.unary_unary(method)(message, timeout=timeout_s, compression=compression)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def jpeg_of_many_scans(count: int, side: int = 1024) -> bytes:
    """A progressive JPEG whose last scan is repeated: some bytes each, and one pass over it."""
    buffer = io.BytesIO()
    gray = np.zeros((side, side), np.uint8)
    Image.fromarray(gray).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def jpeg_of_many_segments(count: int) -> bytes:
    """A JPEG with empty APP1 segments before its image."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()[:2] + b"\xff\xe1\0\x02" * count + buffer.getvalue()[2:]


def png_with_chunk_behind_its_end(size: int) -> bytes:
    """A small PNG, and behind IEND a chunk that says it has ``size`` bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue() + struct.pack(">I", size) + b"zTXt" + bytes(20_000)


def apng_of_large_frames(side: int) -> bytes:
    """An animation whose second frame lies beyond the canvas."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body)
        )  # fmt: skip

    rows = zlib.compress(bytes((1 + 3 * 4) * 4))
    frame = struct.pack(">IIIIHHBB", side, side, 2, 2, 1, 10, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
            chunk(b"acTL", struct.pack(">II", 2, 0)),
            chunk(b"IDAT", rows),
            chunk(b"fcTL", struct.pack(">I", 0) + frame),
            chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(bytes((1 + 3 * side) * side))),
            chunk(b"IEND", b""),
        ]
    )


def together(count: int, send: Callable[[int, int], str]) -> Callable[[int, int], str]:
    """The same attack from ``count`` threads at once; the answers that differ, by comma."""

    def send_all(http: int, grpc_port: int) -> str:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(send(http, grpc_port)))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ",".join(sorted(set(found)))

    return send_all


def endless_trailers(http: int, _grpc: int) -> str:
    """A chunked body followed by trailers that go on; sends at most 64 MB."""
    with socket.create_connection(("127.0.0.1", http), 60) as connection:
        head = f"POST {MODEL}/segment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"1\r\nx\r\n0\r\n")
        line = b"".join(b"a%d: %s\r\n" % (index, b"b" * 50) for index in range(1000))
        with contextlib.suppress(OSError):
            for _ in range(64_000_000 // len(line)):
                connection.sendall(line)
        with contextlib.suppress(OSError):
            words = connection.recv(4096).split(b" ")
            return words[1].decode() if len(words) > 1 else "closed"
    return "closed"


def many_refused_messages(_http: int, port: int) -> str:
    """Twelve messages of 40 MB, each refused: none may be kept."""
    found = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        message = field(1, b"nothing") + field(3, bytes(40 * MILLION))
        for _ in range(12):
            found.add(_call(channel, SEGMENT, message))
    return ",".join(sorted(found))


def calls_without_message(_http: int, port: int) -> str:
    """A thousand calls of which none sends its message; then a good one must get through."""
    release = threading.Event()

    def silent() -> Iterator[bytes]:
        release.wait(60)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        opened = [channel.stream_unary(SEGMENT).future(silent(), timeout=60) for _ in range(1000)]
        try:
            return _call(channel, INDEX, b"", timeout_s=20.0)
        finally:
            for one in opened:
                one.cancel()
            release.set()


def many_watches(_http: int, port: int) -> str:
    """Three thousand health streams that need no key; then a good call must get through."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
            stack.enter_context(channel)
            for _ in range(300):
                stream = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
                stack.callback(stream.cancel)
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as own:
            return _call(own, INDEX, b"", timeout_s=20.0)


def _tensors(count: int) -> bytes:
    return field(1, b"bands") + b"\x2a\x00" * count


ONES = b"[" + b"1," * (4 * MILLION - 1) + b"1]"
STRINGS = json.dumps(["a" * 25_000, *[""] * 25_000]).encode()
TENSOR = b'{"inputs":[{"name":"image","shape":[1,32,48,3],"datatype":"UINT8","data":%s}]}'
FORM = "multipart/form-data; boundary=b"
PARTS = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 200_000 + b"--b--\r\n"

ATTACKS: Sequence[Attack] = (
    Attack(
        "JSON: inputs are ones", post_gzip(f"{MODEL}/infer", lambda: b'{"inputs":' + ONES + b"}")
    ),
    Attack(
        "JSON: outputs are ones", post_gzip(f"{MODEL}/infer", lambda: b'{"outputs":' + ONES + b"}")
    ),
    Attack(
        "JSON: a long shape",
        post_gzip(f"{MODEL}/infer", lambda: b'{"inputs":[{"name":"image","shape":' + ONES + b"}]}"),
    ),
    Attack("JSON: data of strings", post(f"{MODEL}/infer", lambda: TENSOR % STRINGS)),
    Attack("JSON: data of many numbers", post_gzip(f"{MODEL}/infer", lambda: TENSOR % ONES)),
    Attack(
        "JSON: deep data",
        post_gzip(f"{MODEL}/infer", lambda: TENSOR % (b"[" * MILLION + b"]" * MILLION)),
    ),
    Attack(
        "JSON: many parameters",
        post_gzip(
            f"{MODEL}/infer",
            lambda: (
                b'{"inputs":[],"parameters":{%s}}'
                % b",".join(b'"p%d":1' % i for i in range(MILLION))
            ),
        ),
    ),
    Attack(
        "JSON: unknown fields are ones",
        post_gzip(f"{MODEL}/infer", lambda: b'{"inputs":[],"x":' + ONES + b"}"),
    ),
    Attack(
        "JSON: control body", post_gzip("/v2/repository/index", lambda: b'{"ready":' + ONES + b"}")
    ),
    Attack(
        "JSON: load parameters",
        post_gzip("/v2/repository/models/bands/load", lambda: b'{"parameters":' + ONES + b"}"),
        REFUSED | {"501"},
    ),
    Attack("gzip bomb as an image", post_gzip(f"{MODEL}/segment", lambda: bytes(500 * MILLION))),
    Attack("form of 200,000 parts", post(f"{MODEL}/segment", lambda: PARTS, content_type=FORM)),
    Attack("endless trailers", endless_trailers, frozenset({"400", "408", "413", "431", "closed"})),
    Attack(
        "JPEG of many scans",
        together(3, post(f"{MODEL}/segment", lambda: jpeg_of_many_scans(5000))),
    ),
    Attack(
        "JPEG of many segments", post(f"{MODEL}/segment", lambda: jpeg_of_many_segments(100_000))
    ),
    Attack(
        "PNG with more behind its end",
        post(f"{MODEL}/segment", lambda: png_with_chunk_behind_its_end(0x7FFFFFF0)),
        REFUSED | {"200"},
    ),
    Attack(
        "APNG beyond its canvas",
        post(f"{MODEL}/segment", lambda: apng_of_large_frames(600)),
        REFUSED | {"200"},
    ),
    Attack("gRPC: empty inputs", call(INFER, lambda: _tensors(3 * MILLION))),
    Attack("gRPC: empty inputs, gzip", call(INFER, lambda: _tensors(3 * MILLION), gzipped=True)),
    Attack(
        "gRPC: empty outputs", call(INFER, lambda: field(1, b"bands") + b"\x32\x00" * (3 * MILLION))
    ),
    Attack(
        "gRPC: raw contents", call(INFER, lambda: field(1, b"bands") + b"\x3a\x00" * (3 * MILLION))
    ),
    Attack(
        "gRPC: contents of many numbers",
        call(
            INFER,
            lambda: (
                field(1, b"bands")
                + field(
                    5,
                    field(1, b"image")
                    + field(2, b"UINT8")
                    + field(5, field(4, b"\x01" * (20 * MILLION))),
                )
            ),
        ),
    ),
    Attack(
        "gRPC: empty parameters",
        call(INFER, lambda: field(1, b"bands") + b"\x22\x00" * (3 * MILLION)),
    ),
    Attack(
        "gRPC: fields of Segment",
        call(SEGMENT, lambda: b"".join(b"%c\x00" % (n << 3 | 2) for n in range(1, 16)) * 200_000),
    ),
    Attack(
        "gRPC: a long model name",
        call(INFER, lambda: field(1, b"a" * (50 * MILLION))),
        REFUSED | {"NOT_FOUND"},
        RECEIVE_WAIT_S,
    ),
    Attack(
        "gRPC: messages that are refused",
        many_refused_messages,
        REFUSED | {"NOT_FOUND", "INVALID_ARGUMENT,NOT_FOUND"},
        RECEIVE_WAIT_S,
    ),
    Attack(
        "gRPC: a shape of millions",
        call(
            INFER,
            lambda: (
                field(1, b"bands")
                + field(
                    5, field(1, b"image") + field(2, b"UINT8") + field(3, b"\x01" * (8 * MILLION))
                )
            ),
        ),
    ),
    Attack(
        "gRPC: pixels of two bytes each",
        call(
            INFER,
            lambda: (
                field(1, b"bands")
                + field(
                    5,
                    field(1, b"image")
                    + field(2, b"UINT8")
                    + field(3, b"\x01\x20\x30\x03")
                    + field(5, field(4, b"\xff\x01" * (8 * MILLION))),
                )
            ),
        ),
    ),
    Attack(
        "gRPC: a large message without a key",
        call("/grpc.health.v1.Health/Check", lambda: field(77, bytes(20 * MILLION))),
    ),
    Attack("gRPC: calls without a message", calls_without_message, frozenset({"OK"})),
    Attack("gRPC: many health streams", many_watches, frozenset({"OK"})),
)
