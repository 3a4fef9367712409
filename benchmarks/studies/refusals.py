"""Measures what a refused request costs the server: ``python -m benchmarks.studies.refusals``.

A server in a process of its own whose engine never ends its first batch, so that every request with
a deadline is refused as ``predicted_late``. One caller repeats its request; the server's CPU time
is the kernel's figure, including what its sockets take. Transports and sizes take turns.
"""

from __future__ import annotations

import asyncio
import cProfile
import multiprocessing
import pstats
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop

from benchmarks.contest.processes import read_cpu_seconds
from benchmarks.loadgen.targets import GrpcTarget, HttpTarget, Target
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, write_result
from benchmarks.timing import Spread, spread_of
from serving.models.embedded import open_onnx_engine
from serving.models.repository import ModelFolder
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine

DEADLINE_S = 1.0
START_S = 120.0
# JPEG of 720x960, of 1024x2048, and the pixels of 1024x2048.
SIZES = "86000,340000,6291456"


@dataclass(frozen=True)
class Cost:
    """The cost of a request of one transport and body size, in milliseconds over the rounds.

    Attributes:
        wall_ms: of the caller, who waits for each refusal.
    """

    transport: str
    body_bytes: int
    cpu_ms: Spread
    wall_ms: Spread


def serve_refusing(pipe: Connection, repository: Path, profile: bool) -> None:
    """Serves, and sends the model's name and both ports; stops at the first message."""
    uvloop.run(_serve_refusing(pipe, repository, profile))


async def _serve_refusing(pipe: Connection, repository: Path, profile: bool) -> None:
    settings = Settings(
        repository=repository,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        drain_seconds=0.0,
        refusals_per_second=1e6,
    )
    engines = []

    def open_held(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
        real = open_onnx_engine(folder, version, settings)
        classes, logits = len(folder.labels.names), real.spec.logits_size
        engines.append(FakeEngine(real.spec.size, num_classes=classes, logits_size=logits))
        real.close()
        return engines[-1]

    server = Server(settings, open_held)
    await server.start()
    model = server.registry.models()[0]
    for engine in engines:
        engine.hold.clear()
    pixels = np.zeros((model.spec.size.height, model.spec.size.width, 3), np.uint8)
    held = asyncio.create_task(model.batcher.submit(pixels))
    while not any(engine.batch_sizes for engine in engines):
        await asyncio.sleep(0.01)
    model.batcher.costs.learn(1, 600.0)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    pipe.send((model.name, server.ports.http, server.ports.grpc))
    await asyncio.to_thread(pipe.recv)
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    for engine in engines:
        engine.hold.set()
    await held
    await server.stop()


@contextmanager
def refusing_server(repository: Path, profile: bool) -> Iterator[tuple[int, str, int, int]]:
    """Runs the server in a process; yields its process id, model, HTTP port and gRPC port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_refusing, args=(theirs, repository, profile))
    process.start()
    try:
        if not ours.poll(START_S):
            raise RuntimeError(f"the server did not start within {START_S:g} s")
        assert process.pid is not None, "the process was started"
        yield process.pid, *ours.recv()
        ours.send("end")
        process.join(60)
    finally:
        process.kill()
        process.join()


async def ask(target: Target, body: bytes, count: int) -> None:
    """Sends ``count`` requests.

    Raises:
        RuntimeError: an answer is not such a refusal.
    """
    for _ in range(count):
        outcome = await target.send(body)
        if (outcome.status, outcome.reason) != ("rejected", "predicted_late"):
            raise RuntimeError(f"the answer is {outcome}: expected a refusal as predicted_late")


async def measure(
    pid: int, targets: Mapping[str, Target], sizes: tuple[int, ...], rounds: int, requests: int
) -> list[Cost]:
    """Measures every transport with every size in turn; a warm-up round is not counted."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, size): [] for name in targets for size in sizes
    }
    for number in range(rounds + 1):
        for (name, size), rows in found.items():
            body = bytes(size)
            cpu, start = read_cpu_seconds(pid), time.perf_counter()
            await ask(targets[name], body, requests)
            wall, spent = time.perf_counter() - start, read_cpu_seconds(pid) - cpu
            if number:
                rows.append((1e3 * spent / requests, 1e3 * wall / requests))
    return [
        Cost(name, size, *(spread_of([row[i] for row in rows]) for i in range(2)))
        for (name, size), rows in found.items()
    ]


def main(
    repository: Annotated[
        Path, typer.Option(help="Model repository; its first model is used.")
    ] = Path("model_repository"),
    transports: Annotated[str, typer.Option(help="Comma-separated.")] = "HTTP,gRPC",
    sizes: Annotated[str, typer.Option(help="Sizes of a body in bytes, comma-separated.")] = SIZES,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a measurement.")] = 400,
    profile: Annotated[bool, typer.Option(help="Print where the server's time goes.")] = False,
    name: Annotated[str, typer.Option(help="Name of the result file.")] = "refusals",
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints the server's CPU time a refused request, and writes it as JSON."""
    machine = read_machine(("grpcio", "uvicorn", "uvloop", "starlette", "fastapi"))

    async def run(pid: int, model: str, http: int, grpc: int) -> list[Cost]:
        targets: dict[str, Target] = {
            "HTTP": HttpTarget(f"http://127.0.0.1:{http}", model, deadline_s=DEADLINE_S),
            "gRPC": GrpcTarget(f"127.0.0.1:{grpc}", model, deadline_s=DEADLINE_S),
        }
        asked = {transport: targets[transport] for transport in transports.split(",")}
        try:
            return await measure(
                pid, asked, tuple(int(size) for size in sizes.split(",")), rounds, requests
            )
        finally:
            for target in targets.values():
                await target.close()

    with refusing_server(repository, profile) as server:
        costs = uvloop.run(run(*server))
    for cost in costs:
        typer.echo(
            f"{cost.transport}, {cost.body_bytes} bytes: {cost.cpu_ms.median:.3f} ms CPU "
            f"({cost.cpu_ms.low:.3f} to {cost.cpu_ms.high:.3f}), {cost.wall_ms.median:.3f} ms"
        )
    if not profile:
        content = {"requests": requests, "costs": [asdict(cost) for cost in costs]}
        typer.echo(write_result(name, content, machine, results))


if __name__ == "__main__":
    typer.run(main)
