"""How much is answered while hundreds of callers ignore Retry-After.

    python -m benchmarks.studies.flood --callers 8,300

The server has one core to itself, with an engine that computes for a fixed time an image; the
callers have another. Each caller asks again as soon as it has its answer, whatever it says.
Numbers of callers take turns, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import uvloop

from benchmarks.machine import read_machine
from serving.engine import Prediction
from serving.imaging.geometry import Size
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine

SIZE = Size(352, 480)
CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 1
input {{ name: "image" data_type: TYPE_UINT8 dims: [ {h}, {w}, 3 ] }}
output {{ name: "mask" data_type: TYPE_UINT8 dims: [ {h}, {w} ] }}
output {{ name: "logits" data_type: TYPE_FP32 dims: [ 8, {h}, {w} ] }}
"""
HEAD = "POST /v2/models/net/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"


class BusyEngine(FakeEngine):
    """A fake engine that computes for ``seconds`` of its core, as a network does."""

    def __init__(self, seconds: float) -> None:
        super().__init__(SIZE, max_batch_size=1)
        self.seconds = seconds

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        # OpenCV computes without the interpreter's lock, as engines do.
        pixels, end = np.ones((512, 512), np.float32), time.thread_time() + self.seconds
        while time.thread_time() < end:
            cv2.GaussianBlur(pixels, (0, 0), 3.0)
        return super().run(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", default="8,300", help="numbers of callers, by comma")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine-ms", type=float, default=45.0, help="an image's time")
    options = parser.parse_args()
    numbers = [int(number) for number in options.callers.split(",")]
    results: dict[int, list[Counter[int]]] = {number: [] for number in numbers}
    print(read_machine().line())
    with busy_server(options.engine_ms / 1000.0) as port:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[-1]})
        body = encode_photo()
        uvloop.run(flood(port, body, 8, 3.0))
        for _ in range(options.rounds):
            for number in numbers:
                results[number].append(uvloop.run(flood(port, body, number, options.seconds)))
    for number, rounds in results.items():
        print(f"{number:4} callers", end="")
        for status in (200, 429):
            rates = [counts[status] / options.seconds for counts in rounds]
            low, high = min(rates), max(rates)
            print(f"  {status}: {statistics.median(rates):.1f}/s ({low:.1f}-{high:.1f})", end="")
        print()


@contextmanager
def busy_server(engine_s: float) -> Iterator[int]:
    """Runs the server in a process and on a core of its own; gives its HTTP port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, engine_s))
    process.start()
    try:
        if not ours.poll(120):
            raise RuntimeError("the server did not start within 120 s")
        yield ours.recv()
        ours.send("end")
        process.join(60)
    finally:
        process.kill()
        process.join()


def serve(pipe: Connection, engine_s: float) -> None:
    """Serves until something is sent; sends its HTTP port first."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "net"
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.onnx").touch()
        (model / "config.pbtxt").write_text(CONFIG.format(h=SIZE.height, w=SIZE.width))
        (model / "labels.txt").write_text("".join(f"class{k}\n" for k in range(8)))
        uvloop.run(_serve(pipe, Path(folder), engine_s))


async def _serve(pipe: Connection, repository: Path, engine_s: float) -> None:
    settings = Settings(
        repository=repository, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0,
        max_queue_size=16,
    )  # fmt: skip
    server = Server(settings, lambda folder, version, settings: BusyEngine(engine_s))
    await server.start()
    pipe.send(server.ports.http)
    await asyncio.to_thread(pipe.recv)
    await server.stop()


async def flood(port: int, body: bytes, callers: int, seconds: float) -> Counter[int]:
    """Lets callers ask for a while; returns how many answers of each status came."""
    counts: Counter[int] = Counter()
    request = HEAD.format(len(body)).encode() + body
    end = time.monotonic() + seconds
    asking = [asyncio.create_task(ask(port, request, end, counts)) for _ in range(callers)]
    await asyncio.gather(*asking)
    return counts


async def ask(port: int, request: bytes, end: float, counts: Counter[int]) -> None:
    """One caller; an answer counts where it has come by ``end``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < end:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        if time.monotonic() < end:
            counts[int(head.split()[1])] += 1
    writer.close()


def encode_photo() -> bytes:
    """Returns a JPEG of noise in the network's size, about as many bytes as a street photo."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE.height, SIZE.width, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 60])[1])


if __name__ == "__main__":
    main()
