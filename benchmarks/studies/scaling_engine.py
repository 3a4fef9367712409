"""Measures one point of a scaling curve: an engine in a process, and memory, of its own.

``python -m benchmarks.studies.scaling_engine '{"height": 512, ...}'`` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest.processes import read_memory
from benchmarks.engines.graphs import built_graph
from benchmarks.timing import Spread, spread_of
from export.symbols.find import NetworkName
from serving.engines.onnxruntime import OnnxEngine
from serving.imaging import restore

NETWORK = NetworkName("icnet", "resnet50", 1.0, "citys")


@dataclass(frozen=True)
class Setting:
    """ICNet-ResNet50 in one size and precision; ``instances`` run at once and share ``threads``."""

    height: int = 512
    width: int = 1024
    precision: str = "int8"
    classes: int = 19
    batch: int = 1
    threads: int = 2
    instances: int = 1
    rounds: int = 5

    @property
    def pixels(self) -> int:
        """Returns the pixels of one image."""
        return self.height * self.width


@dataclass(frozen=True)
class Point:
    """The figures of a setting.

    Attributes:
        run_ms: one run of a batch.
        restore_ms: labels at the network's size from the logits of one image, on one thread.
        images_per_second: of all instances together.
        cpu_ms: of the process, an image.
        memory_mib: the process's peak; ``graph_mib`` is the file's part of it.
    """

    setting: Setting
    run_ms: Spread
    restore_ms: Spread
    images_per_second: float
    cpu_ms: float
    memory_mib: float
    graph_mib: float

    def row(self, curve: str) -> str:
        """Returns a row of the table in docs/scaling.md."""
        setting = self.setting
        threads = max(1, setting.threads // setting.instances)
        return (
            f"| {curve} | {setting.height}x{setting.width} | {setting.precision} "
            f"| {setting.classes} | {setting.batch} | {setting.instances} x {threads} "
            f"| {self.run_ms} | {self.restore_ms} | {self.images_per_second:.2f} "
            f"| {self.cpu_ms:.0f} | {self.memory_mib:.0f} |"
        )


def measure_apart(setting: Setting) -> Point:
    """Measures a setting in a process of its own.

    Raises:
        RuntimeError: the process failed; with what it printed.
    """
    graph_of(setting)  # built here: its memory is not the engine's
    module = "benchmarks.studies.scaling_engine"
    command = [sys.executable, "-m", module, json.dumps(asdict(setting))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return read_point(json.loads(done.stdout.splitlines()[-1]))


def measure(setting: Setting) -> Point:
    """Measures a setting in this process."""
    path = graph_of(setting)
    engine = OnnxEngine(
        path, instances=setting.instances, threads=setting.threads, max_batch_size=setting.batch
    )
    shape = (setting.batch, setting.height, setting.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    logits = engine.run(images)[0].logits
    assert logits is not None
    walls: list[float] = []

    def run() -> None:
        for _ in range(setting.rounds):
            start = time.perf_counter()
            engine.run(images)
            walls.append(time.perf_counter() - start)

    workers = [threading.Thread(target=run) for _ in range(setting.instances)]
    start, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    count = setting.rounds * setting.instances * setting.batch
    # Not getrusage: its peak is that of the process which started this one, where that was larger.
    memory = read_memory([os.getpid()]).peak_rss
    size = engine.spec.size
    restore.labels_from_logits(logits, size, size)
    restores = []
    for _ in range(5):
        begin = time.perf_counter()
        restore.labels_from_logits(logits, size, size)
        restores.append(1000 * (time.perf_counter() - begin))
    return Point(
        setting,
        spread_of([1000 * w for w in walls]),
        spread_of(restores),
        round(count / wall, 3),
        round(1000 * cpu / count, 2),
        memory,
        round(path.stat().st_size / 2**20, 1),
    )


def graph_of(setting: Setting) -> Path:
    """Returns the graph's file; builds it if it is not cached."""
    return built_graph(NETWORK, setting.classes, setting.height, setting.width, setting.precision)


def read_point(stored: Mapping[str, Any]) -> Point:
    """Returns the point that was stored as JSON."""
    spreads = {name: Spread(**stored[name]) for name in ("run_ms", "restore_ms")}
    return Point(**{**stored, **spreads, "setting": Setting(**stored["setting"])})


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Setting(**json.loads(sys.argv[1]))))))
