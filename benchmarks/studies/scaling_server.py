"""Measures the server's scaling curves: concurrent callers, and a steady load of 80 %."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.contest.processes import read_cpu_seconds, read_memory, run_segserve
from benchmarks.loadgen.driver import Offsets, draw_poisson, drive_closed, drive_open, render_images
from benchmarks.loadgen.summary import summarise
from benchmarks.loadgen.targets import HttpTarget
from benchmarks.studies.scaling_engine import Setting, graph_of
from export.repository.triton import ModelFacts, write_model
from serving.palette import load_labels

MODEL = "icnet"
SHARE = 0.8


@dataclass(frozen=True)
class Callers:
    """The figures of a closed loop; the server's CPU seconds are those of an image."""

    callers: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_s: float
    memory_mib: float


@dataclass(frozen=True)
class Steady:
    """The figures of an open loop at ``SHARE`` of the best closed loop's throughput.

    Attributes:
        arrivals: ``evenly``, or ``poisson``.
        queue_p99_of_p50: the same ratio for one queue before as many engines as there are
            instances, which always take the same time and have cores of their own.
    """

    arrivals: str
    offered: float
    answered: float
    p50_ms: float
    p99_ms: float
    p99_of_p50: float
    queue_p99_of_p50: float


@dataclass(frozen=True)
class ServedPoint:
    """A running server: its process id and URL."""

    pid: int
    url: str


@contextmanager
def serve(setting: Setting) -> Iterator[ServedPoint]:
    """Runs a server with that one model in a process of its own, and yields it once ready."""
    with tempfile.TemporaryDirectory(prefix="segserve-scaling-") as name:
        folder = Path(name)
        facts = ModelFacts(load_labels("citys"), MODEL, "citys", None, "random weights")
        model = onnx.load(str(graph_of(setting)))
        written = write_model(folder / "models", MODEL, model, facts, setting.batch)
        config = written.parent / "config.pbtxt"
        group = f"\ninstance_group {{ count: {setting.instances} kind: KIND_CPU }}\n"
        config.write_text(config.read_text("utf-8") + group, "utf-8")
        arguments = ["--repository", str(folder / "models")]
        variables = {"SEGSERVE_THREADS": str(setting.threads)}
        with run_segserve(arguments, variables, folder / "server.log") as (pid, http):
            yield ServedPoint(pid, f"http://127.0.0.1:{http}")


async def measure_callers(
    served: ServedPoint, setting: Setting, callers: int, seconds: float
) -> Callers:
    """Measures a number of callers, each with one request at a time."""
    target = HttpTarget(served.url, MODEL)
    before = read_cpu_seconds(served.pid)
    run = await drive_closed(target, _photos(setting), callers, seconds)
    spent = read_cpu_seconds(served.pid) - before
    await target.close()
    found = summarise(run)
    return Callers(
        callers,
        round(found.throughput, 3),
        round(found.latency.p50, 1),
        round(found.latency.p99, 1),
        round(spent / max(1, found.requests), 4),
        read_memory([served.pid]).peak_rss,
    )


async def measure_steady(
    served: ServedPoint, setting: Setting, capacity: float, arrivals: str, seconds: float
) -> Steady:
    """Measures an open loop of ``SHARE`` of ``capacity`` (images a second)."""
    rate = SHARE * capacity
    offsets = arrive(arrivals, rate, seconds)
    target = HttpTarget(served.url, MODEL)
    run = await drive_open(target, _photos(setting), offsets, seconds)
    await target.close()
    found = summarise(run)
    return Steady(
        arrivals,
        round(rate, 3),
        round(found.throughput, 3),
        round(found.latency.p50, 1),
        round(found.latency.p99, 1),
        round(found.latency.p99 / found.latency.p50, 2),
        round(simulate_queue(offsets, setting.instances / capacity, setting.instances), 2),
    )


def arrive(arrivals: str, per_second: float, seconds: float) -> Offsets:
    """Returns when requests are due: float64 seconds, ascending."""
    if arrivals == "evenly":
        return np.arange(0.0, seconds, 1 / per_second)
    return draw_poisson(per_second, seconds, seed=1)


def simulate_queue(offsets: Offsets, service_s: float, engines: int = 1) -> float:
    """Returns p99 / p50 of the time in one queue for ``engines`` that each take ``service_s``."""
    free, times = [0.0] * engines, []
    for due in offsets:
        # The heap's first is the engine that is free soonest.
        done = max(free[0], due) + service_s
        heapq.heapreplace(free, done)
        times.append(done - due)
    return float(np.percentile(times, 99) / np.percentile(times, 50))


def _photos(setting: Setting) -> list[bytes]:
    return render_images(setting.height, setting.width)
