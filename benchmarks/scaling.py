"""Measures how time and memory grow with pixels, classes, batch, threads, instances, callers.

``python -m benchmarks.scaling engine`` and ``... server`` measure one half each (under six minutes)
and write ``results/scaling_engine.json`` and ``results/scaling_server.json``; ``... plot`` draws
``results/scaling_*.png`` from them. ICNet-ResNet50, random weights, int8 unless a curve says so.
docs/scaling.md says what they mean.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.machine import (
    RESULTS,
    Machine,
    ResultsFolder,
    above_footer,
    read_machine,
    save_plot,
    write_result,
)
from benchmarks.studies.scaling_engine import Point, Setting, measure_apart, read_point
from benchmarks.studies.scaling_server import (
    Callers,
    Steady,
    measure_callers,
    measure_steady,
    serve,
)
from serving.imaging.geometry import Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

app = typer.Typer(add_completion=False)
SIZES = ("128x256", "256x512", "512x1024", "768x1536", "1024x2048")
CLASSES = (2, 19, 60, 150)
BATCHES = (1, 2, 4, 8)
CALLERS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Curve:
    """One property varied, the rest as in ``base``."""

    name: str
    settings: tuple[Setting, ...]


def curves(base: Setting, sizes: Sequence[str]) -> list[Curve]:
    """Returns all curves of the engine."""
    cores = base.threads
    parsed = [Size.parse(size) for size in sizes]

    def sized(precision: str) -> tuple[Setting, ...]:
        return tuple(
            replace(base, height=s.height, width=s.width, precision=precision) for s in parsed
        )

    return [
        Curve("pixels, int8", sized("int8")),
        Curve("pixels, fp32", sized("fp32")),
        Curve("classes", tuple(replace(base, classes=count) for count in CLASSES)),
        Curve("batch", tuple(replace(base, batch=count) for count in BATCHES)),
        Curve("threads", tuple(replace(base, threads=count) for count in range(1, cores + 1))),
        Curve("instances", tuple(replace(base, instances=count) for count in (1, 2, 4))),
    ]


@app.command()
def engine(
    size: Annotated[
        str, typer.Option(help="Image size of the other curves, HEIGHTxWIDTH.")
    ] = "512x1024",
    sizes: Annotated[
        str, typer.Option(help="Sizes of the pixel curves, comma-separated.")
    ] = ",".join(SIZES),
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each instance.")] = 5,
    only: Annotated[str, typer.Option(help="Measure only curves whose names contain this.")] = "",
    results: ResultsFolder = RESULTS,
) -> None:
    """Measures the curves of the embedded engine, each point in a process of its own."""
    machine = read_machine()
    pixels = Size.parse(size)
    base = Setting(pixels.height, pixels.width, threads=_cores(), rounds=rounds)
    found: dict[str, list[Point]] = {}
    for curve in curves(base, sizes.split(",")):
        if only not in curve.name:
            continue
        found[curve.name] = []
        for setting in curve.settings:
            point = measure_apart(setting)
            found[curve.name].append(point)
            typer.echo(point.row(curve.name))
    typer.echo(str(write_result("scaling_engine", {"curves": found}, machine, results)))


@app.command()
def server(
    size: Annotated[str, typer.Option(help="Image size, HEIGHTxWIDTH.")] = "512x1024",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each load.")] = 15.0,
    results: ResultsFolder = RESULTS,
) -> None:
    """Measures a server with one instance or two: concurrent callers, then 80 % of its capacity."""
    machine = read_machine()
    pixels = Size.parse(size)
    found: dict[str, list[Callers]] = {}
    steady: dict[str, list[Steady]] = {}
    for instances in (1, 2):
        setting = Setting(pixels.height, pixels.width, threads=_cores(), instances=instances)
        title = f"{instances} x {max(1, _cores() // instances)} threads"
        with serve(setting) as served:
            points = [
                asyncio.run(measure_callers(served, setting, callers, seconds))
                for callers in CALLERS
            ]
            found[title] = points
            for point in points:
                typer.echo(f"{title}: {point}")
            capacity = max(point.images_per_second for point in points)
            steady[title] = [
                asyncio.run(measure_steady(served, setting, capacity, arrivals, 3 * seconds))
                for arrivals in ("evenly", "poisson")
            ]
            for one in steady[title]:
                typer.echo(f"{title}: {one}")
    content = {"size": size, "callers": found, "steady": steady}
    typer.echo(str(write_result("scaling_server", content, machine, results)))


@app.command()
def plot(
    results: ResultsFolder = RESULTS,
) -> None:
    """Draws the curves from the JSON files."""
    from matplotlib.figure import Figure

    stored = json.loads((results / "scaling_engine.json").read_text("utf-8"))
    found = {
        name: [read_point(point) for point in points] for name, points in stored["curves"].items()
    }
    machine = Machine(**stored["machine"])
    figure = Figure((11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for (name, title, x, y, unit), one in zip(_PLOTS, axes.flat, strict=True):
        for curve, points in found.items():
            if curve.split(",")[0] == name:
                _draw(one, [x(p) for p in points], [y(p) for p in points], curve)
        one.set(title=title, xlabel=name if name != "pixels" else "megapixels", ylabel=unit)
        one.set_ylim(0, 1.1 * one.dataLim.y1)
        if name == "pixels":
            one.legend()
        else:
            one.xaxis.get_major_locator().set_params(integer=True)
    above_footer(figure, 0.03)
    typer.echo(str(save_plot("scaling_engine", figure, machine, results)))
    _plot_server(results)


def _plot_server(results: Path) -> None:
    from matplotlib.figure import Figure

    stored = json.loads((results / "scaling_server.json").read_text("utf-8"))
    figure = Figure((11, 3.6), layout="constrained")
    throughput, latency, load = figure.subplots(1, 3)
    for title, points in stored["callers"].items():
        callers = [point["callers"] for point in points]
        _draw(throughput, callers, [p["images_per_second"] for p in points], title)
        _draw(latency, callers, [p["p50_ms"] for p in points], f"{title}, p50")
        latency.plot(callers, [p["p99_ms"] for p in points], "--", label=f"{title}, p99")
    throughput.set(title="callers at once", xlabel="callers", ylabel="images a second")
    throughput.set_ylim(0, 1.1 * throughput.dataLim.y1)
    latency.set(title="what a caller waits", xlabel="callers", ylabel="ms")
    names = [
        f"{title}\n{one['arrivals']}" for title, ones in stored["steady"].items() for one in ones
    ]
    ones = [one for ones in stored["steady"].values() for one in ones]
    places = range(len(ones))
    load.bar(places, [one["p99_of_p50"] for one in ones], label="measured")
    load.plot(places, [one["queue_p99_of_p50"] for one in ones], "k_", ms=30, label="ideal queue")
    load.axhline(2, color="gray", lw=0.8, ls=":")
    load.set(title="80 % of the capacity", ylabel="p99 / p50")
    load.set_ylim(0, 1.4 * load.dataLim.y1)
    load.set_xticks(list(places), names, fontsize=7)
    for one in (throughput, latency, load):
        one.legend(fontsize=7)
    above_footer(figure, 0.05)
    typer.echo(str(save_plot("scaling_server", figure, Machine(**stored["machine"]), results)))


Read = Callable[[Point], float]
_PLOTS: tuple[tuple[str, str, Read, Read, str], ...] = (
    ("pixels", "one image", lambda p: p.setting.pixels / 1e6, lambda p: p.run_ms.median, "ms"),
    ("pixels", "memory of the process", lambda p: p.setting.pixels / 1e6,
     lambda p: p.memory_mib, "MiB"),
    ("classes", "network and restore", lambda p: p.setting.classes,
     lambda p: p.run_ms.median + p.restore_ms.median, "ms"),
    ("batch", "one image of a batch", lambda p: p.setting.batch,
     lambda p: p.run_ms.median / p.setting.batch, "ms"),
    ("threads", "threads of one instance", lambda p: p.setting.threads,
     lambda p: p.images_per_second, "images a second"),
    ("instances", "instances that share the cores", lambda p: p.setting.instances,
     lambda p: p.images_per_second, "images a second"),
)  # fmt: skip


def _draw(axes: Axes, x: Sequence[float], y: Sequence[float], label: str) -> None:
    axes.plot(x, y, "o-", ms=4, label=label)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    app()
