"""``benchmarks/fps.py``: how fast one engine runs one network, without any server around it."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer
from rich.console import Console

from benchmarks.built_graphs import built_graph
from benchmarks.timing import time_runs
from export.errors import ExportError
from export.symbol_lookup import NetworkName
from serving.engines.onnx import OnnxEngine
from serving.errors import SegserveError
from serving.palette import load_labels
from serving.repository import read_model


@dataclass(frozen=True)
class Speed:
    """One measurement; times in milliseconds, ``per_image`` ones divided by the batch."""

    model: str
    weights: str
    engine: str
    fetched: str
    size: str
    batch: int
    threads: int
    runs: int
    per_image_ms: float
    fps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_per_image_ms: float
    versions: str

    @property
    def symbol(self) -> str:
        """``t_gpu`` or ``t_cpu``, as the published tables call the time of an image."""
        return "t_cpu" if self.engine.endswith("cpu") else "t_gpu"

    def lines(self) -> list[str]:
        """What the terminal shows."""
        return [
            f"{self.model}, {self.size}, batch {self.batch}, {self.weights}",
            f"{self.engine}, {self.threads} threads; graph cut to {self.fetched}",
            f"{self.symbol} {self.per_image_ms:.2f} ms   {self.fps:.2f} fps",
            f"a run of {self.batch}: p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms,"
            f" p99 {self.p99_ms:.1f} ms ({self.runs} runs)",
            f"CPU time an image {self.cpu_per_image_ms:.1f} ms; {self.versions}",
        ]


def measure_speed(
    engine: OnnxEngine, batch: int, seconds: float, threads: int, model: str, weights: str
) -> Speed:
    """Runs random images for ``seconds``. ``engine.run`` returns when the result is in memory."""
    size = engine.spec.size
    shape = (batch, size.height, size.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    timing = time_runs(lambda: engine.run(images), seconds)
    count = len(timing.walls) * batch
    logits = engine.spec.logits_size
    fetched = "mask" if logits is None else f"logits at {logits.height}x{logits.width}"
    return Speed(
        model=model,
        weights=weights,
        engine=engine.name,
        fetched=fetched,
        size=f"{size.height}x{size.width}",
        batch=batch,
        threads=threads,
        runs=len(timing.walls),
        per_image_ms=timing.total / count * 1000,
        fps=count / timing.total,
        p50_ms=timing.percentile_ms(50),
        p95_ms=timing.percentile_ms(95),
        p99_ms=timing.percentile_ms(99),
        cpu_per_image_ms=timing.cpu / count * 1000,
        versions=f"ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}",
    )


def fps(
    model: Annotated[str, typer.Option(help="Network, or the model's name with --served.")],
    backbone: Annotated[str, typer.Option(help="Backbone.")] = "resnet50",
    width: Annotated[float, typer.Option(help="Channel multiplier.")] = 1.0,
    dataset: Annotated[str, typer.Option(help="Sets the number of classes.")] = "citys",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "1024x2048",
    batch: Annotated[int, typer.Option(min=1, help="Images a run.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="How long to measure.")] = 10.0,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 0,
    served: Annotated[
        bool, typer.Option("--served", help="Measure the repository's model.")
    ] = False,
    repository: Annotated[Path, typer.Option(help="For --served.")] = Path("model_repository"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers.")] = None,
) -> None:
    """Prints the time an image takes in the engine that the server uses."""
    console = Console(stderr=True, highlight=False)
    begin = time.perf_counter()
    try:
        with console.status("building the graph" if not served else "reading the repository"):
            if served:
                folder = read_model(repository / model)
                path = folder.graph(folder.versions[-1])
                weights = f"version {folder.versions[-1]} of {repository}"
            else:
                height, columns = _parse_size(size)
                network = NetworkName(model, backbone, width, dataset)
                classes = len(load_labels(dataset).names)
                path = built_graph(network, classes, height, columns)
                model = network.stem
                weights = "random weights (speed does not depend on them)"
        cores = threads or len(os.sched_getaffinity(0))
        with console.status("loading"):
            engine = OnnxEngine(path, instances=1, threads=cores, max_batch_size=batch)
        with console.status(f"measuring for {seconds:g} s"):
            speed = measure_speed(engine, batch, seconds, cores, model, weights)
        engine.close()
    except (ExportError, SegserveError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    for line in speed.lines():
        typer.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(speed), indent=2) + "\n")
    console.print(f"{time.perf_counter() - begin:.0f} s in all", style="dim")


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise ValueError(f"--size {text!r} is no HEIGHTxWIDTH, e.g. 1024x2048")
    return int(match[1]), int(match[2])


def main() -> None:
    """Runs the command line."""
    typer.run(fps)
