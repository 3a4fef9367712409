"""What a refused request costs the server: ``python benchmarks/refusals.py``.

A server in a process of its own whose engine never ends its first batch: every request with a
deadline is refused as ``predicted_late``. One caller asks again and again; the server's CPU time is
the kernel's, its sockets included. Transports and sizes take turns.
"""

from __future__ import annotations

import asyncio
import cProfile
import multiprocessing
import pstats
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from benchmarks.loadgen.grpc_target import GrpcTarget
from benchmarks.loadgen.http_target import HttpTarget
from benchmarks.loadgen.process_time import read_cpu_seconds
from benchmarks.loadgen.target import Target

REPOSITORY = Path("model_repository")
MODEL = "icnet"
DEADLINE_S = 1.0
SIZES = (86_000, 340_000)
ROUNDS = 5
REQUESTS = 400


@dataclass(frozen=True)
class Cost:
    """Of one transport and size; milliseconds a request, by round.

    Attributes:
        wall_ms: of the caller, one request after the other.
    """

    transport: str
    body_bytes: int
    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]


def serve_refusing(pipe: Connection, profile: bool) -> None:
    """Serves until the other end says a word; the ports are the first thing that is sent."""
    from serving.lifecycle import Server
    from serving.settings import Settings
    from serving.testing import FakeEngine

    settings = Settings(
        repository=REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0
    )

    async def run() -> None:
        from serving.engines.embedded import open_onnx_engine

        engines: list[FakeEngine] = []

        def open_fake(folder, version, settings):  # type: ignore[no-untyped-def]
            real = open_onnx_engine(folder, version, settings)
            engines.append(FakeEngine(real.spec.size, num_classes=len(folder.labels.names)))
            real.close()
            return engines[-1]

        server = Server(settings, open_fake)
        await server.start()
        batcher = server.registry.get(MODEL).batcher
        for engine in engines:
            engine.hold.clear()
        size = batcher.engine.spec.size
        held = asyncio.create_task(batcher.submit(np.zeros((size.height, size.width, 3), np.uint8)))
        await asyncio.sleep(0.1)
        batcher.costs.learn(1, 600.0)
        pipe.send((server.ports.http, server.ports.grpc))
        profiler = cProfile.Profile() if profile else None
        if profiler:
            profiler.enable()
        await asyncio.to_thread(pipe.recv)
        if profiler:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(60)
        for engine in engines:
            engine.hold.set()
        await held
        await server.stop()

    uvloop.run(run())


@contextmanager
def refusing_server(profile: bool = False) -> Iterator[tuple[int, int, int]]:
    """Its process id, HTTP port and gRPC port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_refusing, args=(theirs, profile))
    process.start()
    try:
        if not ours.poll(120):
            raise RuntimeError("the server did not start within 120 s")
        http, grpc = ours.recv()
        assert process.pid is not None
        yield process.pid, http, grpc
        ours.send("stop")
        process.join(60)
    finally:
        process.kill()
        process.join()


async def ask(target: Target, body: bytes, count: int) -> None:
    """Asks ``count`` times; every answer must be a refusal."""
    for _ in range(count):
        outcome = await target.send(body)
        if (outcome.status, outcome.reason) != ("rejected", "predicted_late"):
            raise RuntimeError(f"not refused as predicted late: {outcome}")


async def measure(
    pid: int, targets: dict[str, Target], sizes: tuple[int, ...], rounds: int, requests: int
) -> list[Cost]:
    """Every transport with every size, in turns."""
    cases = [(name, size) for name in targets for size in sizes]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(-1, rounds):
        for name, size in cases:
            body = bytes(size)
            cpu, start = read_cpu_seconds(pid), time.perf_counter()
            await ask(targets[name], body, requests)
            wall, spent = time.perf_counter() - start, read_cpu_seconds(pid) - cpu
            if number >= 0:
                found[name, size].append((1e3 * spent / requests, 1e3 * wall / requests))
    return [
        Cost(name, size, tuple(c for c, _ in rows), tuple(w for _, w in rows))
        for (name, size), rows in found.items()
    ]


def main(profile: str = "") -> None:
    async def run(pid: int, http: int, grpc: int) -> list[Cost]:
        targets: dict[str, Target] = {
            "HTTP": HttpTarget(f"http://127.0.0.1:{http}", MODEL, deadline_s=DEADLINE_S),
            "gRPC": GrpcTarget(f"127.0.0.1:{grpc}", MODEL, deadline_s=DEADLINE_S),
        }
        chosen = {name: t for name, t in targets.items() if profile in ("", name)}
        try:
            return await measure(pid, chosen, SIZES, ROUNDS, REQUESTS)
        finally:
            for target in targets.values():
                await target.close()

    with refusing_server(bool(profile)) as server:
        costs = uvloop.run(run(*server))
    for cost in costs:
        print(
            f"{cost.transport} {cost.body_bytes} bytes: {median(cost.cpu_ms):.3f} ms CPU"
            f" ({min(cost.cpu_ms):.3f} to {max(cost.cpu_ms):.3f}), {median(cost.wall_ms):.3f} ms"
        )


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
